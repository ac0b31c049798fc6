"""The adapter on a hollow model: all of PEFT's layers, none of the backbone's weights.

Every parameter of the backbone is one number that is shown as a tensor of the right shape. PEFT
attaches its layers to that and loads the adapter's tensors, so that which tensor belongs where, and
what a method makes of a weight, is its own knowledge; a layer is filled when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.adapter.attach import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.adapter.saved_configuration import NOT_FITTING
from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.merging.arithmetic import (
    ADAPTER,
    Read,
    Rows,
    finite,
    is_plain,
    merged_by_peft,
    plain_sums,
)
from lora_kit.merging.methods import adapter_configuration, residue_of
from lora_kit.merging.tensors import stored_tensors
from lora_kit.runtime.errors import MergeError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
# What PEFT puts between the name of a module and that of its parameters.
WRAPPERS = ("base_layer", "token_adapter", "original_module")


@dataclass(frozen=True)
class MetaModel:
    """What an adapter does to a model, by the names that the model's parameters have without it.

    Attributes:
        model: the bare model, with the adapter's layers in it.
        shapes: of all parameters and persistent buffers.
        transposed: modules that store their weight as (in, out).
        conversions: transformers' rules from the tensors of a checkpoint to the model's.
        aliases: of parameters that are one: all their names, by each name.
        layers: by parameter, the layers that change it, the outermost first.
        replaced: by parameter, what stands in its place.
        residue: initialisation that took something out of the adapted weights; empty if none.
    """

    model: PreTrainedModel
    shapes: Mapping[str, tuple[int, ...]]
    transposed: frozenset[str]
    conversions: Sequence[Any]
    aliases: Mapping[str, frozenset[str]]
    layers: dict[str, list[Any]] = field(default_factory=dict)
    replaced: dict[str, torch.Tensor] = field(default_factory=dict)
    residue: str = ""

    @property
    def changed(self) -> frozenset[str]:
        """All parameters that the adapter changes or replaces."""
        return frozenset(self.layers) | frozenset(self.replaced)

    @property
    def untied(self) -> frozenset[str]:
        """Parameters that were one and are no longer: the adapter changes some of them."""
        return frozenset(
            name for changed in self.changed for name in self.aliases.get(changed, frozenset())
        )

    def merged(self, name: str, read: Read, dtype: torch.dtype) -> torch.Tensor:
        """A parameter with the adapter in it: the sum in float32, rounded once.

        Args:
            name: of a parameter that is changed or replaced.
            read: gives the backbone's parameter of a name.
            dtype: of the result.

        Raises:
            MergeError: if a number in it is none.
        """
        layers = self.layers.get(name)
        if layers is None:
            return finite(name, self.replaced[name].to(dtype))
        if self.is_plain(name):
            base = self._base(name, read)
            rows = self.merged_rows(name, lambda first, last: base[first:last], dtype)
            return torch.cat(list(rows))
        merged = merged_by_peft(name, layers, partial(self._base, read=read), self.residue)
        return finite(name, merged.to(dtype))

    def is_plain(self, name: str) -> bool:
        """Whether the parameter gets a low-rank update and nothing else."""
        layers = self.layers.get(name, ())
        return len(layers) == 1 and is_plain(layers[0]) and not self.residue

    def merged_rows(self, name: str, rows: Rows, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The same as `merged` of a parameter that is plain, some rows at a time.

        Args:
            name: of the parameter.
            rows: gives some rows of the backbone's.
            dtype: of the result.

        Raises:
            MergeError: if a number in it is none.
        """
        return plain_sums(name, self.layers[name][0], self.shapes[name], rows, dtype)

    def _base(self, name: str, read: Read) -> torch.Tensor:
        """What the adapter's layers stand on: PEFT saves embeddings that it adapts."""
        return self.replaced[name] if name in self.replaced else read(name)


def hollow_model(base: Path, adapter: Path | None) -> MetaModel:
    """Attach an adapter from disk to the shapes of its backbone.

    Args:
        base: directory of the backbone.
        adapter: directory of the adapter; none attached if `None`.

    Raises:
        MergeError: if a tensor of the adapter has no place, or a place no tensor.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.pytorch_utils import Conv1D

    if adapter is not None and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise MergeError(f"{adapter}: no {ADAPTER_WEIGHTS}")
    model = _bare(base, adapter)
    # Before anything is attached: PEFT changes the names.
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    transposed = frozenset(name for name, m in model.named_modules() if isinstance(m, Conv1D))
    bare = MetaModel(
        model, shapes, transposed, get_model_conversion_mapping(model), _aliases(model)
    )
    if adapter is None:
        return bare
    config = adapter_configuration(adapter)
    residue = residue_of(config, adapter)
    if residue:
        # Not now: these weights are hollow.
        config.init_lora_weights = True
    attached = _attached(model, config, adapter)
    hollow = replace(bare, residue=residue)
    _collect(attached, hollow)
    return hollow


def _bare(base: Path, adapter: Path | None) -> PreTrainedModel:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    if getattr(config, "quantization_config", None):
        raise MergeError(
            f"{base}: its files are quantized, and what an adapter adds to them would be rounded "
            "away; merge into the checkpoint that they were made from"
        )
    if adapter is not None and (rows := _vocabulary(adapter)):
        config.get_text_config().vocab_size = rows
    with torch.device("meta"):
        model = language_model_class(config).from_config(config)
    model.tie_weights()
    # Where one parameter has two names, so has its stand-in.
    hollow: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, hollow.setdefault(id(parameter), _hollow(parameter.shape)))
    return model


def _hollow(shape: torch.Size) -> torch.nn.Parameter:
    """One number, shown in any shape."""
    return torch.nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)


def _vocabulary(adapter: Path) -> int:
    """Rows of an embedding that the adapter brings whole, perhaps resized; 0 if none."""
    whole = ("embed_tokens.weight", "embed_tokens.base_layer.weight", "lm_head.weight")
    rows = [t.shape[0] for t in stored_tensors(adapter / ADAPTER_WEIGHTS) if t.key.endswith(whole)]
    return max(rows, default=0)


def _aliases(model: PreTrainedModel) -> dict[str, frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: frozenset(group) for group in names.values() if len(group) > 1 for name in group}


def _attached(model: PreTrainedModel, config: PeftConfig, adapter: Path) -> Any:
    from peft import get_peft_model
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict

    path = adapter / ADAPTER_WEIGHTS
    try:
        weights = load_peft_weights(str(adapter), device="cpu")
        _require_numbers(weights, path)
        attached = get_peft_model(model, config, ADAPTER, low_cpu_mem_usage=True)
        found = set_peft_model_state_dict(attached, weights, ADAPTER, low_cpu_mem_usage=True)
    except NOT_FITTING as error:
        raise MergeError(f"{path}: does not fit the backbone: {_short(error)}") from error
    stray = sorted(key for key in found.unexpected_keys if not _is_double(key, weights))
    if stray:
        compiled = " They were saved from a compiled model: take `_orig_mod.` out of their names."
        raise MergeError(
            f"{path}: {len(stray)} tensors have no place in the backbone, the first: {stray[0]}."
            + (compiled if any("_orig_mod." in key for key in stray) else "")
        )
    _require_whole(attached, weights, path)
    return attached


def _require_whole(attached: Any, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """All that PEFT would save of such an adapter, trained biases included, has to be there."""
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(attached, save_embedding_layers=False)
    lacking = sorted(set(wanted) - set(weights))
    if lacking:
        raise MergeError(
            f"{path}: {ADAPTER_CONFIG} names {len(lacking)} tensors that are not there, the first: "
            f"{lacking[0].removeprefix(PREFIX)}; the file is not whole"
        )


def _is_double(key: str, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether PEFT saved a module twice, as it does where an embedding was resized."""
    twin = weights.get(key.replace(".modules_to_save.", "."))
    return ".modules_to_save." in key and twin is not None and torch.equal(twin, weights[key])


def _require_numbers(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise MergeError(f"{path}: {name} holds numbers that are infinite or none")


def _short(error: Exception) -> str:
    return " ".join(str(error).strip().splitlines()[:3])


def _collect(attached: Any, hollow: MetaModel) -> None:
    """Note what each layer of the adapter stands for."""
    from peft.tuners.lora import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for full, module in attached.named_modules():
        name = bare_name(full)
        if isinstance(module, ModulesToSaveWrapper):
            for inner, parameter in module.modules_to_save[ADAPTER].named_parameters():
                hollow.replaced[f"{name}.{inner}"] = parameter.data
        elif isinstance(module, ParamWrapper):
            hollow.layers.setdefault(f"{name}.{module.parameter_name}", []).append(module)
        elif isinstance(module, BaseTunerLayer):
            own = dict(module.get_base_layer().named_parameters(recurse=False))
            changed = own if not _is_lora(module) else {"weight": None}
            for inner in changed:
                hollow.layers.setdefault(f"{name}.{inner}", []).append(module)
    for full, parameter in attached.named_parameters(remove_duplicate=False):
        name = bare_name(full)
        # Whatever the adapter brought in place of the backbone's own.
        if name in hollow.shapes and 0 not in parameter.stride() and parameter.numel() > 1:
            hollow.replaced.setdefault(name, parameter.data)


def _is_lora(layer: Any) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(layer, LoraLayer) and not any(layer.lora_bias.values())


def bare_name(full: str) -> str:
    """The name of a module or parameter in the model without an adapter."""
    parts = full.removeprefix(PREFIX).split(".")
    return ".".join(part for part in parts if part not in WRAPPERS)
