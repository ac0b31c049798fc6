"""Exported files and served models among an evaluation's arms, and the programs that answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_kit.evaluation.arm_names import FILE_SEPARATOR, SERVED, is_served_arm
from lora_kit.evaluation.arms.files import KINDS, FileArm, file_facts, loaded_files, parse_files
from lora_kit.evaluation.arms.gguf_controls import matched_controls
from lora_kit.evaluation.arms.served import ServedArm, loaded_served, parse_served, served_facts
from lora_kit.evaluation.engine.arm import LoadedArms
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.engines.llama_cpp import PROGRAM
from lora_kit.recipe.sections import EngineName
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.runtime.llama_cpp import find_llama_cpp

SERVED_ARM = f"{SERVED}{FILE_SEPARATOR}URL"


@dataclass(frozen=True)
class Programs:
    """Programs that answer in place of transformers, and how they are found.

    Attributes:
        engine: overrides the recipe's `evaluation.engine`.
        vllm: folder of the environment that has vLLM; by default this one, or that of the PATH.
        llama_cpp: folder of llama.cpp's programs; by default they are on the PATH.
        served_model: name of the model at `served=URL`; by default the only one.
        api_key_env: environment variable that holds the key of `served=URL`.
    """

    engine: EngineName | None = None
    vllm: Path | None = None
    llama_cpp: Path | None = None
    served_model: str | None = None
    api_key_env: str | None = None


TRANSFORMERS = Programs()


@dataclass(frozen=True)
class ShippedArms:
    """Exported files and a served model among the arms.

    Attributes:
        files: the files.
        controls: the base's file in the same file type, for the files that have one.
        program: llama.cpp's server; `None` without a file.
        served: the served model; `None` without one.
    """

    files: Sequence[FileArm]
    controls: Mapping[FileArm, FileArm]
    program: Path | None
    served: ServedArm | None

    @classmethod
    def parse(cls, arms: Sequence[str], programs: Programs) -> ShippedArms:
        """Return the arms that `KIND=FILE` and `served=URL` name.

        Raises:
            LoraKitError: if one is unknown, or the program that serves it is not there.
        """
        named = parse_files([arm for arm in arms if not is_served_arm(arm)])
        files = [file for file in named if file.kind in KINDS]
        controls = matched_controls(files, [file for file in named if file not in files])
        if programs.llama_cpp is not None and not files:
            raise RecipeError(
                f"--llama-cpp: has no effect without a GGUF file (got {programs.llama_cpp}). Fix: "
                "add --arm gguf=FILE"
            )
        program = find_llama_cpp(programs.llama_cpp, PROGRAM, EvaluationError) if files else None
        urls = [arm for arm in arms if is_served_arm(arm)]
        served = parse_served(urls, programs.served_model, programs.api_key_env)
        return cls(files, controls, program, served)

    @property
    def names(self) -> list[str]:
        """Names of the arms."""
        served = [self.served.name] if self.served is not None else []
        return [*(file.name for file in self.files), *served]

    @property
    def facts(self) -> dict[str, str]:
        """Facts of the report on these arms."""
        return {**file_facts(self.files, self.controls), **served_facts(self.served)}

    def loaded(self, subject: Subject, work: Sequence[Work]) -> list[LoadedArms]:
        """Return the arms with the engines that answer for them."""
        models: list[LoadedArms] = []
        if self.program is not None:
            models += loaded_files(subject, self.files, self.controls, work, self.program)
        if self.served is not None:
            models.append(loaded_served(subject, self.served, work))
        return models
