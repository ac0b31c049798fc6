"""Result of an export: files, distance from the model, and the tolerances that it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.exporting.comparison import ExportComparison
from lora_kit.merging.exporting.formats import ExportFormat
from lora_kit.merging.exporting.weights import WeightComparison
from lora_kit.runtime.hashes import file_sha256


@dataclass(frozen=True)
class ExportTolerances:
    """Largest differences between an export and its model.

    Attributes:
        least_agreement: least share of positions with the same most likely token.
        most_mean_kl: largest mean KL divergence, in nats a token.
    """

    least_agreement: float
    most_mean_kl: float


# Rounding alone, measured on a float32 model of 135M parameters (512 positions of prose), where it
# weighs more than on larger models: f32 100% and 0 nats, f16 99.6% and 4e-6, bf16 99.4% and 1e-4,
# q8_0 98.0% and 1.4e-3, q6_k 94.1% and 5e-3, q5_k_m 86.7% and 0.035, q4_k_m 84.0% and 0.058, int8
# 89.6% and 0.027, nf4 68.8% and 0.32. The tolerances are meant to catch broken exports, such as
# query and key rows in another order (41% and 1.4 nats), not coarse ones.
TOLERANCES = {
    "f32": ExportTolerances(0.999, 1e-6),
    "f16": ExportTolerances(0.98, 1e-4),
    "bf16": ExportTolerances(0.97, 1e-3),
    "q8_0": ExportTolerances(0.94, 1e-2),
    "q6_k": ExportTolerances(0.9, 3e-2),
    "q5_k_m": ExportTolerances(0.75, 0.15),
    "q4_k_m": ExportTolerances(0.7, 0.25),
    "int8": ExportTolerances(0.8, 0.15),
    "nf4": ExportTolerances(0.5, 1.0),
}


@dataclass(frozen=True)
class ExportResult:
    """Record of an export.

    Attributes:
        path: file or directory that was written.
        to: export format.
        type: type of the matrices.
        weight_bytes: size of the file, or of the weights in the directory, in bytes.
        files: sha256 of each file that was written, by name; for GGUF, also of the Modelfile.
        model: sha256 of each weight file of the model, by name.
        comparison: distance of the export from the model; of the weights only for a file of
            llama.cpp's converter that transformers cannot read.
        limits: tolerances that the export was held to.
        passed: true if the distance is within the tolerances, or no compared tensor differs, and
            every text has the same tokens.
        warnings: comparisons that were not made, differences of the Modelfile's template from the
            model's, and parts left out.
        converter: llama.cpp's converter, if that wrote the file.
    """

    path: Path
    to: ExportFormat
    type: str
    weight_bytes: int
    files: dict[str, str]
    model: dict[str, str]
    comparison: ExportComparison | WeightComparison
    limits: ExportTolerances
    passed: bool
    warnings: tuple[str, ...] = ()
    converter: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON."""
        converter = None if self.converter is None else self.converter.name
        return asdict(self) | {"path": self.path.name, "converter": converter}


def export_result(
    output: Path,
    to: ExportFormat,
    kind: str,
    size: int,
    files: Mapping[str, Path],
    directory: Path,
    comparison: ExportComparison | WeightComparison,
) -> ExportResult:
    """Return the result of an export that was read back.

    Args:
        output: file or directory that is written.
        to: export format.
        kind: type of the matrices.
        size: size of the file or of the weights, in bytes.
        files: where each file is for now, by its name.
        directory: directory of the model.
        comparison: distance of the export from the model.
    """
    tolerances = TOLERANCES[kind]
    if isinstance(comparison, ExportComparison):
        is_near = (
            comparison.top1_agreement >= tolerances.least_agreement
            and comparison.mean_kl <= tolerances.most_mean_kl
        )
    else:
        is_near = comparison.same > 0 and not comparison.different
    return ExportResult(
        path=output,
        to=to,
        type=kind,
        weight_bytes=size,
        files={name: file_sha256(file) for name, file in files.items()},
        model={file.name: file_sha256(file) for file in weight_files(directory)},
        comparison=comparison,
        limits=tolerances,
        passed=is_near and comparison.same_tokens == comparison.texts,
    )
