"""What lies beside merged weights and says what they are."""

from __future__ import annotations

import hashlib
import json

MERGE_RECORD = "merge.json"


def merged_identity(files: object) -> str:
    """Which merged model answers: one sha256 over the hashes of its files."""
    return hashlib.sha256(json.dumps(files, sort_keys=True, default=str).encode()).hexdigest()
