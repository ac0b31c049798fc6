"""Initialisation of LoRA factors from weights, training rows or texts.

PEFT computes the factors, one layer at a time, on a copy of the layer's weight, so that the
backbone's weights do not change (see `recipe.initialisations`).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from lora_kit.adapter.initialized_layers import layers_to_initialize
from lora_kit.adapter.layer_weight import dequantized_weight
from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER, requested_configuration
from lora_kit.adapter.saved_configuration import PREFIX
from lora_kit.backbone.load import Backbone
from lora_kit.backbone.open_files import open_model
from lora_kit.data.supervision import Example
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import pad_examples, to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.initialisations import FROM_ROWS, OPTION, SUBTRACTED, initialisation_of
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer

# Number of training rows, and rows per forward pass.
MAX_ROWS, BATCH_ROWS = 64, 4
# EVA repeats the rows until its directions converge: after two or three passes, or never.
MAX_PASSES = 20
# EVA converges only with all rows in one batch; this limits the memory.
MAX_EVA_TOKENS = 16_384
# Attributes in which PEFT stores statistics on a layer.
PEFT_STATISTICS = ("eigens", "_peft_loraga_grad")

RowBatch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class InitialRows:
    """Rows or texts from which an initialisation is computed.

    Attributes:
        examples: tokenized rows.
        texts_of: source of the texts if they represent what the base knows, all of which are
            used; `None` for training rows, of which a sample is used.
    """

    examples: Sequence[Example]
    texts_of: str | None = None

    def __str__(self) -> str:
        if self.texts_of is None:
            return f"up to {MAX_ROWS} training rows"
        return f"{len(self.examples)} texts of {self.texts_of}"

    def sample(self, seed: int) -> list[Example]:
        """Return the rows to use: all texts, or a random sample of training rows."""
        limit = len(self.examples) if self.texts_of else min(MAX_ROWS, len(self.examples))
        chosen = random.Random(seed).sample(range(len(self.examples)), limit)
        return [self.examples[number] for number in chosen]


def initialise(
    model: PeftModel,
    backbone: Backbone,
    spec: AdapterSpec,
    rows: InitialRows,
    seed: int,
) -> None:
    """Initialise the factors of a new adapter; no effect for plain LoRA.

    PiSSA (Meng et al. 2024, arXiv:2404.02948), OLoRA (Büyükakyüz 2024, arXiv:2406.01775), CorDA
    (Yang et al. 2024, arXiv:2406.05223) and LoRA-GA (Wang et al. 2024, arXiv:2407.05000): the model
    initially equals the base, and the first half of each factor is trained. CorDA trains the
    directions that training rows use most (its instruction-previewed mode), or those that texts
    use least (its knowledge-preserving mode). EVA (Paischer et al. 2024, arXiv:2410.07170): ranks
    and factors from the activations of training rows. LoftQ (Li et al. 2023, arXiv:2310.08659), one
    iteration: the model initially approximates the unquantized weights as closely as the rank
    allows.

    The same seed, weights, rows and texts give the same factors. The function is therefore also
    called before a checkpoint is loaded, to restore the ranks and the frozen halves it was saved
    with.

    Args:
        model: model with the adapter attached.
        backbone: backbone that the adapter is attached to.
        spec: adapter section of the recipe.
        rows: tokenized training rows, or texts.
        seed: seed of the sample of rows.

    Raises:
        AdapterError: if a layer does not support the initialisation, or there are too few rows.
    """
    kind = initialisation_of(spec)
    if kind is None:
        return
    source = f" from {rows}" if kind in FROM_ROWS else ""
    frozen = (
        "; half of each factor is frozen and cancels the other half" if kind in SUBTRACTED else ""
    )
    say(f"adapter.options.{OPTION}: {kind}: computing the initial factors{source}{frozen}")
    requested = cast("LoraConfig", requested_configuration(spec, model.get_base_model()))
    layers = layers_to_initialize(model, spec, kind)
    if kind == "loftq":
        _initialise_loftq(layers, backbone)
        return
    if kind == "eva":
        _initialise_eva(model, _RowBatches(rows, backbone, seed, MAX_ROWS))
        return
    if kind in FROM_ROWS:
        if kind == "corda":
            mode = "kpm" if rows.texts_of else "ipm"
            corda = dataclasses.replace(requested.corda_config, corda_method=mode)
            requested = dataclasses.replace(requested, corda_config=corda)
        batches = _RowBatches(rows, backbone, seed, BATCH_ROWS)
        _collect_statistics(kind, model, layers, requested, batches)
    for layer in layers.values():
        _set_cancelling_factors(layer, requested)


class _RowBatches:
    """Batches of texts, or of a random sample of training rows, on the backbone's device."""

    def __init__(self, rows: InitialRows, backbone: Backbone, seed: int, batch_rows: int):
        chosen = rows.sample(seed)
        if batch_rows == MAX_ROWS:
            longest = max(len(example.input_ids) for example in chosen)
            chosen = chosen[: max(MAX_EVA_TOKENS // longest, 1)]
        self.parts = [
            chosen[start : start + batch_rows] for start in range(0, len(chosen), batch_rows)
        ]
        self.backbone = backbone

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for part in self.parts:
            yield self._padded(part)

    def single(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield one row at a time, without padding."""
        for part in self.parts:
            for example in part:
                yield self._padded([example])

    def _padded(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = pad_examples(examples, self.backbone.tokenizer.pad_token_id)
        return to_device(batch, self.backbone.model.device)


def _forward(model: Any, batch: RowBatch) -> None:
    """Run the blocks without the output head."""
    names = ("input_ids", "attention_mask", "position_ids")
    with torch.no_grad():
        model.get_base_model().base_model(**{name: batch[name] for name in names}, use_cache=False)


def _initialise_eva(model: PeftModel, batches: _RowBatches) -> None:
    from peft import initialize_lora_eva_weights

    remaining = iter(range(MAX_PASSES * len(batches)))

    def limited_forward(model: Any, batch: RowBatch) -> None:
        # PEFT repeats the rows until every direction has converged, without a limit.
        if next(remaining, None) is None:
            raise AdapterError(
                f"adapter.options.{OPTION}: eva did not converge in {MAX_PASSES} passes over "
                f"{sum(map(len, batches.parts))} rows. Fix: lower adapter.rank, eva_config.rho or "
                "eva_config.tau, or add rows"
            )
        _forward(model, batch)

    with torch.no_grad(), eval_mode(model):
        # Every process uses the same rows, so there is nothing to gather.
        initialize_lora_eva_weights(
            model,
            batches,
            forward_fn=limited_forward,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            # PEFT recreates factors whose rank changed, in the backbone's dtype.
            parameter.data = parameter.data.float()
    config = cast("LoraConfig", model.peft_config[DEFAULT_ADAPTER])
    # Saved as plain LoRA with a rank for each layer, which other programs can load.
    config.init_lora_weights, config.eva_config = True, None


def _collect_statistics(
    kind: str,
    model: PeftModel,
    layers: Mapping[str, LoraLayer],
    requested: LoraConfig,
    batches: _RowBatches,
) -> None:
    """Let PEFT collect activations (CorDA) or gradients (LoRA-GA) on the base layers."""
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga

    def run_forward() -> None:
        for batch in batches.single():
            _forward(model, batch)

    def run_backward() -> None:
        for batch in batches:
            nll, _ = supervised_nll(model, batch)
            torch.autograd.backward(nll.mean())

    base_layers = [f"{name}.base_layer" for name in layers]
    config = dataclasses.replace(requested, target_modules=base_layers)
    if kind == "corda":
        with eval_mode(model):
            preprocess_corda(model, config, run_forward)
        return
    preprocess_loraga(model, config, run_backward)


@torch.no_grad()
def _set_cancelling_factors(layer: LoraLayer, requested: LoraConfig) -> None:
    """Set the first half of both factors as PEFT does, and the second half to cancel the first."""
    from peft.tuners.lora.layer import Linear

    base = cast("torch.nn.Linear", layer.get_base_layer())
    weight = dequantized_weight(layer)
    out, inputs = weight.shape
    copy = torch.nn.Linear(inputs, out, bias=False, device="meta")
    copy.weight = torch.nn.Parameter(weight, requires_grad=False)
    for name in PEFT_STATISTICS:
        if hasattr(base, name):
            setattr(copy, name, getattr(base, name))
            delattr(base, name)
    rank = requested.r
    initialised = Linear(copy, DEFAULT_ADAPTER, requested, r=rank, lora_alpha=requested.lora_alpha)
    initial_a = initialised.lora_A[DEFAULT_ADAPTER].weight
    initial_b = initialised.lora_B[DEFAULT_ADAPTER].weight
    factors = cast("Any", layer)
    a, b = factors.lora_A[DEFAULT_ADAPTER].weight, factors.lora_B[DEFAULT_ADAPTER].weight
    a.copy_(torch.cat([initial_a, initial_a]))
    b.copy_(torch.cat([initial_b, -initial_b], dim=1))
    # Zero gradients freeze the second half of each factor.
    a.register_hook(lambda grad: torch.cat([grad[:rank], torch.zeros_like(grad[rank:])]))
    b.register_hook(
        lambda grad: torch.cat([grad[:, :rank], torch.zeros_like(grad[:, rank:])], dim=1)
    )


@torch.no_grad()
def _initialise_loftq(layers: Mapping[str, LoraLayer], backbone: Backbone) -> None:
    """Set the factors to the truncated SVD of each weight's quantization error."""
    from transformers.pytorch_utils import Conv1D

    # On the CPU, in the stored dtype; freed on return.
    kind: Any = type(backbone.model)
    unquantized = open_model(
        kind,
        backbone.files.directory,
        f"backbone.model: {backbone.files.reference}: transformers cannot load it",
        "restore the files from the model's source",
        dtype="auto",
    )
    for name, layer in layers.items():
        module = unquantized.get_submodule(name.removeprefix(PREFIX))
        quantized = dequantized_weight(layer)
        # GPT-2's weights are (in, out); when quantized, the layer is a linear one.
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        error = weight.float().to(quantized.device) - quantized
        factors = cast("Any", layer)
        a, b = factors.lora_A[DEFAULT_ADAPTER].weight, factors.lora_B[DEFAULT_ADAPTER].weight
        left, singular_values, right = torch.linalg.svd(error, full_matrices=False)
        roots = (singular_values[: len(a)] / layer.scaling[DEFAULT_ADAPTER]).sqrt()
        a.copy_(roots[:, None] * right[: len(a)])
        b.copy_(left[:, : len(a)] * roots)
