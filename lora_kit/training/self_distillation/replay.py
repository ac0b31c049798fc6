"""`data.replay.source: self`: rows that the base makes itself, so that it keeps to what it says.

Self-synthesized rehearsal (Huang et al. 2024, arXiv:2403.01244), for which a model that was trained
on conversations needs no prompts: after the beginning of a user's turn it writes one, and then the
answer (Xu et al. 2024, arXiv:2406.08464). Both are drawn from the base's own distribution, nothing
cut off: in expectation such rows have no gradient at the base, and one back to it elsewhere.
"""

from __future__ import annotations

from typing import Any

from lora_kit.backbone.load import Backbone
from lora_kit.backbone.positions import Positions
from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Message
from lora_kit.data.templates import control_tokens, render
from lora_kit.data.tokenization import tokenize, tokenize_prompt
from lora_kit.modeling.generation import ROWS, Generator
from lora_kit.recipe.data import SELF
from lora_kit.runtime.errors import DataError

ASKED, ANSWERED = 96, 256
# Rows without an end are begun anew so many times.
ROUNDS = 8
_MARK = "\u2063mark\u2063"


def replay_records(speaker: Generator, count: int, longest: int) -> list[dict[str, Any]]:
    """Rows of the base's own, by torch's random state.

    Args:
        speaker: the base.
        count: how many.
        longest: tokens of a row at most.

    Returns:
        `{"messages": [user, assistant]}` each, or `{"text": ...}` without a chat template.

    Raises:
        DataError: if it does not come to an end often enough.
    """
    begun = _conversations if speaker.backbone.tokenizer.chat_template else _texts
    places = Positions.of(speaker.backbone.model)
    found: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        # Half of them come to no end, and a batch of many takes hardly longer than one of few.
        made = begun(speaker, max(2 * (count - len(found)), ROWS // 2), longest)
        found += [one for one in made if _has_place(one, speaker, places, longest)]
        if len(found) >= count:
            return found[:count]
    within = min(ANSWERED, longest)
    raised = "raise data.max_length, "
    if places.decoder is not None and places.decoder <= within:
        within, raised = places.decoder, ""
    raise DataError(
        f"data.replay.source: self: {len(found)} of the {count} rows that the base makes came to "
        f"an end within {within} tokens, after {ROUNDS} attempts; {raised}lower "
        "data.replay.fraction, or name another source"
    )


def _has_place(record: dict[str, Any], speaker: Generator, places: Positions, longest: int) -> bool:
    """Whether a row can be learned: behind an answer a template writes more than was said."""
    if places.decoder is None or longest <= places.decoder:
        return True
    example = tokenize(parse_row(record, SELF), speaker.backbone.tokenizer, longest)
    return not places.lacking(example.input_ids)


def _texts(speaker: Generator, count: int, longest: int) -> list[dict[str, Any]]:
    tokenizer = speaker.backbone.tokenizer
    start = tokenizer.bos_token_id
    first = [tokenizer.eos_token_id if start is None else start]
    said = speaker.texts([first] * count, [min(ANSWERED, longest)] * count, sampled=True)
    return [{"text": text} for text in said if text and text.strip()]


def _conversations(speaker: Generator, count: int, longest: int) -> list[dict[str, Any]]:
    tokenizer = speaker.backbone.tokenizer
    control = control_tokens(tokenizer)

    def is_fit(text: str | None) -> bool:
        return bool(text and text.strip()) and not (control and control.search(text or ""))

    beginning = _beginning(speaker.backbone)
    asked = speaker.texts([beginning] * count, [min(ASKED, longest)] * count, sampled=True)
    users = [str(text) for text in asked if is_fit(text)]
    prompts = [tokenize_prompt([Message("user", text)], tokenizer) for text in users]
    room = [max(min(ANSWERED, longest - len(prompt)), 1) for prompt in prompts]
    answers = speaker.texts(prompts, room, sampled=True) if prompts else []
    return [
        {"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]}
        for u, a in zip(users, answers, strict=True)
        if is_fit(a)
    ]


def _beginning(backbone: Backbone) -> list[int]:
    """The tokens after which a user speaks.

    Raises:
        DataError: if the chat template does not write a user's words as they are, or leaves no
            position for them.
    """
    whole = render([Message("user", _MARK)], backbone.tokenizer, add_generation_prompt=False)
    before, mark, _ = whole.partition(_MARK)
    if not mark or not before:
        raise DataError(
            "data.replay.source: self: the chat template does not write a user's turn after a "
            "beginning of its own; name another source"
        )
    beginning = list(backbone.tokenizer(before, add_special_tokens=False)["input_ids"])
    positions = Positions.of(backbone.model)
    if positions.room(beginning) == 0:
        raise DataError(
            f"data.replay.source: self: the chat template begins a user's turn with "
            f"{len(beginning)} tokens, and {backbone.files.reference} has {positions.decoder} "
            "positions; name another source"
        )
    return beginning
