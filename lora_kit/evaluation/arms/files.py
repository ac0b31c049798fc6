"""Arms that are exported files, answered by the program that serves them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.evaluation.arm_names import CONTROL, FILE_SEPARATOR, control_arm
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.engines.llama_cpp import LlamaCppEngine
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.runtime.hashes import file_sha256, json_sha256
from lora_kit.runtime.processes import process_state

KINDS = ("gguf",)
# Files of the base, the controls of those.
CONTROL_KINDS = tuple(control_arm(kind) for kind in KINDS)


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
        """Return the file that `KIND=FILE` names, the adapter's or the base's.

        Raises:
            RecipeError: if the kind is unknown, or there is no such file.
        """
        kind, _, name = text.partition(FILE_SEPARATOR)
        path = Path(name).expanduser()
        if kind not in (*KINDS, *CONTROL_KINDS):
            raise RecipeError(
                f"arm {text}: unknown kind of file (got {kind}). Fix: use "
                f"{', '.join([*KINDS, *CONTROL_KINDS])}"
            )
        if not path.is_file():
            raise RecipeError(
                f"arm {text}: no such file (got {path}). Fix: write it with `lora-kit export DIR "
                f"--to {kind.removeprefix(CONTROL)} --output {path}`"
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


def require_one_process(where: str, what: str) -> None:
    """Refuse several processes, each of which would start or ask a server of its own.

    Raises:
        EvaluationError: under a launcher with several processes.
    """
    processes = process_state().num_processes
    if processes > 1:
        raise EvaluationError(
            f"{where}: one process asks a {what} (got {processes} processes). Fix: evaluate "
            "without a launcher; finished results are reused"
        )


def loaded_files(
    subject: Subject,
    files: Sequence[FileArm],
    controls: Mapping[FileArm, FileArm],
    work: Sequence[Work],
    program: Path,
) -> list[LoadedArms]:
    """Return the arms of exported files and their controls, with the engines that answer for them.

    Args:
        subject: adapter and backbone that the files are of.
        files: the files.
        controls: the base's file in the same file type, for the files that have one.
        work: tasks that are asked.
        program: llama.cpp's server.

    Raises:
        EvaluationError: if the model is not a decoder that answers with text, or several processes
            would each start a server.
    """
    require_one_process(f"arm {files[0].name}", "file's server")
    if subject.backbone.head is not None or is_encoder_decoder(subject.backbone.model):
        raise EvaluationError(
            f"arm {files[0].name}: only decoders that answer with text are exported as files (got "
            "a classifier, a reward model or an encoder-decoder). Fix: remove the arm"
        )
    requests = [item.request for one in work for item in one.task.items]
    context = max(request.length for request in requests) + 1
    tokenizer, stops = subject.backbone.tokenizer, stop_token_ids(subject.backbone)

    def open_engine(path: Path) -> LlamaCppEngine:
        # The two need not fit into memory together.
        subject.close()
        return LlamaCppEngine(path, program, tokenizer, stops, context, torch.get_num_threads())

    version = _version(program)
    digests = [file_sha256(file.path) for file in files]
    models = [
        LoadedArms(
            partial(open_engine, file.path),
            (Arm(file.name, json_sha256([digest, version]), nullcontext, files=digest),),
        )
        for file, digest in zip(files, digests, strict=True)
    ]
    for control in dict.fromkeys(controls.values()):
        identity = json_sha256([file_sha256(control.path), version])
        arms = tuple(
            Arm(control_arm(file.name), identity, nullcontext)
            for file, own in controls.items()
            if own == control
        )
        models.append(LoadedArms(partial(open_engine, control.path), arms))
    return models


def _version(program: Path) -> str:
    """Return what the program says of its version, which its results depend on."""
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def file_facts(files: Sequence[FileArm], controls: Mapping[FileArm, FileArm]) -> dict[str, str]:
    """Return the report's facts on the files among the arms."""
    return {
        f"Arm {file.name}": "answered by llama.cpp, base and adapter by transformers: their "
        "arithmetic differs in the last digits"
        + (f"; control: {controls[file].path.name}, the base" if file in controls else "")
        for file in files
    }
