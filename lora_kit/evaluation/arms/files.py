"""Arms that are exported files, answered by the program that serves them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lora_kit.evaluation.arm_names import FILE_SEPARATOR
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.engines.llama_cpp import PROGRAM, LlamaCppEngine
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.runtime.hashes import file_sha256, json_sha256
from lora_kit.runtime.llama_cpp import find_llama_cpp

KINDS = ("gguf",)


@dataclass(frozen=True)
class FileArm:
    """Exported file that is an arm.

    Attributes:
        kind: format of the file, which says what serves it.
        path: the file.
    """

    kind: str
    path: Path

    @property
    def name(self) -> str:
        """Name of the arm, without the file's folder."""
        return f"{self.kind}{FILE_SEPARATOR}{self.path.name}"

    @classmethod
    def parse(cls, text: str) -> FileArm:
        """Return the arm that `KIND=FILE` names.

        Raises:
            RecipeError: if the kind is unknown, or there is no such file.
        """
        kind, _, name = text.partition(FILE_SEPARATOR)
        path = Path(name).expanduser()
        if kind not in KINDS:
            raise RecipeError(
                f"arm {text}: unknown kind of file (got {kind}). Fix: use {', '.join(KINDS)}"
            )
        if not path.is_file():
            raise RecipeError(
                f"arm {text}: no such file (got {path}). Fix: write it with `lora-kit export DIR "
                f"--to {kind} --output {path}`"
            )
        return cls(kind, path)


def parse_files(texts: Sequence[str]) -> list[FileArm]:
    """Return the files that `KIND=FILE` names, each once.

    Raises:
        RecipeError: if one is unknown, or two have the same name in different folders.
    """
    files: dict[str, FileArm] = {}
    for text in texts:
        file = FileArm.parse(text)
        first = files.setdefault(file.name, file)
        if first.path.resolve() != file.path.resolve():
            raise RecipeError(
                f"arm {text}: two files have this name (got {first.path} as well). Fix: rename one"
            )
    return list(files.values())


def loaded_files(
    subject: Subject, files: Sequence[FileArm], work: Sequence[Work], llama_cpp: Path | None
) -> list[LoadedArms]:
    """Return the arms of exported files, each with the engine that answers for it.

    Args:
        subject: adapter and backbone that the files are of.
        files: the files.
        work: tasks that are asked.
        llama_cpp: folder of llama.cpp's programs; by default they are on the PATH.

    Raises:
        EvaluationError: if the program is not on this machine, or the model has a head.
    """
    if not files:
        return []
    if subject.backbone.head is not None:
        raise EvaluationError(
            f"arm {files[0].name}: a file answers with text, and this model has a head (got a "
            "classifier or a reward model). Fix: remove the arm"
        )
    program = find_llama_cpp(llama_cpp, PROGRAM, EvaluationError)
    requests = [item.request for one in work for item in one.task.items]
    open_engine = partial(
        LlamaCppEngine,
        program=program,
        tokenizer=subject.backbone.tokenizer,
        stop_token_ids=stop_token_ids(subject.backbone),
        context=max(request.length for request in requests) + 1,
        threads=torch.get_num_threads(),
    )
    version = _version(program)
    return [
        LoadedArms(
            partial(open_engine, file.path),
            (Arm(file.name, json_sha256([file_sha256(file.path), version]), nullcontext),),
        )
        for file in files
    ]


def _version(program: Path) -> str:
    """Return what the program says of its version, which its results depend on."""
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def file_facts(files: Sequence[FileArm]) -> dict[str, str]:
    """Return the report's facts on the files among the arms."""
    return {
        f"Arm {file.name}": "answered by llama.cpp, base and adapter by transformers: their "
        "arithmetic differs in the last digits"
        for file in files
    }
