"""LoRA's factors before step 1, where they come from the weights or the rows.

Each is computed by PEFT: for one layer after another on a copy of its weight, so that the
backbone's stay as they are (see `initialisations`).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from lora_kit.adapter.beginning_layers import NAME, beginning_layers
from lora_kit.adapter.peft_methods import as_asked
from lora_kit.backbone.load import Backbone
from lora_kit.data.tokenization import Example
from lora_kit.modeling.likelihood import pad_examples, supervised_nll, to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.initialisations import FROM_ROWS, OPTION, SUBTRACTED, initialisation_of
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer

# Rows that are looked at, and how many go through the model together.
ROWS, TOGETHER = 64, 4
# EVA looks until its directions stay: on the same rows twice or thrice; later they will not.
MOST_TIMES = 20
# All of EVA's rows go through the model together, so that they settle; this bounds the memory.
MOST_TOKENS = 16_384
# Where PEFT leaves what it found, on the layer that it looked at.
FINDINGS = ("eigens", "_peft_loraga_grad")

Batch = Mapping[str, torch.Tensor]


def initialise(
    model: PeftModel,
    backbone: Backbone,
    spec: AdapterSpec,
    examples: Sequence[Example],
    seed: int,
) -> None:
    """Give a new adapter the factors that its initialisation asks for; nothing for plain LoRA.

    PiSSA (Meng et al. 2024, arXiv:2404.02948), OLoRA (Büyükakyüz 2024, arXiv:2406.01775), CorDA
    (Yang et al. 2024, arXiv:2406.05223) and LoRA-GA (Wang et al. 2024, arXiv:2407.05000): the model
    begins as the base, and the first half of each factor is trained. EVA (Paischer et al. 2024,
    arXiv:2410.07170): ranks and first factors from the activations of training rows. LoftQ (Li et
    al. 2023, arXiv:2310.08659), one iteration: the model begins as near as it can to the weights
    before they were quantized.

    The same seed, weights and rows give the same factors, so that it is also done before a
    checkpoint is read, which finds the ranks and the frozen halves that it was written with.

    Args:
        model: with the adapter attached.
        backbone: that it is attached to.
        spec: of the adapter.
        examples: training rows, tokenized.
        seed: of the choice of rows.

    Raises:
        AdapterError: if a layer has no such initialisation, or the rows are too few for it.
    """
    kind = initialisation_of(spec)
    if kind is None:
        return
    halves = "; of each, half is trained and half takes it out again" if kind in SUBTRACTED else ""
    say(f"adapter.options.{OPTION}: {kind}: computing the first factors{_from(kind)}{halves}")
    own = cast("LoraConfig", as_asked(spec, model.get_base_model()))
    layers = beginning_layers(model, spec, kind)
    if kind == "loftq":
        _quantization_error(layers, backbone)
        return
    if kind == "eva":
        _explained_variance(model, _Batches(examples, backbone, seed, ROWS))
        return
    if kind in FROM_ROWS:
        _look(kind, model, layers, own, _Batches(examples, backbone, seed, TOGETHER))
    for layer in layers.values():
        _take_out(layer, own)


def _from(kind: str) -> str:
    return f" from up to {ROWS} training rows" if kind in FROM_ROWS else ""


class _Batches:
    """Some of the rows, some at a time."""

    def __init__(self, examples: Sequence[Example], backbone: Backbone, seed: int, together: int):
        chosen = random.Random(seed).sample(range(len(examples)), min(ROWS, len(examples)))
        if together == ROWS:
            longest = max(len(examples[number].input_ids) for number in chosen)
            chosen = chosen[: max(MOST_TOKENS // longest, 1)]
        self.parts = [
            [examples[number] for number in chosen[start : start + together]]
            for start in range(0, len(chosen), together)
        ]
        self.backbone = backbone

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for part in self.parts:
            yield self._made(part)

    def single(self) -> Iterator[dict[str, torch.Tensor]]:
        """One row at a time, without padding."""
        for part in self.parts:
            for example in part:
                yield self._made([example])

    def _made(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = pad_examples(examples, self.backbone.tokenizer.pad_token_id)
        return to_device(batch, self.backbone.model.device)


def _forward(model: Any, batch: Batch) -> None:
    """Through the blocks, and no head."""
    names = ("input_ids", "attention_mask", "position_ids")
    with torch.no_grad():
        model.get_base_model().base_model(**{name: batch[name] for name in names}, use_cache=False)


def _explained_variance(model: PeftModel, batches: _Batches) -> None:
    from peft import initialize_lora_eva_weights

    left = iter(range(MOST_TIMES * len(batches)))

    def bounded(model: Any, batch: Batch) -> None:
        # PEFT goes on until every direction is settled, however long that is.
        if next(left, None) is None:
            raise AdapterError(
                f"adapter.options.{OPTION}: eva: its directions are not settled after "
                f"{MOST_TIMES} times {sum(map(len, batches.parts))} rows; set adapter.rank, "
                "eva_config.rho or eva_config.tau lower, or take more rows"
            )
        _forward(model, batch)

    with torch.no_grad(), eval_mode(model):
        # Each process looks at the same rows.
        initialize_lora_eva_weights(
            model,
            batches,
            forward_fn=bounded,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Factors of another rank PEFT makes anew, in the dtype of the backbone.
            parameter.data = parameter.data.float()
    config = cast("LoraConfig", model.peft_config[NAME])
    # With its ranks by layer it is plain LoRA, to whoever reads it.
    config.init_lora_weights, config.eva_config = True, None


def _look(
    kind: str,
    model: PeftModel,
    layers: Mapping[str, LoraLayer],
    own: LoraConfig,
    batches: _Batches,
) -> None:
    """Have PEFT look at what the layers do with the rows; it leaves what it found on them."""
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga

    bases = dataclasses.replace(own, target_modules=[f"{name}.base_layer" for name in layers])
    if kind == "corda":
        with eval_mode(model):
            preprocess_corda(model, bases, lambda: _all(_forward, model, batches.single()))
        return
    preprocess_loraga(model, bases, lambda: _all(_backward, model, batches))


def _all(step: Callable[[Any, Batch], None], model: PeftModel, batches: Any) -> None:
    for batch in batches:
        step(model, batch)


def _backward(model: Any, batch: Batch) -> None:
    nll, _ = supervised_nll(model, batch)
    torch.autograd.backward(nll.mean())


@torch.no_grad()
def _take_out(layer: LoraLayer, own: LoraConfig) -> None:
    """The first half of both factors as PEFT begins it, the second as what takes it out again."""
    from peft.tuners.lora.layer import Linear

    base = cast("torch.nn.Linear", layer.get_base_layer())
    weight = _weight_of(layer)
    out, inputs = weight.shape
    bare = torch.nn.Linear(inputs, out, bias=False, device="meta")
    bare.weight = torch.nn.Parameter(weight, requires_grad=False)
    for finding in FINDINGS:
        if hasattr(base, finding):
            setattr(bare, finding, getattr(base, finding))
            delattr(base, finding)
    begun = Linear(bare, NAME, own, r=own.r, lora_alpha=own.lora_alpha)
    first, second = begun.lora_A[NAME].weight, begun.lora_B[NAME].weight
    factors = cast("Any", layer)
    a, b = factors.lora_A[NAME].weight, factors.lora_B[NAME].weight
    a.copy_(torch.cat([first, first]))
    b.copy_(torch.cat([second, -second], dim=1))
    a.register_hook(lambda slope: torch.cat([slope[: own.r], torch.zeros_like(slope[own.r :])]))
    b.register_hook(
        lambda slope: torch.cat([slope[:, : own.r], torch.zeros_like(slope[:, own.r :])], dim=1)
    )


def _weight_of(layer: LoraLayer) -> torch.Tensor:
    """A copy of what the layer multiplies with, (out, in) float32."""
    from peft.utils.integrations import dequantize_module_weight

    stored: torch.Tensor = dequantize_module_weight(layer.get_base_layer())
    weight = stored.detach().float().clone()
    return weight.T.contiguous() if getattr(layer, "fan_in_fan_out", False) else weight


@torch.no_grad()
def _quantization_error(layers: Mapping[str, LoraLayer], backbone: Backbone) -> None:
    """Factors of what quantization took from each weight, as much of it as their rank holds."""
    from transformers.pytorch_utils import Conv1D

    # On the CPU in the dtype that it is stored in, which is let go of again.
    kind: Any = type(backbone.model)
    whole = kind.from_pretrained(
        backbone.files.directory, dtype="auto", local_files_only=True, trust_remote_code=False
    )
    for name, layer in layers.items():
        inside = name.removeprefix("base_model.model.")
        module, quantized = whole.get_submodule(inside), _weight_of(layer)
        # Of GPT-2, (in, out); quantized, it is a linear layer as any other.
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        taken = weight.float().to(quantized.device) - quantized
        factors = cast("Any", layer)
        a, b = factors.lora_A[NAME].weight, factors.lora_B[NAME].weight
        left, sizes, right = torch.linalg.svd(taken, full_matrices=False)
        roots = (sizes[: len(a)] / layer.scaling[NAME]).sqrt()
        a.copy_(roots[:, None] * right[: len(a)])
        b.copy_(left[:, : len(a)] * roots)
