"""Record file beside merged weights: identity of the merged model, and verification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_kit.merging.tolerances import merge_failures, tolerances_for
from lora_kit.runtime.hashes import json_sha256

MERGE_RECORD = "merge.json"


def merged_identity(files: object) -> str:
    """Return one sha256 over the hashes of a merged model's files.

    Args:
        files: sha256 by file name, as in `merge.json`.
    """
    return json_sha256(files)


def recorded_merge_failures(record: Mapping[str, Any], quantization: str) -> list[str]:
    """Return the reasons why a recorded merge does not pass; empty if it passes.

    The rule is applied to the recorded values, whether or not the record says that it passed.

    Args:
        record: content of `merge.json`.
        quantization: quantization of the backbone in training.
    """
    # A merge into the checkpoint's own weights is compared with an unquantized backbone.
    compared = quantization if record["into"] == "dequantized" else "none"
    try:
        values = record["verification"]
        tolerances = tolerances_for(record["dtype"], values["computed_in"], compared)
        failures = []
        if values["passed"] is not True or values["reasons"]:
            failures.append("; ".join(map(str, values["reasons"])) or "verification did not pass")
        return [*failures, *merge_failures(values, tolerances)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"verification: values cannot be read (got {type(error).__name__}: {error})"]
