"""Tokenizer of a combined adapter: the one that its sources bring, which must be the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_kit.adapter.tokenizer_files import VOCABULARIES, adapter_template, brought_files
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.hashes import file_sha256, json_sha256


def common_tokenizer(adapters: Sequence[Path]) -> Path | None:
    """Return the first adapter that brings a tokenizer or chat template; `None` if none does.

    Args:
        adapters: directories of the adapters.

    Raises:
        MergeError: if two adapters bring different ones: the combined adapter could only be used
            with one of them.
    """
    bringing = [adapter for adapter in adapters if brought_files(adapter)]
    if not bringing:
        return None
    first, *others = bringing
    for part, identity in (("chat template", _template), ("vocabulary", _vocabulary)):
        for other in others:
            if identity(other) != identity(first):
                raise MergeError(
                    f"{other}: brings another {part} than {first}, and the combined adapter has "
                    f"one. Fix: combine adapters that were trained with the same {part}"
                )
    without = [str(adapter) for adapter in adapters if adapter not in bringing]
    if without:
        say(
            f"{first}: its tokenizer goes with the combined adapter, although other adapters bring "
            f"none ({', '.join(without)})"
        )
    return first


def _template(adapter: Path) -> str:
    return json_sha256(adapter_template(adapter))


def _vocabulary(adapter: Path) -> list[str]:
    return [file_sha256(adapter / n) for n in VOCABULARIES if (adapter / n).is_file()]
