"""Multiple choice with tree attention: one row holds a prompt and all of its continuations.

Each branch attends to the prompt and to itself. A prompt is encoded once for all of its choices,
and logits are computed only at positions that predict a scored token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.evaluation.requests import ChoiceRequest
from lora_kit.modeling.likelihood import logits_at, token_nll
from lora_kit.modeling.model_inputs import SUPERVISED, supervised_positions, to_device
from lora_kit.modeling.prefix import Prefix


@dataclass(frozen=True)
class _Tree:
    """Row of one request, without the shared prefix.

    Attributes:
        input_ids: prompt, then each branch without its last token, which predicts nothing.
        positions: position of each token in its own sequence.
        visible: (length, length) bool; true where a row may attend to a column.
        predicting: for each branch, the columns whose logits predict its scored tokens.
        scored: for each branch, its scored tokens.
    """

    input_ids: list[int]
    positions: list[int]
    visible: torch.Tensor
    predicting: list[list[int]]
    scored: list[list[int]]


def score_choice_trees(
    model: Any,
    requests: Sequence[ChoiceRequest],
    pad_token_id: int,
    device: torch.device,
    prefix: Prefix | None = None,
) -> list[list[tuple[float, bool]]]:
    """Score all branches of each request in one row.

    Args:
        model: causal language model that takes an attention mask of (batch, 1, length, keys).
        requests: multiple-choice requests whose prompts begin with the prefix.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
        prefix: encoded tokens that all requests begin with.

    Returns:
        For each request and branch, the log-likelihood of the scored tokens in nats, and true if
        every one of them was the most likely token.
    """
    trees = [_tree(request, len(prefix) if prefix else 0) for request in requests]
    inputs = to_device(_inputs(trees, prefix, pad_token_id, model.dtype), device)
    cache = prefix.repeated(len(trees)) if prefix else None
    targets, rows, columns = supervised_positions(inputs)
    logits = logits_at(model, inputs, rows, columns, cache=cache)
    nats = -token_nll(logits, targets).double()
    missed = logits.argmax(dim=-1) != targets
    # One transfer: on a GPU, a number that is read waits for it.
    nats, missed = torch.stack([nats, missed.double()]).cpu()
    sizes = [len(branch) for tree in trees for branch in tree.scored]
    branches = iter(
        [
            (float(branch_nats.sum()), not bool(branch_missed.any()))
            for branch_nats, branch_missed in zip(
                torch.split(nats, sizes), torch.split(missed, sizes), strict=True
            )
        ]
    )
    return [[next(branches) for _ in tree.scored] for tree in trees]


def _inputs(
    trees: Sequence[_Tree],
    prefix: Prefix | None,
    pad_token_id: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return the model's inputs, with shorter rows padded on the right.

    `input_ids` and `position_ids` are (batch, length) int64; `attention_mask` is (batch, 1, length,
    keys) in the model's dtype, added to the attention scores. `supervised` holds scored tokens, and
    rows and columns that predict them, (3, scored) int64.
    """
    skipped = len(prefix) if prefix else 0
    length = max(len(tree.input_ids) for tree in trees)
    input_ids = torch.full((len(trees), length), pad_token_id)
    positions = torch.zeros((len(trees), length), dtype=torch.int64)
    visible = torch.zeros((len(trees), length, skipped + length), dtype=torch.bool)
    visible[:, :, :skipped] = True
    # A padded position attends to itself: softmax over an empty row would be undefined.
    visible[:, :, skipped:] = torch.eye(length, dtype=torch.bool)
    for row, tree in enumerate(trees):
        used = len(tree.input_ids)
        input_ids[row, :used] = torch.tensor(tree.input_ids)
        positions[row, :used] = torch.tensor(tree.positions)
        visible[row, :used, skipped : skipped + used] = tree.visible
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    places = [(n, c) for n, tree in enumerate(trees) for b in tree.predicting for c in b]
    rows, columns = zip(*places, strict=True)
    targets = [token for tree in trees for branch in tree.scored for token in branch]
    return {
        "input_ids": input_ids,
        "attention_mask": mask[:, None],
        "position_ids": positions,
        SUPERVISED: torch.tensor([targets, rows, columns]),
    }


def _tree(request: ChoiceRequest, skipped: int) -> _Tree:
    prompt = request.prompt_ids[skipped:]
    start = len(prompt)
    input_ids, positions, branch_of = list(prompt), list(range(start)), [0] * start
    predicting, scored = [], []
    for number, branch in enumerate(request.branches, start=1):
        seen = branch.input_ids[:-1]
        unscored = len(branch.input_ids) - branch.scored
        # Columns that predict the branch's tokens: the prompt's last one for token 0, then each
        # preceding token of the branch.
        before = [start - 1, *range(len(input_ids), len(input_ids) + len(seen))]
        predicting.append(before[unscored:])
        scored.append(list(branch.input_ids[unscored:]))
        input_ids += seen
        positions += range(start, start + len(seen))
        branch_of += [number] * len(seen)
    branches = torch.tensor(branch_of)
    causal = torch.ones(len(branches), len(branches), dtype=torch.bool).tril()
    visible = causal & ((branches[:, None] == branches) | (branches == 0))
    return _Tree(input_ids, [skipped + p for p in positions], visible, predicting, scored)
