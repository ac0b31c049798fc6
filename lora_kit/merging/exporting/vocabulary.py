"""A tokenizer as a GGUF file holds it: tokens, kinds, merges, and the name of its pre-tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.backbone.gguf import PRE_TOKENIZERS
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of the tokenizer.

    Attributes:
        tokens: by id, as many as the embedding has rows.
        kinds: of each token, as GGUF counts them: 1 normal, 3 control, 4 user-defined, 5 unused.
        merges: in order, the two parts with a space between.
        pre: name of the pre-tokenizer.
        special: ids by `bos`, `eos`, `eot`, `eom`, `unk` and `pad`, as far as there are any.
        add_bos: whether a text begins with `bos`.
        add_eos: whether a text ends with `eos`.
        chat_template: Jinja, `None` of a model that does not chat.
    """

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def read_vocabulary(directory: Path, tokenizer: Any, rows: int) -> Vocabulary:
    """Read a byte-level BPE tokenizer.

    Args:
        directory: with `tokenizer.json`.
        tokenizer: the same, loaded by transformers.
        rows: of the embedding; ids that no token has are filled up.

    Raises:
        MergeError: if it is of another kind, or llama.cpp has no name for how it cuts text.
    """
    path = directory / "tokenizer.json"
    file = read_json(path, MergeError)
    model = file["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise MergeError(
            f"{path}: a {model.get('type')} tokenizer"
            f"{' with byte fallback (sentencepiece)' if model.get('byte_fallback') else ''}; only "
            "byte-level BPE is exported to GGUF"
        )
    pre = _pre_tokenizer_name(path, file)
    names = {index: token for token, index in model["vocab"].items()}
    added = {entry["id"]: entry for entry in file.get("added_tokens", [])}
    names |= {index: entry["content"] for index, entry in added.items()}
    if max(names) >= rows:
        raise MergeError(f"{path}: has token {max(names)}, but the embedding only {rows} rows")
    text = tokenizer("a").input_ids
    return Vocabulary(
        # llama.cpp's own name for a row without a token.
        tokens=tuple(names.get(index, f"[PAD{index}]") for index in range(rows)),
        kinds=tuple(_kind(index, names, added) for index in range(rows)),
        merges=tuple(_merge(path, pair) for pair in model["merges"]),
        pre=pre,
        special=_special(directory, tokenizer),
        add_bos=tokenizer.bos_token_id is not None and text[0] == tokenizer.bos_token_id,
        add_eos=len(text) > 1 and text[-1] == tokenizer.eos_token_id,
        chat_template=tokenizer.chat_template,
    )


def _kind(index: int, names: Mapping[int, str], added: Mapping[int, Any]) -> int:
    if index in added:
        return CONTROL if added[index]["special"] else USER_DEFINED
    return NORMAL if index in names else UNUSED


def _merge(path: Path, pair: str | list[str]) -> str:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if len(parts) != 2 or any(" " in part for part in parts):
        raise MergeError(f"{path}: the merge {pair!r} cannot be written with a space between")
    return " ".join(parts)


def _pre_tokenizer_name(path: Path, file: Mapping[str, Any]) -> str:
    if file.get("normalizer"):
        raise MergeError(
            f"{path}: normalizes text ({file['normalizer'].get('type')}), which llama.cpp does not "
            "do for byte-level BPE"
        )
    found = _essence(file.get("pre_tokenizer"))
    for name, (known, ignore_merges) in PRE_TOKENIZERS.items():
        if found == _essence(known):
            if bool(file["model"].get("ignore_merges")) != ignore_merges:
                raise MergeError(
                    f"{path}: ignore_merges: {not ignore_merges}, but llama.cpp's {name} has "
                    f"{ignore_merges}: it would cut text into other tokens"
                )
            return name
    raise MergeError(
        f"{path}: cuts text in a way that has no name here ({json.dumps(file.get('pre_tokenizer'))}"
        f"); known: {', '.join(PRE_TOKENIZERS)}"
    )


def _essence(value: Any) -> Any:
    """A pre-tokenizer without what changes only offsets."""
    if isinstance(value, dict):
        return {key: _essence(part) for key, part in value.items() if key != "trim_offsets"}
    return [_essence(part) for part in value] if isinstance(value, list) else value


def _special(directory: Path, tokenizer: Any) -> dict[str, int]:
    """Special ids, with the stop tokens of the generation configuration that are not `eos`."""
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    path = directory / "generation_config.json"
    stops = read_json(path, MergeError).get("eos_token_id") if path.is_file() else None
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if found["eos"] is None and stops:
        found["eos"] = stops[0]
    further = [stop for stop in stops if stop != found["eos"]]
    if len(further) > 2:
        raise MergeError(f"{path}: {len(stops)} tokens stop it; a GGUF file names eos, eot and eom")
    found |= dict(zip(("eot", "eom"), further, strict=False))
    return {name: index for name, index in found.items() if index is not None}
