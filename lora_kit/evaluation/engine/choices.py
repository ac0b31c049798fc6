"""All continuations of a prompt in one row: a tree, whose branches see the prompt and themselves.

A prompt is encoded once for all of its choices, and logits are taken only where they predict a
token that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.evaluation.engine.prefix import Prefix
from lora_kit.evaluation.item import ChoiceRequest


@dataclass(frozen=True)
class _Tree:
    """The row of one request behind the prefix.

    Attributes:
        input_ids: prompt and branches.
        positions: of the tokens in their own sequences.
        visible: (length, length) bool.
        predicting: for each branch, the columns whose logits predict its scored tokens.
        scored: those tokens.
    """

    input_ids: list[int]
    positions: list[int]
    visible: torch.Tensor
    predicting: list[list[int]]
    scored: list[list[int]]


def in_one_row(
    model: Any,
    requests: Sequence[ChoiceRequest],
    pad_token_id: int,
    device: torch.device,
    prefix: Prefix | None = None,
) -> list[list[tuple[float, bool]]]:
    """Log-likelihood (nats) and greediness of each branch of each request.

    Args:
        model: a causal language model that takes a mask of (batch, 1, length, keys).
        requests: whose prompts begin with the prefix.
        pad_token_id: fills shorter rows.
        device: where the model is.
        prefix: what they share, encoded.
    """
    skipped = len(prefix) if prefix else 0
    trees = [_tree(request, skipped) for request in requests]
    length = max(len(tree.input_ids) for tree in trees)
    input_ids = torch.full((len(trees), length), pad_token_id)
    positions = torch.zeros((len(trees), length), dtype=torch.int64)
    visible = torch.zeros((len(trees), length, skipped + length), dtype=torch.bool)
    visible[:, :, :skipped] = True
    # A padded position sees itself: a row of the mask that sees nothing is no distribution.
    visible[:, :, skipped:] = torch.eye(length, dtype=torch.bool)
    for row, tree in enumerate(trees):
        used = len(tree.input_ids)
        input_ids[row, :used] = torch.tensor(tree.input_ids)
        positions[row, :used] = torch.tensor(tree.positions)
        visible[row, :used, skipped : skipped + used] = tree.visible
    columns = sorted({c for tree in trees for branch in tree.predicting for c in branch})
    dtype = model.dtype
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    logits = model(
        input_ids=input_ids.to(device),
        attention_mask=mask[:, None].to(device),
        position_ids=positions.to(device),
        past_key_values=prefix.repeated(len(trees)) if prefix else None,
        logits_to_keep=torch.tensor(columns, device=device),
        use_cache=prefix is not None,
    ).logits
    place = {column: n for n, column in enumerate(columns)}
    return [_totals(tree, logits[row], place) for row, tree in enumerate(trees)]


def _tree(request: ChoiceRequest, skipped: int) -> _Tree:
    prompt = request.prompt_ids[skipped:]
    start = len(prompt)
    input_ids, positions, branch_of = list(prompt), list(range(start)), [0] * start
    predicting, scored = [], []
    for number, branch in enumerate(request.branches, start=1):
        size = len(branch.input_ids)
        # Column that predicts the branch's n-th token: the one before it, the prompt's last for 0.
        before = [start - 1, *range(len(input_ids), len(input_ids) + size - 1)]
        predicting.append(before[size - branch.scored :])
        scored.append(list(branch.input_ids[size - branch.scored :]))
        input_ids += branch.input_ids
        positions += range(start, start + size)
        branch_of += [number] * size
    of = torch.tensor(branch_of)
    causal = torch.ones(len(of), len(of), dtype=torch.bool).tril()
    visible = causal & ((of[:, None] == of) | (of == 0))
    return _Tree(input_ids, [skipped + p for p in positions], visible, predicting, scored)


def _totals(tree: _Tree, logits: torch.Tensor, place: dict[int, int]) -> list[tuple[float, bool]]:
    """Of one row, whose logits are (columns, vocabulary)."""
    totals = []
    for columns, tokens in zip(tree.predicting, tree.scored, strict=True):
        rows = logits[[place[column] for column in columns]].float()
        wanted = torch.tensor(tokens, device=rows.device)
        nats = rows.log_softmax(dim=-1)[range(len(tokens)), wanted].double().sum()
        totals.append((float(nats), bool((rows.argmax(dim=-1) == wanted).all())))
    return totals
