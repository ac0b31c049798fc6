"""Requests of lm-evaluation-harness in token ids, the same as its Hugging Face model reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.evaluation.item import Branch, ChoiceRequest, GenerationRequest
from lora_kit.runtime.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What lm-eval's Hugging Face model generates where a task does not say.
MAX_NEW_TOKENS = 256

Pair = tuple[str, str]


def choice_request(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, notes: Counter[str]
) -> ChoiceRequest:
    """The likelihood of each pair's continuation after its context.

    Contexts may differ, as in Winogrande, where the choice stands in the middle of the sentence;
    what they share is the prompt, and the rest of each belongs to its branch without being scored.

    Args:
        pairs: of context and continuation, one a choice.
        tokenizer: of the backbone.
        notes: counts what departs from lm-eval.

    Raises:
        EvaluationError: if a continuation has no token of its own.
    """
    encoded = encode_pairs(pairs, tokenizer)
    contexts = [context for context, _ in encoded]
    shared = _shared_length(contexts)
    prompt = contexts[0][:shared]
    if not prompt:
        # A prompt has a token at least; the same one for every branch and arm.
        prompt = [_prefix_id(tokenizer)]
        notes["have contexts without a common start; a start token is put before them"] += 1
    branches = tuple(
        Branch((*context[shared:], *continuation), len(continuation))
        for context, continuation in encoded
    )
    return ChoiceRequest(tuple(prompt), branches)


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[int]]]:
    """Context and continuation in tokens, split where lm-eval splits them.

    `TemplateLM._encode_pair` and `TemplateLM.loglikelihood` of lm-eval 0.4.13: spaces at the end of
    a context go to the continuation, so that words keep their own tokens; the continuation is what
    the whole has beyond the number of tokens of the context; an empty context is a start token.
    """
    moved = [_move_spaces(pair) for pair in pairs]
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
                f"the continuation {continuation!r} has no token of its own after the context "
                f"{context[-40:]!r}"
            )
        encoded.append(row)
    return encoded


def _move_spaces(pair: Pair) -> Pair:
    context, continuation = pair
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _after_prefix(
    continuation: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    ids = list(tokenizer.encode(continuation, add_special_tokens=False))
    prefix = _prefix_id(tokenizer)
    return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Each text's tokens, with the tokenizer's own special tokens unless it writes them itself."""
    start = str(tokenizer.decode([_prefix_id(tokenizer)]))
    encoded: dict[str, list[int]] = {}
    for written in (False, True):
        chosen = [text for text in texts if text.startswith(start) == written]
        if chosen:
            options = {"add_special_tokens": False} if written else {}
            encoded |= zip(chosen, tokenizer(chosen, **options)["input_ids"], strict=True)
    return encoded


def _prefix_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a text that has nothing before it."""
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
    """A continuation up to one of the texts in `until`.

    Args:
        context: what the model goes on from.
        options: the task's `generation_kwargs`.
        tokenizer: of the backbone.
        notes: counts what departs from lm-eval.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    normal: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
    if normal.get("do_sample") or normal.get("num_beams", 1) > 1:
        notes["are sampled or searched for by lm-eval; here they are generated greedily"] += 1
    until = normal.get("until") or []
    start = tokenizer.bos_token
    special = {"add_special_tokens": False} if start and context.startswith(start) else {}
    return GenerationRequest(
        prompt_ids=tuple(tokenizer.encode(context, **special)),
        max_new_tokens=normal["max_gen_toks"],
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
    )
