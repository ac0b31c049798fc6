"""The negative log-likelihood of supervised tokens: one definition for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from lora_kit.data.tokenization import IGNORED
from lora_kit.encoder_decoder import Divided, is_divided

if TYPE_CHECKING:
    from lora_kit.data.tokenization import Example


def pad_examples(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the left.

    So the answers, which end their rows, stand under one another, and the logits of few columns
    are enough: with right padding, a batch of 24 docstrings took twice as long to score.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` and `labels`, each (batch, length) int64.
    """
    length = max(len(example.input_ids) for example in examples)
    fillers = {"input_ids": pad_token_id, "attention_mask": 0, "position_ids": 0, "labels": IGNORED}
    batch = {
        name: torch.full((len(examples), length), filler, dtype=torch.int64)
        for name, filler in fillers.items()
    }
    for row, example in enumerate(examples):
        used = len(example.input_ids)
        batch["input_ids"][row, -used:] = torch.tensor(example.input_ids)
        batch["attention_mask"][row, -used:] = 1
        batch["position_ids"][row, -used:] = torch.arange(used)
        batch["labels"][row, -used:] = torch.tensor(example.labels)
    return batch


def pack_examples(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """One row of several examples, whose positions begin anew with each.

    Where there is no attention mask, transformers tells the examples by their positions, and none
    sees another (sdpa and eager by a mask, flash attention by the lengths).

    Returns:
        `input_ids`, `position_ids` and `labels`, each (1, tokens) int64.
    """
    ids = [token for example in examples for token in example.input_ids]
    labels = [label for example in examples for label in example.labels]
    positions = [place for example in examples for place in range(len(example.input_ids))]
    columns = {"input_ids": ids, "position_ids": positions, "labels": labels}
    return {name: torch.tensor([values]) for name, values in columns.items()}


def supervised_nll(
    model: Any, batch: Mapping[str, torch.Tensor], head: torch.nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each supervised token, in nats.

    Args:
        model: a causal language model, as it is or wrapped for several processes.
        batch: of `pad_examples` or `pack_examples`, on the model's device.
        head: the model's output head; found if it is not wrapped.

    Returns:
        `nll` (supervised,) float32 and `rows` (supervised,) int64, the row of each token; in the
        order of rows and positions.
    """
    targets = batch["labels"][:, 1:]
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    logits = wanted_logits(model, batch, head, rows, columns)
    return token_nll(logits, targets[rows, columns]), rows


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target, in nats.

    Args:
        logits: (tokens, vocabulary).
        targets: (tokens,) int64.

    Returns:
        (tokens,) float32; it can be differentiated once.
    """
    nll: torch.Tensor = _ChunkedNll.apply(logits, targets)  # type: ignore[no-untyped-call]
    return nll


def supervised_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits from which each supervised token is predicted.

    Args:
        model: a causal language model.
        batch: as `supervised_nll` takes it.

    Returns:
        (supervised, vocabulary) in the model's dtype, in the order of rows and positions.
    """
    rows, columns = (batch["labels"][:, 1:] != IGNORED).nonzero(as_tuple=True)
    return wanted_logits(model, batch, None, rows, columns)


def wanted_logits(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    head: torch.nn.Module | None,
    rows: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """Next-token logits at some places of a batch, and not at the others.

    Args:
        model: a language model, or a decoder's forward.
        batch: as `supervised_nll` takes it.
        head: the model's output head; found if it is not wrapped.
        rows: (places,) int64.
        columns: (places,) int64.

    Returns:
        (places, vocabulary) in the model's dtype.
    """
    inputs: dict[str, Any] = {
        name: batch.get(name) for name in ("input_ids", "attention_mask", "position_ids")
    }
    if is_divided(model):
        divided = Divided.of(model, batch["input_ids"], batch["attention_mask"])
        inputs, columns = divided.inputs, columns - divided.starts[rows]
    with scored_only(head or model.get_output_embeddings(), rows, columns):
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    if logits.shape[:2] != (1, len(rows)):
        # A model that does not call its output head as a module.
        return logits[rows, columns]
    return logits[0]


@contextmanager
def scored_only(head: torch.nn.Module, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """While open, the output head sees some places of the batch: (1, places, hidden).

    The head is a fifth of a 135M model's work, and most positions of a prompt are never scored.
    What a model does to its logits afterwards, to each by itself, it does to these.

    Args:
        head: the module that turns hidden states into logits.
        rows: (places,) int64.
        columns: (places,) int64.
    """

    def select(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][rows, columns][None], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


# Tokens whose logits are held in float32 at a time: 64 of 150,000 words are 39 MB.
CHUNK = 64


class _ChunkedNll(torch.autograd.Function):
    """-log softmax(logits)[target] in float32, without a float32 copy of all the logits.

    The gradient, softmax(logits) - onehot(target), is made along the way, chunk by chunk and in
    the logits' dtype: two copies of the logits where autograd's own way keeps up to four.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Take logits (tokens, vocabulary) and targets (tokens,); return (tokens,) float32."""
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        nll = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        for start in range(0, len(targets), CHUNK):
            part, wanted = logits[start : start + CHUNK].float(), targets[start : start + CHUNK]
            total = part.logsumexp(dim=-1, keepdim=True)
            nll[start : start + CHUNK] = (total - part.gather(1, wanted[:, None]))[:, 0]
            if ctx.gradient is not None:
                slope = (part - total).exp_()
                slope[torch.arange(len(wanted)), wanted] -= 1
                ctx.gradient[start : start + CHUNK] = slope
        return nll

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Scale the gradient by each token's weight, in place: it is wanted once."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the loss is differentiated a second time")
        return gradient.mul_(upstream[0][:, None]), None


def supervised_tokens(
    model: Any, batch: Mapping[str, torch.Tensor], cache: Any = None, gathered: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`supervised_nll`, and whether each supervised token was the most likely one.

    Args:
        model: a causal language model whose forward takes `logits_to_keep`.
        batch: of `pad_examples`, on the model's device.
        cache: keys and values of what comes before every row; the attention mask covers it.
        gathered: see `logits_at`.

    Returns:
        `nll` (supervised,) float32, `greedy` (supervised,) bool and `rows` (supervised,) int64.
    """
    targets = batch["labels"][:, 1:]
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "position_ids": batch["position_ids"],
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
    logits = logits_at(model, inputs, rows, columns, gathered).float()
    wanted = targets[rows, columns]
    nll = cross_entropy(logits, wanted, reduction="none")
    return nll, logits.detach().argmax(dim=-1) == wanted, rows


def logits_at(
    model: Any,
    inputs: Mapping[str, Any],
    rows: torch.Tensor,
    columns: torch.Tensor,
    gathered: bool,
) -> torch.Tensor:
    """Next-token logits at some places of a batch, and not at the others.

    The output head is a fifth of a 135M model's work, and most positions of a prompt are never
    scored. By the models' own interface only whole columns can be left out. `gathered` takes the
    hidden states of the places and applies the head to them: the least work, and wrong for models
    that do more to their logits, which the caller has to have found out.

    Args:
        model: a causal language model, with or without adapter.
        inputs: of its forward.
        rows: (places,) int64.
        columns: (places,) int64.
        gathered: whether the head is applied here.

    Returns:
        (places, vocabulary), in the model's dtype.
    """
    if is_divided(model):
        return wanted_logits(model, inputs, None, rows, columns)
    if gathered:
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = causal.base_model(**inputs).last_hidden_state
        found: torch.Tensor = causal.get_output_embeddings()(hidden[rows, columns])
        return found
    kept = torch.unique(columns)
    logits: torch.Tensor = model(**inputs, logits_to_keep=kept).logits
    return logits[rows, torch.searchsorted(kept, columns.contiguous())]


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
