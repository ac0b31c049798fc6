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
from lora_kit.modeling.likelihood import logits_at, token_nll


@dataclass(frozen=True)
class _Tree:
    """The row of one request behind the prefix.

    Attributes:
        input_ids: prompt and branches; of a branch all but the last token, which predicts nothing.
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
    trees = [_tree(request, len(prefix) if prefix else 0) for request in requests]
    inputs = _inputs(trees, prefix, pad_token_id, model.dtype, device)
    cache = prefix.repeated(len(trees)) if prefix else None
    places = [(n, c) for n, tree in enumerate(trees) for b in tree.predicting for c in b]
    rows, columns = torch.tensor(places, device=device).unbind(dim=1)
    logits = logits_at(model, inputs, rows, columns, cache=cache)
    wanted = torch.tensor([t for tree in trees for b in tree.scored for t in b], device=device)
    nats = -token_nll(logits, wanted).double()
    greedy = logits.argmax(dim=-1) == wanted
    sizes = [len(branch) for tree in trees for branch in tree.scored]
    branches = iter(
        [
            (float(total.sum()), bool(best.all()))
            for total, best in zip(
                torch.split(nats, sizes), torch.split(greedy, sizes), strict=True
            )
        ]
    )
    return [[next(branches) for _ in tree.scored] for tree in trees]


def _inputs(
    trees: Sequence[_Tree],
    prefix: Prefix | None,
    pad_token_id: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """Of the model's forward; shorter rows are filled on the right."""
    skipped = len(prefix) if prefix else 0
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
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return {
        "input_ids": input_ids.to(device),
        "attention_mask": mask[:, None].to(device),
        "position_ids": positions.to(device),
    }


def _tree(request: ChoiceRequest, skipped: int) -> _Tree:
    prompt = request.prompt_ids[skipped:]
    start = len(prompt)
    input_ids, positions, branch_of = list(prompt), list(range(start)), [0] * start
    predicting, scored = [], []
    for number, branch in enumerate(request.branches, start=1):
        seen = branch.input_ids[:-1]
        unscored = len(branch.input_ids) - branch.scored
        # Column that predicts the branch's n-th token: the one before it, the prompt's last for 0.
        before = [start - 1, *range(len(input_ids), len(input_ids) + len(seen))]
        predicting.append(before[unscored:])
        scored.append(list(branch.input_ids[unscored:]))
        input_ids += seen
        positions += range(start, start + len(seen))
        branch_of += [number] * len(seen)
    of = torch.tensor(branch_of)
    causal = torch.ones(len(of), len(of), dtype=torch.bool).tril()
    visible = causal & ((of[:, None] == of) | (of == 0))
    return _Tree(input_ids, [skipped + p for p in positions], visible, predicting, scored)
