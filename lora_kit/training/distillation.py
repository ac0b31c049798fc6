"""Learning from a larger model: its whole distribution at each supervised token, beside the label.

Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531): of a token the loss is
(1 - w) * -log p(label) + w * T^2 * KL(teacher || student), both distributions at the temperature T;
T^2 keeps the size of the gradients, which are 1 / T^2 of what they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.backbone.files import BackboneFiles, resolve
from lora_kit.backbone.fingerprint import fingerprint, weight_files
from lora_kit.backbone.load import Backbone, compute_dtype, load
from lora_kit.backbone.positions import Positions
from lora_kit.data.tokenization import Example
from lora_kit.modeling.likelihood import CHUNK, supervised_logits
from lora_kit.recipe.training import DistillationSpec
from lora_kit.runtime.errors import BackboneError, TrainingError

TEACHER = "training.distillation.teacher"


class Teacher:
    """A frozen model that is asked about every batch.

    Attributes:
        backbone: of the teacher.
        spec: how it is learned from.
    """

    def __init__(self, backbone: Backbone, spec: DistillationSpec):
        self.backbone = backbone
        self.spec = spec

    @classmethod
    def of(cls, spec: DistillationSpec | None) -> Teacher | None:
        """Load it; `None` where there is none.

        Raises:
            BackboneError: if it cannot be loaded.
        """
        if spec is None:
            return None
        files = _files(spec)
        with _named_as_teacher():
            return cls(load(files, spec.teacher), spec)

    def losses(
        self, nll: torch.Tensor, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Losses of supervised tokens, (supervised,) float32.

        Args:
            nll: (supervised,), of the labels, as the student has it.
            logits: (supervised, vocabulary), the student's.
            batch: what both models see.
        """
        weight, temperature = self.spec.weight, self.spec.temperature
        with torch.no_grad():
            theirs = supervised_logits(self.backbone.model, batch)
        words = min(theirs.shape[-1], logits.shape[-1])  # heads are padded to round sizes
        apart = _divergence(theirs[:, :words], logits[:, :words], temperature)
        return (1 - weight) * nll + weight * temperature**2 * apart


def require_same_tokens(spec: DistillationSpec, student: Backbone) -> None:
    """Refuse a teacher whose distributions are over other tokens than the student's.

    Raises:
        BackboneError: if it is not there.
        TrainingError: if its tokens are others.
    """
    from transformers import AutoTokenizer

    directory = _files(spec).directory
    others = AutoTokenizer.from_pretrained(directory, local_files_only=True).get_vocab()
    different = len(set(student.tokenizer.get_vocab().items()) ^ set(others.items()))
    if different:
        raise TrainingError(
            f"{TEACHER}: {spec.teacher.model} has other tokens than "
            f"{student.files.reference} ({different:,} differ), so that its distributions are not "
            "over the same ones; name a model of the same family, or let it write answers and "
            "train on those"
        )


def teacher_digest(spec: DistillationSpec) -> str:
    """What changes with the teacher's files, or with how they are loaded.

    Raises:
        BackboneError: if they are not there.
    """
    directory = _files(spec).directory
    dtype = compute_dtype(spec.teacher)
    return fingerprint(directory, weight_files(directory), spec.teacher, dtype).digest


def require_places(spec: DistillationSpec, examples: Sequence[Example]) -> None:
    """Refuse a teacher that has fewer positions than an example takes.

    Args:
        spec: names it.
        examples: that it is asked about.

    Raises:
        BackboneError: if it is not there.
        TrainingError: if it has too few.
    """
    positions = _positions(spec)
    for example in examples:
        if lacking := positions.lacking(example.input_ids):
            raise TrainingError(
                f"{TEACHER}: {example.origin} {lacking} in "
                f"{spec.teacher.model}; lower data.max_length, or name a teacher with more"
            )


def _files(spec: DistillationSpec) -> BackboneFiles:
    with _named_as_teacher():
        return resolve(spec.teacher)


@contextmanager
def _named_as_teacher() -> Iterator[None]:
    """Let what is wrong with a backbone be said of the field that names this one.

    Raises:
        BackboneError: whatever was wrong.
    """
    try:
        yield
    except BackboneError as error:
        said = re.sub(r"(?<!\S)backbone\.(?=\w+:)", f"{TEACHER}.", str(error))
        named = said if said.startswith(TEACHER) else f"{TEACHER}.model: {said}"
        raise BackboneError(named) from error


def _positions(spec: DistillationSpec) -> Positions:
    """Those of the teacher, by its shapes alone: it is not loaded yet."""
    from transformers import AutoConfig

    directory = _files(spec).directory
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return Positions.of(language_model_class(config).from_config(config))


def _divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of each token, nats, (tokens,); float32 a chunk at a time."""
    parts: list[Any] = []
    for start in range(0, len(student), CHUNK):
        wanted = (teacher[start : start + CHUNK].float() / temperature).log_softmax(dim=-1)
        found = (student[start : start + CHUNK].float() / temperature).log_softmax(dim=-1)
        parts.append((wanted.exp() * (wanted - found)).sum(dim=-1))
    return torch.cat(parts) if parts else student.new_zeros(0, dtype=torch.float32)
