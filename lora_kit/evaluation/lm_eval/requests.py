"""Requests of lm-evaluation-harness as token ids, equal to those of its Hugging Face model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.evaluation.requests import Branch, ChoiceRequest, GenerationRequest
from lora_kit.runtime.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Default of lm-eval's Hugging Face model for tasks without `max_gen_toks`.
MAX_NEW_TOKENS = 256

Pair = tuple[str, str]


def choice_request(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, notes: Counter[str]
) -> ChoiceRequest:
    """Build a request for the likelihood of each continuation after its context.

    Contexts may differ, as in Winogrande, where the choice is in the middle of the sentence. The
    shared start of the contexts is the prompt; the rest of a context is an unscored part of its
    branch.

    Args:
        pairs: pairs of context and continuation, one for each choice.
        tokenizer: tokenizer of the backbone.
        notes: counter of deviations from lm-eval, updated in place.

    Raises:
        EvaluationError: if a continuation has no token of its own.
    """
    encoded = encode_pairs(pairs, tokenizer)
    contexts = [context for context, _ in encoded]
    shared = _shared_length(contexts)
    prompt = contexts[0][:shared]
    if not prompt:
        # A prompt needs at least one token, the same for every branch and arm.
        prompt = [_prefix_id(tokenizer)]
        notes["have contexts without a common start; a start token is inserted"] += 1
    branches = tuple(
        Branch((*context[shared:], *continuation), len(continuation))
        for context, continuation in encoded
    )
    return ChoiceRequest(tuple(prompt), branches)


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[int]]]:
    """Return token ids of context and continuation, split where lm-eval splits them.

    As in `TemplateLM._encode_pair` and `TemplateLM.loglikelihood` of lm-eval 0.4.13: trailing
    spaces of a context move to the continuation, so that words keep their tokens; the continuation
    consists of the tokens of the joined text beyond the number of tokens of the context; an empty
    context becomes a start token.

    Raises:
        EvaluationError: if a context or a continuation has no token.
    """
    moved = [
        (stripped := context.rstrip(), context[len(stripped) :] + continuation)
        for context, continuation in pairs
    ]
    texts = {context for context, _ in moved if context}
    texts |= {context + continuation for context, continuation in moved if context}
    ids = _encode(sorted(texts), tokenizer)
    encoded = []
    for context, continuation in moved:
        if context:
            split = len(ids[context])
            row = (ids[context], ids[context + continuation][split:])
        else:
            row = _after_prefix(continuation, tokenizer)
        if not row[0] or not row[1]:
            raise EvaluationError(
                f"continuation without a token of its own (got {continuation!r} after "
                f"{context[-40:]!r}). Fix: correct the task's choices"
            )
        encoded.append(row)
    return encoded


def _after_prefix(
    continuation: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    ids = list(tokenizer.encode(continuation, add_special_tokens=False))
    prefix = _prefix_id(tokenizer)
    return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return token ids by text; special tokens are added unless the text starts with them."""
    start = str(tokenizer.decode([_prefix_id(tokenizer)]))
    encoded: dict[str, list[int]] = {}
    for written in (False, True):
        chosen = [text for text in texts if text.startswith(start) == written]
        if chosen:
            options = {"add_special_tokens": False} if written else {}
            encoded |= zip(chosen, tokenizer(chosen, **options)["input_ids"], strict=True)
    return encoded


def _prefix_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the start token, which precedes a text without context."""
    token = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if token is None else token)


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    shortest = min(map(len, rows))
    differing = (n for n in range(shortest) if len({row[n] for row in rows}) > 1)
    return next(differing, shortest)


def generation_request(
    context: str,
    options: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    notes: Counter[str],
) -> GenerationRequest:
    """Build a request for a continuation up to one of the texts in `until`.

    Args:
        context: text to continue.
        options: `generation_kwargs` of the task.
        tokenizer: tokenizer of the backbone.
        notes: counter of deviations from lm-eval, updated in place.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    normal: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
    if normal.get("do_sample") or normal.get("num_beams", 1) > 1:
        notes["use sampling or beam search in lm-eval; here greedy decoding"] += 1
    until = normal.get("until") or []
    start = tokenizer.bos_token
    special = {"add_special_tokens": False} if start and context.startswith(start) else {}
    return GenerationRequest(
        prompt_ids=tuple(tokenizer.encode(context, **special)),
        max_new_tokens=normal["max_gen_toks"],
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
    )
