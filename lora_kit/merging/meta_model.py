"""Attach an adapter to a meta model: all of PEFT's layers, none of the backbone's weights.

Every parameter of the backbone is a single number, expanded to the right shape. PEFT attaches its
layers to the model and loads the adapter's tensors, so that PEFT itself decides which tensor
belongs where and how a method changes a weight. A layer gets its real weight when it is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER
from lora_kit.adapter.quick_patterns import require_quick_patterns
from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.adapter.saved_configuration import MISMATCH_ERRORS, PREFIX
from lora_kit.adapter.vocabulary import saved_vocabulary_rows
from lora_kit.adapter.weights import require_sound_weights
from lora_kit.backbone.masked import model_class
from lora_kit.backbone.open_files import build_model, open_config, refusing
from lora_kit.merging.arithmetic import (
    ReadParameter,
    ReadRows,
    add_lora_update,
    is_plain_lora,
    merge_with_peft,
    require_finite,
)
from lora_kit.merging.methods import adapter_configuration, residual_initialization
from lora_kit.runtime.errors import MergeError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig, PreTrainedModel

# Parts that PEFT inserts between the name of a module and that of its parameters.
TOKENS = ".token_adapter.trainable_tokens_delta"
WRAPPERS = ("base_layer", "token_adapter", "original_module")


@dataclass(frozen=True)
class MetaModel:
    """Model without weights, and an adapter's changes to its parameters.

    Parameters are named as in the model without an adapter.

    Attributes:
        model: model with the adapter's layers attached.
        shapes: shapes of all parameters and persistent buffers.
        transposed: names of the modules that store their weight as (in, out).
        conversions: transformers' rules from checkpoint tensors to parameters.
        aliases: all names of a tied parameter, by each of its names.
        layers: PEFT layers that change a parameter, the outermost first, by parameter.
        replaced: tensors that the adapter stores in place of a parameter, by parameter.
        residual_init: initialization that replaced the adapted weights by a residual; empty if
            none.
    """

    model: PreTrainedModel
    shapes: Mapping[str, tuple[int, ...]]
    transposed: frozenset[str]
    conversions: Sequence[Any]
    aliases: Mapping[str, frozenset[str]]
    layers: dict[str, list[Any]] = field(default_factory=dict)
    replaced: dict[str, torch.Tensor] = field(default_factory=dict)
    residual_init: str = ""

    @property
    def changed(self) -> frozenset[str]:
        """Names of all parameters that the adapter changes or replaces."""
        return frozenset(self.layers) | frozenset(self.replaced)

    @property
    def untied(self) -> frozenset[str]:
        """Names of tied parameters of which the adapter changes at least one."""
        return frozenset(
            name for changed in self.changed for name in self.aliases.get(changed, frozenset())
        )

    def merged_parameter(
        self, name: str, read_parameter: ReadParameter, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return a parameter with the adapter merged: the sum in float32, rounded once.

        Args:
            name: name of a parameter in `changed`.
            read_parameter: callable that returns a parameter of the backbone by name.
            dtype: dtype of the result.

        Returns:
            The parameter, of the shape in `shapes` or that of its replacement.

        Raises:
            MergeError: if PEFT cannot merge the layer, or a value is not finite.
        """
        layers = self.layers.get(name)
        if layers is None:
            return require_finite(name, self.replaced[name].to(dtype))
        if self.is_plain_lora(name):
            base = self._base_parameter(name, read_parameter)
            blocks = self.merged_rows(name, lambda first, last: base[first:last], dtype)
            return torch.cat(list(blocks))
        read_base = partial(self._base_parameter, read_parameter=read_parameter)
        merged = merge_with_peft(name, layers, read_base, self.residual_init)
        return require_finite(name, merged.to(dtype))

    def is_plain_lora(self, name: str) -> bool:
        """Return True if the parameter gets a low-rank update and nothing else."""
        layers = self.layers.get(name, ())
        return len(layers) == 1 and is_plain_lora(layers[0]) and not self.residual_init

    def merged_rows(
        self, name: str, read_rows: ReadRows, dtype: torch.dtype
    ) -> Iterator[torch.Tensor]:
        """Yield `merged_parameter` of a plain LoRA in blocks of rows.

        Args:
            name: name of a parameter for which `is_plain_lora` holds.
            read_rows: callable that returns rows of the backbone's parameter.
            dtype: dtype of the result.

        Raises:
            MergeError: if a value is not finite.
        """
        return add_lora_update(name, self.layers[name][0], self.shapes[name], read_rows, dtype)

    def _base_parameter(self, name: str, read_parameter: ReadParameter) -> torch.Tensor:
        # PEFT saves the base weight of an adapted embedding with the adapter, and merges in place.
        return self.replaced[name].clone() if name in self.replaced else read_parameter(name)


def build_meta_model(base: Path, adapter: Path | None, masked: bool = False) -> MetaModel:
    """Build the meta model of a backbone, with an adapter from disk attached.

    Args:
        base: directory of the backbone.
        adapter: directory of the adapter; `None` to attach none.
        masked: true for a masked language model.

    Raises:
        MergeError: if the adapter does not fit the backbone, or lacks a tensor.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.pytorch_utils import Conv1D

    if adapter is not None:
        require_sound_weights(adapter, MergeError)
    model = _model_without_weights(base, adapter, masked)
    # Read first: PEFT renames parameters when it attaches.
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    transposed = frozenset(name for name, m in model.named_modules() if isinstance(m, Conv1D))
    meta = MetaModel(
        model, shapes, transposed, get_model_conversion_mapping(model), _aliases(model)
    )
    if adapter is None:
        return meta
    config = adapter_configuration(adapter)
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    require_quick_patterns(vars(config), names, f"{adapter / ADAPTER_CONFIG}: ", MergeError)
    residual_init = residual_initialization(config, adapter)
    if residual_init:
        # The initialization needs real weights; `merge_with_peft` applies it layer by layer.
        config.init_lora_weights = True
    attached = _attach(model, config, adapter)
    meta = replace(meta, residual_init=residual_init)
    _collect_changes(attached, meta)
    return meta


def _model_without_weights(base: Path, adapter: Path | None, masked: bool) -> PreTrainedModel:
    config = open_config(base, MergeError)
    if getattr(config, "quantization_config", None):
        raise MergeError(
            f"{base}: checkpoint is quantized, which would round the adapter's update away (got a "
            "quantization_config). Fix: merge into the checkpoint that it was made from"
        )
    model = _built(base, config, masked)
    if adapter is not None and (rows := saved_vocabulary_rows(model, adapter, MergeError)):
        config.get_text_config().vocab_size = rows
        model = _built(base, config, masked)
    # Keyed by identity, so that tied parameters share one placeholder.
    placeholders: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            # One number, expanded to the shape.
            expanded = torch.zeros(()).expand(parameter.shape)
            placeholder = torch.nn.Parameter(expanded, requires_grad=False)
            setattr(module, name, placeholders.setdefault(id(parameter), placeholder))
    return model


def _built(base: Path, config: PretrainedConfig, masked: bool) -> PreTrainedModel:
    """Build the model of a configuration on the meta device."""
    with (
        refusing(
            f"{base / 'config.json'}: transformers cannot build the model",
            "restore the file from the model's source",
            MergeError,
        ),
        torch.device("meta"),
    ):
        model: PreTrainedModel = build_model(model_class(config, str(base), masked), config)
    model.tie_weights()
    return model


def _aliases(model: PreTrainedModel) -> dict[str, frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: frozenset(group) for group in names.values() if len(group) > 1 for name in group}


def _attach(model: PreTrainedModel, config: PeftConfig, adapter: Path) -> Any:
    from peft import get_peft_model
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict

    path = adapter / ADAPTER_WEIGHTS
    try:
        weights = load_peft_weights(str(adapter), device="cpu")
        attached = get_peft_model(model, config, DEFAULT_ADAPTER, low_cpu_mem_usage=True)
        report = set_peft_model_state_dict(
            attached, weights, DEFAULT_ADAPTER, low_cpu_mem_usage=True
        )
    except MISMATCH_ERRORS as error:
        short = " ".join(str(error).strip().splitlines()[:3])
        raise MergeError(
            f"{path}: does not fit the backbone (got {short}). Fix: merge into the backbone that "
            "the adapter was trained on"
        ) from error
    unexpected = sorted(key for key in report.unexpected_keys if not _is_duplicate(key, weights))
    if unexpected:
        raise MergeError(
            f"{path}: {len(unexpected)} tensors have no place in the backbone (got "
            f"{unexpected[0]} first). Fix: merge into the backbone that the adapter was trained on"
        )
    _require_complete(attached, weights, path)
    return attached


def _require_complete(attached: Any, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that lack a tensor which PEFT would save, trained biases included."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(attached, save_embedding_layers=False)
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise MergeError(
            f"{path}: incomplete: {ADAPTER_CONFIG} needs {len(missing)} tensors that are missing "
            f"(got none for {missing[0].removeprefix(PREFIX)}). Fix: copy or save the adapter "
            "again"
        )


def _is_duplicate(key: str, weights: Mapping[str, torch.Tensor]) -> bool:
    """Return True if PEFT saved a tensor twice, as it does for a resized or tied embedding."""
    if key.endswith(TOKENS):
        twins = [name for name in weights if name.endswith(TOKENS) and name != key]
    else:
        twins = [key.replace(".modules_to_save.", ".")] if ".modules_to_save." in key else []
    return any(name in weights and torch.equal(weights[name], weights[key]) for name in twins)


def _collect_changes(attached: Any, meta: MetaModel) -> None:
    """Fill `layers` and `replaced` of the meta model from the attached PEFT model."""
    from peft.tuners.lora import LoraLayer, ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for full, module in attached.named_modules():
        name = bare_name(full)
        if isinstance(module, ModulesToSaveWrapper):
            for inner, parameter in module.modules_to_save[DEFAULT_ADAPTER].named_parameters():
                meta.replaced[f"{name}.{inner}"] = parameter.data
        elif isinstance(module, ParamWrapper):
            meta.layers.setdefault(f"{name}.{module.parameter_name}", []).append(module)
        elif isinstance(module, BaseTunerLayer):
            own = dict(module.get_base_layer().named_parameters(recurse=False))
            # LoRA without `lora_bias` changes the weight only.
            weight_only = isinstance(module, LoraLayer) and not any(module.lora_bias.values())
            for inner in {"weight": None} if weight_only else own:
                meta.layers.setdefault(f"{name}.{inner}", []).append(module)
    for full, parameter in attached.named_parameters(remove_duplicate=False):
        name = bare_name(full)
        # Parameters that are no placeholders were loaded from the adapter.
        if name in meta.shapes and 0 not in parameter.stride() and parameter.numel() > 1:
            # PEFT loads them into the backbone's own parameter, and so into a tied one.
            for alias in {name} | meta.aliases.get(name, frozenset()):
                meta.replaced.setdefault(alias, parameter.data)


def bare_name(full: str) -> str:
    """Return the name of a module or parameter in the model without an adapter."""
    parts = full.removeprefix(PREFIX).split(".")
    return ".".join(part for part in parts if part not in WRAPPERS)
