"""What lies beside merged weights and says what they are."""

from __future__ import annotations

from lora_kit.runtime.hashes import json_sha256

MERGE_RECORD = "merge.json"


def merged_identity(files: object) -> str:
    """Which merged model answers: one sha256 over the hashes of its files."""
    return json_sha256(files)
