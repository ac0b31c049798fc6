"""`data.replay.source: self`: replay rows that the base generates.

Self-synthesized rehearsal (Huang et al. 2024, arXiv:2403.01244). A model trained on conversations
needs no prompts: given the prefix of a user's turn, the model generates the turn, and then the
answer (Xu et al. 2024, arXiv:2406.08464). Both are sampled from the base's distribution without
truncating it, so the expected gradient of such rows is zero at the base and points back to the
base elsewhere.
"""

from __future__ import annotations

from typing import Any

from lora_kit.backbone.load import Backbone
from lora_kit.backbone.positions import PositionLimits
from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Message
from lora_kit.data.templates import control_tokens, render
from lora_kit.data.tokenization import tokenize, tokenize_prompt
from lora_kit.modeling.generation import ROWS, Generator
from lora_kit.recipe.data import SELF
from lora_kit.runtime.errors import DataError

MAX_PROMPT_TOKENS, MAX_ANSWER_TOKENS = 96, 256
# Rows that do not end are discarded and generated again for this many rounds.
ROUNDS = 8
_PLACEHOLDER = "\u2063mark\u2063"


def generate_replay(generator: Generator, count: int, max_length: int) -> list[dict[str, Any]]:
    """Generate replay rows with the base, using torch's global random state.

    Args:
        generator: generator of the base.
        count: number of rows.
        max_length: largest number of tokens per row.

    Returns:
        Rows as `{"messages": [user, assistant]}`, or `{"text": ...}` without a chat template.

    Raises:
        DataError: if too few rows end within the length.
    """
    generate = _conversations if generator.backbone.tokenizer.chat_template else _texts
    positions = PositionLimits.of(generator.backbone.model)
    records: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        # About half of the rows do not end, and a large batch takes hardly longer than a small one.
        batch = generate(generator, max(2 * (count - len(records)), ROWS // 2), max_length)
        records += [one for one in batch if _fits(one, generator, positions, max_length)]
        if len(records) >= count:
            return records[:count]
    limit = min(MAX_ANSWER_TOKENS, max_length)
    longer_rows = "raise data.max_length, "
    if positions.decoder is not None and positions.decoder <= limit:
        limit, longer_rows = positions.decoder, ""
    raise DataError(
        f"data.replay.source: only {len(records)} of {count} generated rows ended within {limit} "
        f"tokens in {ROUNDS} rounds (got self). Fix: {longer_rows}lower data.replay.fraction, or "
        "name another source"
    )


def _fits(
    record: dict[str, Any], generator: Generator, positions: PositionLimits, max_length: int
) -> bool:
    """Return True if a row fits the positions with the tokens that a template adds after it."""
    if positions.decoder is None or max_length <= positions.decoder:
        return True
    example = tokenize(parse_row(record, SELF), generator.backbone.tokenizer, max_length)
    return not positions.overflow(example.input_ids)


def _texts(generator: Generator, count: int, max_length: int) -> list[dict[str, Any]]:
    tokenizer = generator.backbone.tokenizer
    start = tokenizer.bos_token_id
    prompt = [tokenizer.eos_token_id if start is None else start]
    max_tokens = min(MAX_ANSWER_TOKENS, max_length)
    generated = generator.texts([prompt] * count, [max_tokens] * count, sampled=True)
    return [{"text": text} for text in generated if text and text.strip()]


def _conversations(generator: Generator, count: int, max_length: int) -> list[dict[str, Any]]:
    tokenizer = generator.backbone.tokenizer
    control = control_tokens(tokenizer)

    def is_usable(text: str | None) -> bool:
        return bool(text and text.strip()) and not (control and control.search(text or ""))

    prefix = _user_turn_prefix(generator.backbone)
    max_tokens = min(MAX_PROMPT_TOKENS, max_length)
    generated = generator.texts([prefix] * count, [max_tokens] * count, sampled=True)
    users = [str(text) for text in generated if is_usable(text)]
    prompts = [tokenize_prompt([Message("user", text)], tokenizer) for text in users]
    limits = [max(min(MAX_ANSWER_TOKENS, max_length - len(prompt)), 1) for prompt in prompts]
    answers = generator.texts(prompts, limits, sampled=True) if prompts else []
    return [
        {"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]}
        for u, a in zip(users, answers, strict=True)
        if is_usable(a)
    ]


def _user_turn_prefix(backbone: Backbone) -> list[int]:
    """Return the token ids that the chat template writes before a user's text.

    Raises:
        DataError: if the chat template changes a user's text, writes nothing before it, or leaves
            no position for it.
    """
    rendered = render(
        [Message("user", _PLACEHOLDER)], backbone.tokenizer, add_generation_prompt=False
    )
    before, placeholder, _ = rendered.partition(_PLACEHOLDER)
    if not placeholder or not before:
        raise DataError(
            "data.replay.source: the chat template writes no prefix before a user's turn (got "
            "self). Fix: name another source"
        )
    prefix = list(backbone.tokenizer(before, add_special_tokens=False)["input_ids"])
    positions = PositionLimits.of(backbone.model)
    if positions.max_new_tokens(prefix) == 0:
        raise DataError(
            f"data.replay.source: the chat template writes {len(prefix)} tokens before a user's "
            f"turn, and {backbone.files.reference} has {positions.decoder} positions (got self). "
            "Fix: name another source"
        )
    return prefix
