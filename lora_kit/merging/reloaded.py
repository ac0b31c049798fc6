"""Load a merged model from disk, and run it in a new process that has nothing but its files.

python -m lora_kit.merging.reloaded MERGED INPUTS_FILE OUTPUTS_FILE DTYPE DEVICE ATTENTION GPUS
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_kit.backbone.devices import device_arguments, input_device, require_on_gpus
from lora_kit.backbone.encoder_decoder import (
    is_encoder_decoder,
    set_greedy_generation,
)
from lora_kit.backbone.heads import MASKED_LM
from lora_kit.backbone.masked import model_class
from lora_kit.backbone.open_files import open_config, open_model
from lora_kit.backbone.varlen import VARLEN, register_varlen
from lora_kit.merging.predictions import (
    ComparisonInputs,
    ModelOutputs,
    compute_outputs,
    tensors_under,
)
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.launcher import forget_launcher
from lora_kit.runtime.out_of_memory import free_memory, is_out_of_memory_error

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CPU_NOTE = (
    "merged model does not fit beside the backbone on the device, so that it is compared on the "
    "CPU, which is slower"
)


@dataclass(frozen=True)
class ComputeSettings:
    """Settings under which two models compute alike.

    Attributes:
        dtype: dtype of the weights and activations.
        device: torch device, such as `cuda:0`.
        attention: name of the attention implementation in transformers.
        gpus: number of GPUs over which the blocks may be spread; above 1, `device` is that of the
            inputs.
    """

    dtype: torch.dtype
    device: str
    attention: str
    gpus: int = 1

    @classmethod
    def of(cls, model: PreTrainedModel, gpus: int = 1) -> ComputeSettings:
        """Return the settings of a loaded model."""
        device, attention = str(input_device(model)), str(model.config._attn_implementation)
        return cls(model.dtype, device, attention, gpus)


def stored_dtype(merged: Path) -> torch.dtype:
    """Return the dtype in which a merged model is stored.

    Raises:
        MergeError: if its configuration cannot be read.
    """
    stored: torch.dtype = getattr(
        torch, str(read_json(merged / "config.json", MergeError).get("dtype"))
    )
    return stored


def loaded_dtype(merged: Path, settings: ComputeSettings) -> torch.dtype:
    """Return the finer one of the stored dtype and `settings.dtype`.

    Rounding at load time would lose what was stored in float32 on purpose, and other programs load
    the files as they are stored.

    Raises:
        MergeError: if the configuration of the merged model cannot be read.
    """
    return torch.promote_types(stored_dtype(merged), settings.dtype)


def load_merged(merged: Path, settings: ComputeSettings) -> Any:
    """Load a merged model from disk, in evaluation mode.

    The dtype is that of `loaded_dtype`.

    Args:
        merged: directory of the merged model.
        settings: dtype, device and attention implementation.

    Raises:
        MergeError: if the model cannot be loaded, or a parameter is in no file.
    """
    config = open_config(merged, MergeError)
    if settings.attention == VARLEN:
        register_varlen()
    placed = device_arguments(settings.gpus) if settings.gpus > 1 else {}
    model, report = open_model(
        merged_model_class(config),
        merged,
        f"{merged}: merged model cannot be loaded",
        "merge again",
        MergeError,
        dtype=loaded_dtype(merged, settings),
        attn_implementation=settings.attention,
        output_loading_info=True,
        **placed,
    )
    require_on_gpus(model, str(merged), settings.gpus, MergeError)
    missing = sorted([*report["missing_keys"], *report["mismatched_keys"]])
    if missing:
        raise MergeError(
            f"{merged}: parameters missing from the files (got {len(missing)}, the first: "
            f"{missing[0]}). Fix: merge again"
        )
    if is_encoder_decoder(model):
        set_greedy_generation(model, str(merged))
    return (model if placed else model.to(settings.device)).eval()


def merged_model_class(config: PretrainedConfig) -> Any:
    """Return the auto class that loads a merged model of a configuration."""
    names = config.architectures or [""]
    return model_class(config, config.name_or_path, names[0].endswith(MASKED_LM))


def compute_outputs_in_subprocess(
    merged: Path, inputs: ComparisonInputs, settings: ComputeSettings, folder: Path
) -> ModelOutputs:
    """Run the merged model in a new process, which has nothing but its files.

    Args:
        merged: directory of the merged model.
        inputs: inputs that base + adapter were run on.
        settings: settings that base + adapter were run with.
        folder: directory for the files that the two processes exchange.

    Raises:
        MergeError: if the model cannot be loaded or run there.
    """
    # Models that were deleted before may still hold device memory in this process.
    free_memory()
    inputs_file, outputs_file = folder / "inputs.safetensors", folder / "outputs.safetensors"
    inputs.save(inputs_file)
    # It is alone: with the variables of a launcher, it would wait for the others of its rank.
    environment = dict(os.environ)
    forget_launcher(environment)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lora_kit.merging.reloaded"),
            *(str(merged.absolute()), str(inputs_file), str(outputs_file)),
            *(str(settings.dtype).removeprefix("torch."), settings.device, settings.attention),
            str(settings.gpus),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["the process was killed"]
        raise MergeError(
            f"{merged}: merged model cannot be run in a new process (got {last[0]}). Fix: merge "
            "again; if the process was killed, free memory first"
        )
    if CPU_NOTE in done.stderr:
        say(f"{merged}: {CPU_NOTE}")
    with safe_open(outputs_file, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return ModelOutputs(
        tensors["log_probabilities"],
        tensors["texts"],
        tensors_under("output/", tensors),
        tensors_under("expert/", tensors),
    )


def compute_outputs_with_cpu_fallback(
    merged: Path, inputs: ComparisonInputs, settings: ComputeSettings
) -> ModelOutputs:
    """Run the merged model on the device of `settings`, or on the CPU if memory is short there.

    Raises:
        MergeError: if the model cannot be loaded, or no example has a label.
    """
    try:
        return compute_outputs(load_merged(merged, settings), inputs)
    except (RuntimeError, MemoryError) as error:
        if settings.device == "cpu" or not is_out_of_memory_error(error):
            raise
    print(CPU_NOTE, file=sys.stderr)
    return compute_outputs(load_merged(merged, replace(settings, device="cpu", gpus=1)), inputs)


def compute_and_save_outputs(
    merged: str,
    inputs_file: str,
    outputs_file: str,
    dtype: str,
    device: str,
    attention: str,
    gpus: str,
) -> None:
    """Run the merged model on inputs from a file, and write its outputs to a file.

    Entry point of the new process; arguments as on its command line.
    """
    settings = ComputeSettings(getattr(torch, dtype), device, attention, int(gpus))
    inputs = ComparisonInputs.load(Path(inputs_file))
    outputs = compute_outputs_with_cpu_fallback(Path(merged), inputs, settings)
    save_file(
        {
            "log_probabilities": outputs.log_probabilities.contiguous(),
            "texts": outputs.generated_ids,
            **{f"output/{name}": tensor for name, tensor in outputs.module_outputs.items()},
            **{f"expert/{name}": tensor for name, tensor in outputs.expert_outputs.items()},
        },
        outputs_file,
    )


if __name__ == "__main__":
    compute_and_save_outputs(*sys.argv[1:])
