"""Licence that the card of a model or data set states."""

from __future__ import annotations

from pathlib import Path

import yaml


def card_license(directory: Path) -> str | None:
    """Return `license` or `license_name` of the card in a directory; `None` if there is none."""
    from huggingface_hub.repocard import metadata_load

    try:
        values = metadata_load(directory / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return None
    stated = values.get("license")
    # For example `license: other` with `license_name: qwen-research`.
    return license_name(values.get("license_name") if stated in (None, "other") else stated)


def license_name(value: object) -> str | None:
    """Return the name of a licence; `None` for the hub's `unknown` and `other`."""
    if isinstance(value, list) and value:
        value = " AND ".join(str(one) for one in value)
    is_name = isinstance(value, str) and value.strip().lower() not in ("", "unknown", "other")
    return str(value).strip()[:200] if is_name else None
