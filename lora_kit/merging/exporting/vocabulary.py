"""Read a tokenizer in the terms of a GGUF file: tokens, types, merges, and pre-tokenizer name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.backbone.pre_tokenizers import PRE_TOKENIZERS
from lora_kit.merging.exporting.model_shape import NotWrittenError
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json

# Pre-tokenizers that an export writes; further effects of the other names in llama.cpp, such as on
# the start token, are not compared.
EXPORTED = ("gpt-2", "smollm", "llama-bpe")
GENERATION = "generation_config.json"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class Vocabulary:
    """Tokenizer as stored in a GGUF file.

    Attributes:
        tokens: tokens by id, one per row of the embedding.
        kinds: GGUF type of each token: 1 normal, 3 control, 4 user-defined, 5 unused.
        merges: merges in order, the two parts separated by a space.
        pre: name of the pre-tokenizer.
        special: ids of `bos`, `eos`, `eot`, `eom`, `unk` and `pad`, those that exist.
        add_bos: if true, a text begins with `bos`.
        add_eos: if true, a text ends with `eos`.
        chat_template: Jinja template, or several with `name` and `template`; `None` for a model
            without one.
    """

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | Sequence[Mapping[str, str]] | None


def read_vocabulary(directory: Path, tokenizer: Any, rows: int) -> Vocabulary:
    """Read a byte-level BPE tokenizer.

    Args:
        directory: directory with `tokenizer.json`.
        tokenizer: the same tokenizer, loaded by transformers.
        rows: number of rows of the embedding; ids without a token are filled up.

    Raises:
        NotWrittenError: if the tokenizer is of another kind, or no name of its pre-tokenizer in
            llama.cpp is known here.
        MergeError: if a token or a merge has no place in a GGUF file.
    """
    path = directory / "tokenizer.json"
    file = read_json(path, MergeError)
    model = file["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise NotWrittenError(
            f"{path}: only byte-level BPE tokenizers can be exported to GGUF (got "
            f"{model.get('type')}"
            f"{' with byte fallback (sentencepiece)' if model.get('byte_fallback') else ''}). Fix: "
            "export with --to nf4 or int8"
        )
    pre = _pre_tokenizer_name(path, file)
    names = {index: token for token, index in model["vocab"].items()}
    added = {entry["id"]: entry for entry in file.get("added_tokens", [])}
    names |= {index: entry["content"] for index, entry in added.items()}
    if max(names) >= rows:
        raise MergeError(
            f"{path}: token without a row in the embedding (got id {max(names)}, {rows} rows). "
            "Fix: copy the tokenizer that the model was merged with"
        )
    text = tokenizer("a").input_ids
    return Vocabulary(
        # llama.cpp's own name for a row without a token.
        tokens=tuple(names.get(index, f"[PAD{index}]") for index in range(rows)),
        kinds=tuple(_kind(index, names, added) for index in range(rows)),
        merges=tuple(_merge(path, pair) for pair in model["merges"]),
        pre=pre,
        special=_special_ids(directory, tokenizer),
        add_bos=tokenizer.bos_token_id is not None and text[0] == tokenizer.bos_token_id,
        add_eos=len(text) > 1 and text[-1] == tokenizer.eos_token_id,
        chat_template=_templates(tokenizer.chat_template),
    )


def _templates(templates: Any) -> Any:
    """Return templates as the writer of GGUF files takes them."""
    if not isinstance(templates, dict):
        return templates
    return [{"name": name, "template": template} for name, template in templates.items()]


def _kind(index: int, names: Mapping[int, str], added: Mapping[int, Any]) -> int:
    if index in added:
        return CONTROL if added[index]["special"] else USER_DEFINED
    return NORMAL if index in names else UNUSED


def _merge(path: Path, pair: str | list[str]) -> str:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if len(parts) != 2 or any(" " in part for part in parts):
        raise MergeError(
            f"{path}: GGUF separates the parts of a merge by a space, which is ambiguous here (got "
            f"{pair!r}). Fix: export with --to nf4 or int8"
        )
    return " ".join(parts)


def _pre_tokenizer_name(path: Path, file: Mapping[str, Any]) -> str:
    remedy = "Fix: export with --to nf4 or int8"
    if file.get("normalizer"):
        raise NotWrittenError(
            f"{path}: normalizer: llama.cpp normalizes no text for byte-level BPE (got "
            f"{file['normalizer'].get('type')}). {remedy}"
        )
    specification = _without_offsets(file.get("pre_tokenizer"))
    for name in EXPORTED:
        known, ignore_merges = PRE_TOKENIZERS[name]
        if specification == _without_offsets(known):
            if bool(file["model"].get("ignore_merges")) != ignore_merges:
                raise NotWrittenError(
                    f"{path}: ignore_merges: llama.cpp's {name} would tokenize text differently "
                    f"(got {not ignore_merges}, llama.cpp has {ignore_merges}). {remedy}"
                )
            return name
    raise NotWrittenError(
        f"{path}: pre_tokenizer: no name in llama.cpp (got "
        f"{json.dumps(file.get('pre_tokenizer'))}; known: {', '.join(EXPORTED)}). {remedy}"
    )


def _without_offsets(value: Any) -> Any:
    """Return a pre-tokenizer's specification without the option that changes only offsets."""
    if isinstance(value, dict):
        return {key: _without_offsets(part) for key, part in value.items() if key != "trim_offsets"}
    return [_without_offsets(part) for part in value] if isinstance(value, list) else value


def configured_stop_ids(directory: Path) -> list[int]:
    """Return the stop tokens of a model's generation configuration, in its order."""
    path = directory / GENERATION
    stops = read_json(path, MergeError).get("eos_token_id") if path.is_file() else None
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def _special_ids(directory: Path, tokenizer: Any) -> dict[str, int]:
    """Return special ids; stop tokens of the generation configuration become `eot` and `eom`."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    stops = configured_stop_ids(directory)
    if ids["eos"] is None and stops:
        ids["eos"] = stops[0]
    further = [stop for stop in stops if stop != ids["eos"]]
    if len(further) > 2:
        raise MergeError(
            f"{directory / GENERATION}: eos_token_id: a GGUF file has at most three stop tokens, "
            f"eos, eot and eom (got {len(stops)}). Fix: shorten the list"
        )
    ids |= dict(zip(("eot", "eom"), further, strict=False))
    return {name: index for name, index in ids.items() if index is not None}
