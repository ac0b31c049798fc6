"""Knowledge distillation: training on a teacher's distributions in addition to the labels.

Hinton et al. 2015, arXiv:1503.02531: the loss of a token is
(1 - w) * -log p(label) + w * T^2 * KL(teacher || student), both distributions at the temperature T;
T^2 compensates for gradients that are smaller by 1 / T^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.backbone.files import BackboneFiles, errors_of_field, resolve
from lora_kit.backbone.fingerprint import fingerprint, weight_files
from lora_kit.backbone.load import Backbone, compute_dtype, load
from lora_kit.backbone.open_files import build_model, open_config, open_tokenizer, refusing
from lora_kit.backbone.positions import PositionLimits
from lora_kit.data.supervision import Example
from lora_kit.modeling.likelihood import supervised_logits, token_kl
from lora_kit.recipe.training import DistillationSpec
from lora_kit.runtime.errors import TrainingError

TEACHER = "training.distillation.teacher"


class Teacher:
    """Frozen teacher model, run on every batch of the student.

    Attributes:
        backbone: backbone of the teacher.
        spec: weight and temperature.
    """

    def __init__(self, backbone: Backbone, spec: DistillationSpec):
        self.backbone = backbone
        self.spec = spec

    @classmethod
    def of(cls, spec: DistillationSpec | None) -> Teacher | None:
        """Load the teacher of a recipe; `None` if it has none.

        Raises:
            BackboneError: if the teacher cannot be loaded.
        """
        if spec is None:
            return None
        files = _files(spec)
        with errors_of_field(TEACHER):
            return cls(load(files, spec.teacher), spec)

    def losses(
        self, nll: torch.Tensor, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of each supervised token, (supervised,) float32, in nats.

        Args:
            nll: the student's negative log-likelihood of the labels, (supervised,) float32.
            logits: the student's logits, (supervised, vocabulary).
            batch: inputs of both models, a result of `model_inputs.to_device`.
        """
        weight, temperature = self.spec.weight, self.spec.temperature
        with torch.no_grad():
            teacher = supervised_logits(self.backbone.model, batch)
        # Output heads may be padded beyond the vocabulary, to different sizes.
        vocabulary = min(teacher.shape[-1], logits.shape[-1])
        divergence = token_kl(teacher[:, :vocabulary], logits[:, :vocabulary], temperature)
        return (1 - weight) * nll + weight * temperature**2 * divergence


def require_same_tokens(spec: DistillationSpec, student: Backbone) -> None:
    """Refuse a teacher whose vocabulary differs from the student's.

    Raises:
        BackboneError: if the teacher's files do not exist.
        TrainingError: if the vocabularies differ.
    """
    directory = _files(spec).directory
    with errors_of_field(TEACHER):
        vocabulary = open_tokenizer(directory).get_vocab()
    different = len(set(student.tokenizer.get_vocab().items()) ^ set(vocabulary.items()))
    if different:
        raise TrainingError(
            f"{TEACHER}: the vocabulary differs from that of {student.files.reference} (got "
            f"{spec.teacher.model}, {different:,} tokens differ). Fix: name a model of the same "
            "family, or generate answers with the teacher and train on them"
        )


def teacher_digest(spec: DistillationSpec) -> str:
    """Return a digest of the teacher's files and of the options they are loaded with.

    Raises:
        BackboneError: if the files do not exist.
    """
    directory = _files(spec).directory
    dtype = compute_dtype(spec.teacher)
    return fingerprint(directory, weight_files(directory), spec.teacher, dtype).digest


def require_positions(spec: DistillationSpec, examples: Sequence[Example]) -> None:
    """Refuse a teacher with fewer positions than an example needs.

    Args:
        spec: section that names the teacher.
        examples: training examples.

    Raises:
        BackboneError: if the teacher's files do not exist.
        TrainingError: if the teacher has too few positions.
    """
    positions = _positions(spec)
    for example in examples:
        if overflow := positions.overflow(example.input_ids):
            raise TrainingError(
                f"{TEACHER}: {example.origin} {overflow} in {spec.teacher.model}. Fix: lower "
                "data.max_length, or name a teacher with more positions"
            )


def _files(spec: DistillationSpec) -> BackboneFiles:
    with errors_of_field(TEACHER):
        return resolve(spec.teacher)


def _positions(spec: DistillationSpec) -> PositionLimits:
    """Return the teacher's positions from its configuration, without loading weights."""
    directory = _files(spec).directory
    with errors_of_field(TEACHER):
        config = open_config(directory)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with (
            refusing(
                f"{directory / 'config.json'}: transformers cannot build the model",
                "restore the file from the model's source",
            ),
            torch.device("meta"),
        ):
            return PositionLimits.of(build_model(language_model_class(config), config))
