"""Rows rendered as text, with the character spans that are supervised."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer
from lora_kit.data.rows import Row
from lora_kit.data.templates import (
    has_reasoning,
    plain_prompt,
    refuse_unsupported_tools,
    render,
    require_written,
    template_refusal,
)
from lora_kit.recipe.data import TrainOn
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Content of a turn that occurs in no template and no text: a character for private use.
SENTINEL = "\ue0c5"


class RewrittenTurnsError(DataError):
    """Raised if the chat template renders a turn differently once other turns follow."""


@dataclass(frozen=True)
class TextSpan:
    """Supervised span of a text, in characters.

    Attributes:
        start: first character.
        end: one past the last character.
        ends_in_special_token: if true, the span must end with a special token.
        follows_prompt: if true, a generation prompt ends where the span starts.
    """

    start: int
    end: int
    ends_in_special_token: bool = False
    follows_prompt: bool = False


@dataclass(frozen=True)
class RenderedRow:
    """Text of a row as the model reads it.

    Attributes:
        text: the rendered text.
        spans: supervised spans in order; `None` to supervise the complete text.
        add_special_tokens: if true, the tokenizer adds its special tokens; a chat template
            writes them into the text itself.
        eos_supervised: if true or false, the EOS token is appended with or without a label;
            `None` to append nothing.
    """

    text: str
    spans: tuple[TextSpan, ...] | None
    add_special_tokens: bool
    eos_supervised: bool | None = None


def render_row(row: Row, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> RenderedRow:
    """Render a row as one text.

    Args:
        row: the row.
        tokenizer: tokenizer of the backbone.
        train_on: turns to supervise (`data.train_on`).

    Raises:
        RewrittenTurnsError: if the chat template does not reproduce an earlier turn verbatim.
        DataError: if the backbone does not support the row for another reason.
    """
    _refuse_contradiction(row, train_on)
    if is_seq2seq_tokenizer(tokenizer):
        _require_answer(row, train_on)
    if row.text is not None:
        return RenderedRow(row.text, None, add_special_tokens=True)
    if not tokenizer.chat_template:
        return _completion(row, train_on)
    refuse_unsupported_tools(row, tokenizer)
    return _conversation(
        row, tokenizer, train_on, len(row.messages), supervised_turns(row, train_on)
    )


def _refuse_contradiction(row: Row, train_on: TrainOn) -> None:
    """Refuse switches of turns that `data.train_on` cannot follow."""
    chosen = range(len(row.messages)) if train_on == "all" else supervised_turns(row, train_on)
    for turn, message in enumerate(row.messages):
        if message.trained is False and train_on == "all":
            raise DataError(
                f"{row.origin}: turn {turn} is not to be trained on, but data.train_on: all trains "
                "on every token. Fix: set data.train_on to a list of roles, or remove the switch"
            )
        if message.trained and turn not in chosen:
            raise DataError(
                f"{row.origin}: turn {turn} is to be trained on, but it is the {message.role}'s, "
                f"and not one of those that are (got data.train_on: {train_on}). Fix: change "
                "data.train_on, such as to a list of roles, or remove the switch"
            )


def _require_answer(row: Row, train_on: TrainOn) -> None:
    if row.text is not None or not row.messages or row.messages[-1].role != "assistant":
        raise DataError(
            f"{row.origin}: an encoder-decoder backbone needs a prompt and an answer (got no "
            "answer). Fix: give prompt and completion"
        )
    if train_on == "all" or (isinstance(train_on, list) and train_on != ["assistant"]):
        raise DataError(
            "data.train_on: an encoder-decoder backbone cannot train on the encoder's input (got "
            f"{train_on}). Fix: set assistant, last or completion"
        )


def render_turns(
    row: Row, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> list[RenderedRow]:
    """Render a row as one text or, if the template rewrites turns, one text per supervised turn.

    Templates such as Qwen3's drop the reasoning from earlier turns, so that the rendered turn
    differs from the model's output. Each turn is then trained in the conversation that ends with
    it.

    Raises:
        DataError: if the backbone does not support the row.
    """
    try:
        return [render_row(row, tokenizer, train_on)]
    except RewrittenTurnsError:
        return [
            _conversation(row, tokenizer, train_on, turn + 1, [turn])
            for turn in supervised_turns(row, train_on)
        ]


def supervised_turns(row: Row, train_on: TrainOn) -> list[int]:
    """Return the indices of the supervised turns: those of `train_on` but the switched-off ones."""
    roles = ["assistant"] if isinstance(train_on, str) else train_on
    turns = [turn for turn, message in enumerate(row.messages) if message.role in roles]
    if train_on == "last" or (train_on == "completion" and row.completion_from is None):
        turns = turns[-1:]
    elif train_on == "completion":
        turns = [turn for turn in turns if turn >= (row.completion_from or 0)]
    return [turn for turn in turns if row.messages[turn].trained is not False]


def _conversation(
    row: Row, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn, end: int, turns: list[int]
) -> RenderedRow:
    """Render the first `end` turns of a row and supervise `turns` of them."""
    try:
        text = render(row.messages[:end], tokenizer, False, row.tools)
        require_written(
            row.messages[:end],
            text,
            lambda turn: render(row.messages[: turn + 1], tokenizer, False, row.tools),
            row.origin,
        )
        if train_on == "all":
            return RenderedRow(text, None, add_special_tokens=False)
        spans = tuple(_turn_span(row, tokenizer, text, end, turn) for turn in turns)
    except (jinja2.TemplateError, ValueError) as error:
        raise template_refusal(row.origin, "this row", error) from error
    return RenderedRow(text, spans, add_special_tokens=False)


def _turn_span(
    row: Row, tokenizer: PreTrainedTokenizerBase, text: str, end: int, turn: int
) -> TextSpan:
    """Locate a turn: an assistant turn follows its generation prompt, others match by content."""
    message = row.messages[turn]
    until = text
    if turn + 1 < end:
        until = render(row.messages[: turn + 1], tokenizer, False, row.tools)
    if not text.startswith(until):
        raise RewrittenTurnsError(
            f"{row.origin}: the chat template rewrites earlier turns, so turn {turn} cannot be "
            "located in the complete conversation. Fix: give one row per answer"
        )
    if message.role != "assistant":
        return TextSpan(_content_start(row, tokenizer, until, turn), len(until))
    if turn == 0:
        # A greeting answers nothing, so that there is no prompt to render.
        start = _content_start(row, tokenizer, until, turn)
        return TextSpan(start, len(until), ends_in_special_token=True)
    before = render(
        row.messages[:turn], tokenizer, True, row.tools, thinking=has_reasoning(message)
    )
    if not until.startswith(before):
        raise DataError(
            f"{row.origin}: the chat template rewrites earlier turns when it writes turn {turn}, "
            "whose start cannot be located. Fix: use a backbone with another chat template"
        )
    return TextSpan(len(before), len(until), ends_in_special_token=True, follows_prompt=True)


def _content_start(row: Row, tokenizer: PreTrainedTokenizerBase, until: str, turn: int) -> int:
    """Return the character at which a turn's content starts in the text that ends with the turn.

    A character that no template has stands for the content meanwhile; the content itself, if
    searched for, could be found inside of control tokens.

    Raises:
        DataError: if the template does not write the content verbatim.
    """
    message = row.messages[turn]
    marked = [*row.messages[:turn], dataclasses.replace(message, content=SENTINEL)]
    before, found, after = render(marked, tokenizer, False, row.tools).partition(SENTINEL)
    content = until[len(before) : len(until) - len(after)]
    is_written = found and SENTINEL not in after
    is_verbatim = is_written and until.startswith(before) and until.endswith(after)
    if not is_verbatim or content.strip() != message.content.strip():
        raise DataError(
            f"{row.origin}: the chat template does not write the {message.role}'s turn {turn} "
            f"verbatim, so it cannot be trained on. Fix: remove {message.role} from data.train_on"
        )
    return len(before) + len(content) - len(content.lstrip())


def _completion(row: Row, train_on: TrainOn) -> RenderedRow:
    """Render a prompt and its completion for a backbone without a chat template."""
    roles = [message.role for message in row.messages]
    if roles != ["user", "assistant"] or row.tools or row.messages[1].tool_calls:
        raise DataError(
            f"{row.origin}: a backbone with no chat template needs one prompt and one completion "
            f"(got the turns {', '.join(roles)}{' and tools' if row.tools else ''}). Fix: split "
            "the row, or use a backbone with a chat template"
        )
    prompt = plain_prompt([row.messages[0].content])
    text = prompt + row.messages[1].content
    if train_on == "all":
        return RenderedRow(text, None, add_special_tokens=True, eos_supervised=True)
    spans = (TextSpan(0, len(prompt)), TextSpan(len(prompt), len(text)))
    turns = supervised_turns(row, train_on)
    return RenderedRow(
        text,
        tuple(spans[turn] for turn in turns),
        add_special_tokens=True,
        eos_supervised=1 in turns,
    )
