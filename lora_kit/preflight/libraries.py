"""Says how many bytes a process holds that has imported what a training imports, and no more."""

from lora_kit.run import peak_memory


def main() -> None:
    """Import and print."""
    import bitsandbytes
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_kit.training import trainer

    del bitsandbytes, peft, AutoModelForCausalLM, AutoTokenizer, trainer
    print(peak_memory())


if __name__ == "__main__":
    main()
