"""Adapter that was not trained, and changes a model's answers all the same."""

from pathlib import Path

import torch


def write_changing_adapter(base: Path, directory: Path, strength: float = 1.0) -> Path:
    """Write an adapter with random factors, and return its directory.

    Args:
        base: directory of the model.
        directory: directory of the adapter.
        strength: factor of its effect.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= strength
    model.save_pretrained(directory)
    return directory
