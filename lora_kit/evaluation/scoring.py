"""What a model makes of one batch of items: losses, likelihoods of choices, generated text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.evaluation.checks import follows
from lora_kit.evaluation.metrics import Metric
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.evaluation.tasks import ChoiceItem, GenerationItem, LossItem
from lora_kit.likelihood import pad_examples, supervised_nll, to_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Score:
    """One item's score (`None` where there is none), what was put out, and tokens processed."""

    score: float | None
    output: str
    tokens: int


@dataclass(frozen=True)
class Scorer:
    """What scoring needs besides the items.

    Attributes:
        model: with the adapter on or off, as the arm wants it.
        tokenizer: of the backbone.
        stop_token_ids: generation ends on any of them.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device


def score_losses(scorer: Scorer, items: Sequence[LossItem]) -> list[Score]:
    """Mean negative log-likelihood of each item's supervised tokens, nats per token."""
    examples = [item.example for item in items]
    batch = pad_examples(examples, scorer.tokenizer.pad_token_id)
    nll, rows = supervised_nll(scorer.model, to_device(batch, scorer.device))
    sums = torch.zeros(len(items), dtype=torch.float64, device=scorer.device)
    sums.index_add_(0, rows, nll.double())
    return [
        Score(float(total) / example.supervised, "", len(example.input_ids))
        for total, example in zip(sums, examples, strict=True)
    ]


LogLikelihoods = Callable[[Scorer, Sequence[ChoiceItem]], list[list[float]]]


def score_choices(
    scorer: Scorer, items: Sequence[ChoiceItem], *, log_likelihoods: LogLikelihoods
) -> list[Score]:
    """1 if the right choice has the largest log-likelihood given the prompt, else 0."""
    scores = []
    for item, totals in zip(items, log_likelihoods(scorer, items), strict=True):
        best = max(range(len(totals)), key=totals.__getitem__)
        tokens = len(item.prompt_ids) + sum(map(len, item.choice_ids))
        scores.append(Score(float(best == item.answer), item.choices[best], tokens))
    return scores


def way_to_score(scorer: Scorer, items: Sequence[ChoiceItem]) -> LogLikelihoods:
    """`in_one_row` if it agrees with `row_by_row` on these items, else `row_by_row`.

    Layers that carry a state along the row (convolutions, linear attention, state spaces) do not
    heed the mask, without an error: the choices would leak into one another.
    """
    try:
        together = in_one_row(scorer, items)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return row_by_row  # the model takes no such mask
    alone = row_by_row(scorer, items)
    # What rounding moves: 1e-4 nats in float32, measured; in half precision some tenths.
    tolerance = 0.01 if scorer.model.dtype == torch.float32 else 0.5
    pairs = zip(itertools.chain(*together), itertools.chain(*alone), strict=True)
    return in_one_row if all(abs(a - b) <= tolerance for a, b in pairs) else row_by_row


def row_by_row(scorer: Scorer, items: Sequence[ChoiceItem]) -> list[list[float]]:
    """Log-likelihood of each choice, nats, each in a row with the prompt before it."""
    examples = [
        Example((*item.prompt_ids, *choice), (*[IGNORED] * len(item.prompt_ids), *choice))
        for item in items
        for choice in item.choice_ids
    ]
    batch = pad_examples(examples, scorer.tokenizer.pad_token_id)
    nll, rows = supervised_nll(scorer.model, to_device(batch, scorer.device))
    sums = torch.zeros(len(examples), dtype=torch.float64, device=scorer.device)
    totals = iter(sums.index_add_(0, rows, -nll.double()).tolist())
    return [[next(totals) for _ in item.choice_ids] for item in items]


def in_one_row(scorer: Scorer, items: Sequence[ChoiceItem]) -> list[list[float]]:
    """Log-likelihood of each choice, nats, all choices of an item behind one prompt."""
    layouts = [_tree_layout(item) for item in items]
    length = max(len(layout.input_ids) for layout in layouts)
    input_ids = torch.full((len(items), length), scorer.tokenizer.pad_token_id)
    positions = torch.zeros((len(items), length), dtype=torch.int64)
    # A padded position sees itself alone: a row of the mask that sees nothing is no distribution.
    visible = torch.eye(length, dtype=torch.bool).repeat(len(items), 1, 1)
    for row, layout in enumerate(layouts):
        used = len(layout.input_ids)
        input_ids[row, :used] = torch.tensor(layout.input_ids)
        positions[row, :used] = torch.tensor(layout.positions)
        visible[row, :used, :used] = layout.visible
    first = min(len(item.prompt_ids) for item in items) - 1
    dtype = scorer.model.dtype
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    logits = scorer.model(
        input_ids=input_ids.to(scorer.device),
        attention_mask=mask[:, None].to(scorer.device),
        position_ids=positions.to(scorer.device),
        logits_to_keep=length - first,
        use_cache=False,
    ).logits
    return [_tree_totals(item, logits[row], first) for row, item in enumerate(items)]


@dataclass(frozen=True)
class _Tree:
    """A prompt and its choices in one row; a choice sees the prompt and itself."""

    input_ids: list[int]
    positions: list[int]
    visible: torch.Tensor


def _tree_layout(item: ChoiceItem) -> _Tree:
    start = len(item.prompt_ids)
    input_ids = list(item.prompt_ids)
    positions = list(range(start))
    branch = [0] * start
    for number, choice in enumerate(item.choice_ids, start=1):
        input_ids += choice
        positions += range(start, start + len(choice))
        branch += [number] * len(choice)
    of = torch.tensor(branch)
    causal = torch.ones(len(of), len(of), dtype=torch.bool).tril()
    return _Tree(input_ids, positions, causal & ((of[:, None] == of) | (of == 0)))


def _tree_totals(item: ChoiceItem, logits: torch.Tensor, first: int) -> list[float]:
    """Summed log-likelihoods of one item's choices; its logits start at position `first`."""
    last_of_prompt = len(item.prompt_ids) - 1
    position = len(item.prompt_ids)
    totals = []
    for choice in item.choice_ids:
        predicting = [last_of_prompt, *range(position, position + len(choice) - 1)]
        rows = logits[[p - first for p in predicting]].float().log_softmax(dim=-1)
        totals.append(float(rows[range(len(choice)), list(choice)].double().sum()))
        position += len(choice)
    return totals


def generate(scorer: Scorer, items: Sequence[GenerationItem], max_new_tokens: int) -> list[str]:
    """Greedy continuations of each prompt, up to a stop token."""
    length = max(len(item.prompt_ids) for item in items)
    pad = scorer.tokenizer.pad_token_id
    # On the left, so that every row goes on at the same column.
    input_ids = torch.tensor(
        [[pad] * (length - len(item.prompt_ids)) + list(item.prompt_ids) for item in items]
    )
    mask = torch.tensor(
        [[0] * (length - len(item.prompt_ids)) + [1] * len(item.prompt_ids) for item in items]
    )
    output = scorer.model.generate(
        input_ids=input_ids.to(scorer.device),
        attention_mask=mask.to(scorer.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=list(scorer.stop_token_ids),
        pad_token_id=pad,
    )
    texts: list[str] = scorer.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def score_generations(
    scorer: Scorer,
    items: Sequence[GenerationItem],
    *,
    spec: TaskSpec,
    metric: Metric | None,
) -> list[Score]:
    """Score what is generated, by a metric against the references or by the items' checks."""
    outputs = generate(scorer, items, spec.max_new_tokens)
    scores = []
    for item, output in zip(items, outputs, strict=True):
        if metric is None:
            value: float | None = float(follows(output, item.checks))
        else:
            answer = output.partition("\n")[0] if spec.answer == "first_line" else output
            value = metric(answer, item.references)
        scores.append(Score(value, output, len(item.prompt_ids) + spec.max_new_tokens))
    return scores
