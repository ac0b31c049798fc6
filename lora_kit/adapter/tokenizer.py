"""Use of the tokenizer and chat template that an adapter brings, since it was trained with them."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2

from lora_kit.adapter.tokenizer_files import (
    CONFIG,
    PARTS,
    PROCESSOR_TEMPLATE,
    TEMPLATE,
    VOCABULARIES,
    adapter_template,
    brought_files,
    copy_adapter_tokenizer,
    vocabulary_file,
)
from lora_kit.adapter.vocabulary import resized_rows
from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer, prepare_seq2seq
from lora_kit.backbone.load import Backbone
from lora_kit.backbone.open_files import open_tokenizer
from lora_kit.backbone.tokenizer import embedding_rows, written_beyond
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import AdapterError, BackboneError, DataError, first_line
from lora_kit.runtime.hashes import json_sha256


def with_adapter_tokenizer(backbone: Backbone, adapter: Path) -> Backbone:
    """Return the backbone with the tokenizer and chat template that an adapter brings.

    Args:
        backbone: backbone with the adapter attached, so that its embeddings have the rows of the
            adapter's.
        adapter: directory of the adapter.

    Returns:
        The backbone as given, if the adapter brings none, or the same ones.

    Raises:
        AdapterError: if a file cannot be read, the template cannot be used, or the tokens have
            other ids than the backbone's.
    """
    own = _with_brought(backbone, adapter)
    if resized_rows(own.model) is not None:
        _require_all_rows(own, adapter)
    return own


def _require_all_rows(backbone: Backbone, adapter: Path) -> None:
    """Refuse embeddings that were cut below the tokenizer's tokens."""
    cut = written_beyond(backbone.tokenizer, rows := embedding_rows(backbone.model))
    if cut:
        first = min(cut, key=cut.__getitem__)
        raise AdapterError(
            f"{adapter}: {_tokens(len(cut))} have no row in its embeddings (first: {first!r} has "
            f"id {cut[first]}; {rows} rows). Fix: save the tokenizer that the adapter was trained "
            "with beside it"
        )


def _with_brought(backbone: Backbone, adapter: Path) -> Backbone:
    if not brought_files(adapter):
        return backbone
    own, pad = _read(backbone, adapter)
    digest = tokenizer_sha256(own)
    if digest == tokenizer_sha256(backbone.tokenizer):
        return backbone
    _require_same_ids(own, backbone, adapter)
    _require_rows(own, backbone, adapter, pad)
    changed = own.chat_template != backbone.tokenizer.chat_template
    if own.chat_template and changed and backbone.head is None:
        _require_usable(own, adapter)
    differences = ", ".join(tokenizer_differences(own, backbone.tokenizer))
    say(
        f"{adapter}: its own tokenizer is used, since it was trained with it; it differs from that "
        f"of {backbone.files.reference} in: {differences}"
    )
    return replace(backbone, tokenizer=own, adapter_tokenizer=digest)


def _read(backbone: Backbone, adapter: Path) -> tuple[Any, str | None]:
    """Load the tokenizer, padded and limited as the backbone's, and return its padding token."""
    base, known = backbone.files.directory, backbone.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for name in ("config.json", *VOCABULARIES, *PARTS):
            if (base / name).is_file():
                shutil.copy2(base / name, directory / name)
        copy_adapter_tokenizer(base, adapter, directory)
        try:
            own: Any = open_tokenizer(directory)
        except BackboneError as error:
            brought = [n for n in (*VOCABULARIES, *PARTS) if (adapter / n).is_file()]
            raise AdapterError(
                f"{adapter / brought[0] if brought else adapter}: transformers cannot load the "
                f"adapter's tokenizer (got {first_line(error.__cause__ or error)}). Fix: save it "
                f"again with save_pretrained, or remove its files ({', '.join(brought)}) if the "
                "adapter was trained with the backbone's"
            ) from error
    pad = own.pad_token
    if own.eos_token is None:
        own.eos_token = known.eos_token
    if known.pad_token_id is not None:
        own.pad_token = own.convert_ids_to_tokens(known.pad_token_id)
    own.model_max_length, own.padding_side = known.model_max_length, known.padding_side
    if is_seq2seq_tokenizer(known):
        if adapter_template(adapter) is not None:
            say(
                f"{adapter}: its chat template is not used: source and answer of an "
                "encoder-decoder are joined as its tokenizer ends them"
            )
        prepare_seq2seq(backbone.model, own, str(adapter))
    return own, pad


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return the sha256 of all that decides on the tokens of a text or conversation."""
    return json_sha256([_rules(tokenizer), _special(tokenizer), tokenizer.chat_template])


def _rules(tokenizer: Any) -> str:
    if not tokenizer.is_fast:
        return json_sha256(sorted(tokenizer.get_vocab().items()))
    written = tokenizer.backend_tokenizer.to_str()
    # Before stand truncation and padding of the last call.
    return sha256(written[written.index('"added_tokens"') :].encode()).hexdigest()


def _special(tokenizer: Any) -> dict[str, str]:
    # Padding is masked, whichever token it is.
    known = tokenizer.special_tokens_map.items()
    return {name: str(token) for name, token in known if name != "pad_token"}


def tokenizer_differences(own: Any, base: Any) -> list[str]:
    """Return in words how a tokenizer differs from another; at least one part."""
    found = []
    if own.chat_template != base.chat_template:
        found.append("chat template")
    added = sorted(set(own.get_vocab()) - set(base.get_vocab()))
    if added:
        found.append(f"{_tokens(len(added))} that it adds ({', '.join(added[:3])})")
    for name in ("bos_token", "eos_token"):
        if getattr(own, name) != getattr(base, name):
            found.append(f"{name} ({getattr(own, name)} instead of {getattr(base, name)})")
    return found or ["rules of the tokenization"]


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _require_same_ids(own: Any, backbone: Backbone, adapter: Path) -> None:
    """Refuse ids that mean other tokens than the backbone's."""
    base, path = backbone.tokenizer, vocabulary_file(adapter)
    known, vocabulary = base.get_vocab(), own.get_vocab()
    moved = sorted(token for token, index in vocabulary.items() if known.get(token, index) != index)
    by_id = {index: token for token, index in vocabulary.items()}
    # Reserved tokens may be given a name.
    reserved = set(base.added_tokens_decoder)
    replaced = sorted(
        token
        for token, index in known.items()
        if index not in reserved and by_id.get(index, token) != token
    )
    if moved or replaced:
        first = (moved or replaced)[0]
        now = vocabulary.get(first, "no id")
        raise AdapterError(
            f"{path}: {_tokens(len({*moved, *replaced}))} have other ids than in "
            f"{backbone.files.reference} (first: {first!r} has {known[first]} there, {now} here). "
            "Fix: name the backbone that it was trained on with --backbone"
        )


def _require_rows(own: Any, backbone: Backbone, adapter: Path, pad: str | None) -> None:
    """Refuse added tokens without a row in the embeddings that a text or template can contain."""
    rows, known = embedding_rows(backbone.model), backbone.tokenizer.get_vocab()
    beyond = written_beyond(own, rows)
    # The padding token that the adapter brings is not used.
    without = {t: index for t, index in beyond.items() if t not in known and t != pad}
    if without:
        first = min(without, key=without.__getitem__)
        raise AdapterError(
            f"{vocabulary_file(adapter)}: {_tokens(len(without))} that the adapter adds have no "
            f"row in the embeddings (first: {first!r} has id {without[first]}; {rows} rows). Fix: "
            "save the adapter with save_embedding_layers=True, or remove the tokens"
        )


def _require_usable(own: Any, adapter: Path) -> None:
    """Refuse a chat template that cannot render a conversation, or does not end a turn."""
    found = [name for name in (TEMPLATE, CONFIG, PROCESSOR_TEMPLATE) if (adapter / name).is_file()]
    try:
        end_of_turn_id(own)
    except (DataError, jinja2.TemplateError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{adapter / found[0] if found else adapter}: chat template of the adapter cannot be "
            f"used (got {first_line(error)}). Fix: save the tokenizer again, or remove the "
            "template if the adapter was trained with the backbone's"
        ) from error
