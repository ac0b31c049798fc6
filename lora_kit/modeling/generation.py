"""Text generation: one call for a batch of prompts, and batches for any number of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import StoppingCriteriaList, StopStringCriteria

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.encoder_decoder import DECODER_INPUTS, Seq2SeqBatch, is_encoder_decoder
from lora_kit.backbone.load import Backbone
from lora_kit.backbone.positions import PositionLimits
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.modeling.adapter_layers import adapter_layers
from lora_kit.modeling.decoding import decode_greedily
from lora_kit.modeling.held_weights import held_weights, inner_model
from lora_kit.modeling.prefix import Prefix, common_beginning, encode_prefix
from lora_kit.modeling.prompt_encoding import ALIGNMENT, takes_positions
from lora_kit.runtime.console import meter

# Prompts in a batch; a step generates one token of each.
ROWS = 32
# Minimum tokens of a beginning that is encoded once; a pass for fewer costs more than it saves.
MIN_PREFIX_TOKENS = 8


def stop_token_ids(backbone: Backbone) -> tuple[int, ...]:
    """Return the tokens on which generation ends; none for a backbone with a head.

    The tokens are those of the generation configuration and the chat template's end of turn. Where
    the two differ, a model that learned to end its turn would otherwise continue.
    """
    if backbone.head is not None:
        return ()
    configured = backbone.model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) - {None}
    return tuple(sorted(ids | {end_of_turn_id(backbone.tokenizer)}))


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    pad_token_id: int,
    max_new_tokens: int,
    prefix: Prefix | None = None,
    **options: Any,
) -> torch.Tensor:
    """Generate from one batch of prompts, greedily unless `options` say otherwise.

    Args:
        model: a decoder, or an encoder with a decoder.
        prompts: token ids, none of them empty.
        stop_ids: tokens on which a row ends.
        pad_token_id: token that fills short prompts, and rows that have ended.
        max_new_tokens: largest number of tokens.
        prefix: encoded tokens that all prompts begin with; by default, a long common beginning is
            encoded here.
        options: further options of `model.generate`.

    Returns:
        (rows, tokens) int64, without the prompts.
    """
    is_ours = _is_decoded_here(model) and not options.get("do_sample")
    read_before = 0
    with held_weights(model), contiguous_head(model), adapter_layers(model):
        if is_ours and prefix is None:
            prefix = _own_prefix(model, prompts)
        placed = prefix if is_ours and prefix is not None and prefix.is_plain else None
        if is_ours:
            options = _decoded_here(options, placed)
        if prefix is not None and placed is None:
            read_before = len(prefix)
            options["past_key_values"] = prefix.repeated(len(prompts))
        inputs, seen = _generation_inputs(model, prompts, pad_token_id, read_before)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        output: torch.Tensor = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_token_id,
            **(greedy | options),
        )
    return output[:, seen:]


def _generation_inputs(
    model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int, prefix_length: int
) -> tuple[dict[str, torch.Tensor], int]:
    """Return the inputs of a batch, and the number of tokens that its output begins with.

    Args:
        model: a decoder, or an encoder with a decoder.
        prompts: token ids.
        pad_token_id: token that fills short prompts.
        prefix_length: tokens at the start of every prompt whose keys and values are given.
    """
    width = max(map(len, prompts))

    def row(filler: int, prompt: Sequence[int]) -> list[int]:
        # Padded on the left, so that all rows continue at the same column; but the prefix comes
        # first in every row, where its keys and values are.
        return [*prompt[:prefix_length], *[filler] * (width - len(prompt)), *prompt[prefix_length:]]

    device = input_device(model)
    ids = torch.tensor([row(pad_token_id, prompt) for prompt in prompts], device=device)
    mask = torch.tensor([row(0, [1] * len(prompt)) for prompt in prompts], device=device)
    if not is_encoder_decoder(model):
        return {"input_ids": ids, "attention_mask": mask}, width
    inputs = Seq2SeqBatch.of(model, ids, mask).inputs
    starts = inputs[DECODER_INPUTS]
    # Every prompt ends with the tokens that the decoder begins with.
    assert bool((starts == starts[0]).all())
    return inputs, starts.shape[1]


def _own_prefix(model: Any, prompts: Sequence[Sequence[int]]) -> Prefix | None:
    """Encode what all prompts begin with, at most up to the last token but one, if it is long.

    `None` as well for a model whose prefix cannot be used where padding comes before it. In half
    precision, the last digit of attention often decides which token is the most likely one (55 of
    512 tokens differed). There a beginning is shared only where it adds up in the same order.
    """
    lengths = [len(prompt) for prompt in prompts]
    shared = common_beginning(prompts)[: min(lengths) - 1] if len(prompts) > 1 else ()
    if inner_model(model).dtype != torch.float32:
        is_same_order = len({length % ALIGNMENT for length in lengths}) == 1
        shared = shared[: len(shared) // ALIGNMENT * ALIGNMENT if is_same_order else 0]
    if len(shared) < MIN_PREFIX_TOKENS or not takes_positions(model):
        return None
    with torch.no_grad():
        prefix = encode_prefix(model, shared, input_device(model))
    return prefix if prefix.is_plain else None


def _decoded_here(options: dict[str, Any], prefix: Prefix | None) -> dict[str, Any]:
    """Return the options of `model.generate` with which `decode_greedily` decodes.

    Args:
        options: further options of `model.generate`.
        prefix: plain prefix that `decode_greedily` gives each row behind its padding.
    """
    decoded = options | {"custom_generate": partial(decode_greedily, prefix=prefix)}
    if stops := decoded.pop("stop_strings", None):
        # transformers 5.23 loses the tokenizer that it would make the criterion with.
        criterion = StopStringCriteria(decoded.pop("tokenizer"), stops)
        decoded["stopping_criteria"] = StoppingCriteriaList([criterion])
    return decoded


def _is_decoded_here(model: Any) -> bool:
    """Return true if `decode_greedily` may decode; what it cannot, it leaves to transformers.

    Not for virtual tokens, which are put into a cache of their own, and not for a model that
    several processes hold together, all of which have to take every step.
    """
    from transformers.distributed.fsdp import is_fsdp_managed_module
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_encoder_decoder(model) or is_deepspeed_zero3_enabled():
        return False
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        return False
    return not is_fsdp_managed_module(inner_model(model))


@contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """Let the output head see contiguous hidden states only.

    After the prompts, transformers gives the head a slice, the last position of each row. For a
    slice of several rows, torch 2.13 multiplies batch by batch, and in bfloat16 on a CPU copies the
    weight for each row: 64 rows of a head of 49,152 words took 3.6 GB instead of 6 MB.
    """

    def copy_slice(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # A slice of a single row is contiguous, but for a stride that folds no dimensions.
        return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])

    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(copy_slice)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Generator:
    """A base model that generates text, without an adapter.

    Attributes:
        backbone: a backbone whose model has no adapter attached.
        stop_ids: tokens on which an answer ends.
    """

    backbone: Backbone
    stop_ids: Sequence[int]

    def texts(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], sampled: bool
    ) -> list[str | None]:
        """Return the text after each prompt; `None` where it did not end within its limit."""
        tokenizer = self.backbone.tokenizer
        pad, model = tokenizer.pad_token_id, self.backbone.model
        with meter("generating", len(prompts), visible=len(prompts) > ROWS) as progress:
            generated = generate(
                model, prompts, self.stop_ids, pad, max_new_tokens, sampled, progress.advance
            )
        return [
            None if one is None else str(tokenizer.decode(list(one), skip_special_tokens=True))
            for one in generated
        ]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    pad_token_id: int,
    max_new_tokens: Sequence[int],
    sampled: bool = False,
    advance: Callable[[float], None] = lambda _: None,
) -> list[tuple[int, ...] | None]:
    """Generate from any number of prompts, in batches of similar lengths.

    Args:
        model: a language model.
        prompts: token ids, none of them empty.
        stop_ids: tokens on which an answer ends.
        pad_token_id: token that fills short prompts on the left.
        max_new_tokens: largest number of tokens for each prompt; fewer where the model's positions
            end before.
        sampled: sample from the model's own distribution (temperature 1, nothing cut off) by
            torch's random state, instead of the most likely token.
        advance: function that is called with the number of prompts of each finished batch.

    Returns:
        For each prompt the tokens before the stop token; `None` where there was no stop token.
    """
    generated: dict[int, tuple[int, ...] | None] = {}
    positions = PositionLimits.of(model)
    rooms = [positions.max_new_tokens(prompt) for prompt in prompts]
    limits = [m if r is None else min(m, r) for m, r in zip(max_new_tokens, rooms, strict=True)]
    # Prompts of one length together: padding is computed for nothing.
    order = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), limits[n], n))
    sampling: dict[str, Any] = {}
    if sampled:
        sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    with torch.no_grad(), _own_distribution(model), held_weights(model):
        for batch in _batches([n for n in order if limits[n]], limits, rooms):
            rows = generate_batch(
                model,
                [prompts[n] for n in batch],
                stop_ids,
                pad_token_id,
                max(limits[n] for n in batch),
                **sampling,
            ).tolist()
            generated |= {
                n: _until_stop(row[: limits[n]], stop_ids)
                for n, row in zip(batch, rows, strict=True)
            }
            advance(len(batch))
    return [generated.get(n) for n in range(len(prompts))]


def _batches(
    order: Sequence[int], limits: Sequence[int], rooms: Sequence[int | None]
) -> Iterator[list[int]]:
    """Yield batches of prompts, shortest first.

    A batch generates up to the largest limit of its prompts, and never past a prompt's positions.
    """
    batch: list[int] = []
    for n in order:
        steps, room = max(limits[one] for one in (*batch, n)), rooms[n]
        if batch and (len(batch) == ROWS or (room is not None and steps > room)):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


@contextmanager
def _own_distribution(model: Any) -> Iterator[None]:
    """Remove the model's generation defaults, such as top_k, which change its distribution.

    Only the tokens that a text begins with are retained.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    begins = ("bos_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in begins})
    try:
        yield
    finally:
        model.generation_config = own


def _until_stop(tokens: list[int], stop_ids: Sequence[int]) -> tuple[int, ...] | None:
    ends = [tokens.index(stop) for stop in stop_ids if stop in tokens]
    return tuple(tokens[: min(ends)]) if ends else None
