"""The merged model from disk, asked in a new process that has nothing but its files.

python -m lora_kit.merging.reloaded MERGED QUESTIONS ANSWERS DTYPE DEVICE ATTENTION
"""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_kit.backbone.encoder_decoder import answer_greedily, is_divided, language_model_class
from lora_kit.merging.answers import Answers, Questions, answer
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.out_of_memory import lacks_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ON_THE_CPU = "does not fit beside the backbone, and was asked on the CPU, which takes longer"


@dataclass(frozen=True)
class Computing:
    """How a model computes, so that another one computes as it does.

    Attributes:
        attention: as transformers names it.
    """

    dtype: torch.dtype
    device: str
    attention: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> Computing:
        """As this model does."""
        return cls(model.dtype, str(model.device), str(model.config._attn_implementation))


def reload(merged: Path, computing: Computing) -> Any:
    """The merged model from disk, in what it is stored in or was computed in, whichever is finer.

    Rounded when it is loaded, it would lose what was stored in float32 to be kept.

    Raises:
        MergeError: if it cannot be loaded, or not every tensor finds its place.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    stored = getattr(torch, str(read_json(merged / "config.json", MergeError).get("dtype")))
    try:
        config = AutoConfig.from_pretrained(merged, local_files_only=True)
        model, loaded = language_model_class(config).from_pretrained(
            merged,
            dtype=torch.promote_types(stored, computing.dtype),
            attn_implementation=computing.attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise MergeError(f"{merged}: cannot be loaded again: {error}") from error
    lost = sorted([*loaded["missing_keys"], *loaded["mismatched_keys"]])
    if lost:
        raise MergeError(f"{merged}: {len(lost)} parameters are in no file, the first: {lost[0]}")
    if is_divided(model):
        answer_greedily(model, str(merged))
    return model.to(computing.device).eval()


def answer_of_files(
    merged: Path, questions: Questions, computing: Computing, folder: Path
) -> Answers:
    """Ask the merged model in a new process.

    Args:
        merged: directory of the model.
        questions: to ask.
        computing: as base + adapter did.
        folder: for the files that are exchanged.

    Raises:
        MergeError: if the model cannot be loaded or asked there.
    """
    # What was loaded before is gone, but not yet from what this process holds of the device.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    asked, answered = folder / "questions.safetensors", folder / "answers.safetensors"
    questions.save(asked)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lora_kit.merging.reloaded"),
            *(str(merged.absolute()), str(asked), str(answered)),
            *(str(computing.dtype).removeprefix("torch."), computing.device, computing.attention),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it was killed"]
        raise MergeError(f"{merged}: cannot be asked in a new process: {last[0]}")
    if ON_THE_CPU in done.stderr:
        say(f"{merged}: {ON_THE_CPU}")
    with safe_open(answered, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    outputs = {
        key.removeprefix("output/"): tensor
        for key, tensor in tensors.items()
        if key.startswith("output/")
    }
    return Answers(tensors["log_probabilities"], tensors["texts"], outputs)


def answer_where_it_fits(merged: Path, questions: Questions, computing: Computing) -> Answers:
    """Ask the files on the device that base + adapter take up, or else, slower, on the CPU.

    Raises:
        MergeError: as `reload` and `answer`.
    """
    try:
        return answer(reload(merged, computing), questions)
    except (RuntimeError, MemoryError) as error:
        if computing.device == "cpu" or not lacks_memory(error):
            raise
    print(ON_THE_CPU, file=sys.stderr)
    return answer(reload(merged, replace(computing, device="cpu")), questions)


def main(merged: str, asked: str, answered: str, *computing: str) -> None:
    """The new process."""
    dtype, device, attention = computing
    computing_as = Computing(getattr(torch, dtype), device, attention)
    answers = answer_where_it_fits(Path(merged), Questions.load(Path(asked)), computing_as)
    save_file(
        {
            "log_probabilities": answers.log_probabilities.contiguous(),
            "texts": answers.texts,
            **{f"output/{name}": tensor for name, tensor in answers.outputs.items()},
        },
        answered,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
