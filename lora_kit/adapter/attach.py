"""Attaching of adapters to a backbone, new or saved, and their coverage of its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from lora_kit.adapter.input_casts import leave_out_input_casts
from lora_kit.adapter.name_checks import (
    require_known_names,
    require_known_tokens,
    require_target_modules,
)
from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER, peft_configuration
from lora_kit.adapter.quick_patterns import require_quick_patterns
from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.adapter.saved_configuration import (
    MISMATCH_ERRORS,
    PREFIX,
    read_configuration,
    require_known_options,
)
from lora_kit.adapter.vocabulary import bare_key, resize_vocabulary, saved_vocabulary_rows
from lora_kit.adapter.weights import require_sound_weights, require_weight_file
from lora_kit.backbone.heads import reinitialize
from lora_kit.backbone.load import Backbone
from lora_kit.backbone.masked import report_new_layers
from lora_kit.modeling.modes import BackboneValue, eval_mode, keep_backbone_values
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.initialisations import SUBTRACTED, initialisation_of
from lora_kit.runtime.errors import AdapterError, first_line

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class ClassCoverage:
    """Number of modules of one class, and of those with an adapter."""

    module_class: str
    adapted: int
    total: int


@dataclass(frozen=True)
class Coverage:
    """Modules and parameters that an adapter covers."""

    classes: tuple[ClassCoverage, ...]
    trainable_parameters: int
    total_parameters: int

    def to_dict(self) -> dict[str, object]:
        """Return the coverage as a JSON object."""
        return asdict(self)


def attach(backbone: Backbone, spec: AdapterSpec, seed: int) -> PeftModel:
    """Attach a new adapter with float32 weights, whatever the backbone's dtype.

    Args:
        backbone: backbone to adapt, changed in place.
        spec: adapter section of the recipe.
        seed: seed of the initial weights; a backbone without weights gets an adapter without.

    Raises:
        AdapterError: if a target module does not exist, or the adapter covers no module.
    """
    from accelerate.utils import set_seed

    from lora_kit.adapter.virtual_tokens import require_virtual_tokens_attended

    set_seed(seed)
    if backbone.head is not None:
        reinitialize(backbone.model, backbone.head)
    extra = backbone.head.extra_modules if backbone.head else ()
    with nullcontext() if backbone.has_weights else torch.device("meta"):
        model = wrap_with_adapter(backbone.model, spec, extra)
    _set_base_model_name(model, backbone)
    coverage(model)
    report_new_layers(backbone.head, backbone.files.reference)
    if backbone.has_weights:
        with eval_mode(model):
            require_virtual_tokens_attended(model, f"adapter.method: {spec.method}")
    if backbone.head is not None:
        for name in backbone.head.trained_modules:
            parameters = backbone.model.get_submodule(name).parameters()
            if not any(parameter.requires_grad for parameter in parameters):
                raise AdapterError(
                    f"adapter.method: {spec.method}: PEFT neither trains nor saves a head with "
                    "this method, so the head would keep its random weights. Fix: use lora"
                )
    return model


def wrap_with_adapter(
    model: torch.nn.Module, spec: AdapterSpec, extra_modules: Sequence[str] = ()
) -> PeftModel:
    """Wrap a frozen model with a new adapter in float32; works on the meta device.

    Args:
        model: model to wrap.
        spec: adapter section of the recipe.
        extra_modules: modules trained and saved in full, besides a classifier's head.

    Raises:
        AdapterError: if the backbone lacks a named module or token, or the method does not support
            an option or a layer.
    """
    from peft import get_peft_model

    from lora_kit.adapter.virtual_tokens import add_virtual_tokens

    if isinstance(spec.target_modules, list):
        require_target_modules(model, spec.target_modules)
    try:
        config = peft_configuration(spec, model, extra_modules)
        require_known_names(model, config)
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise AdapterError(
            f"adapter: {spec.method}: PEFT refuses the configuration ({first_line(error, 3)}). "
            "Fix: change the options or the target modules"
        ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    leave_out_input_casts(adapted)
    add_virtual_tokens(adapted)
    return adapted


def attach_saved(backbone: Backbone, directory: Path) -> PeftModel:
    """Attach a saved adapter to a backbone, frozen.

    Raises:
        AdapterError: if the directory is not a PEFT adapter in safetensors, does not fit the
            backbone.
    """
    from lora_kit.adapter.virtual_tokens import require_virtual_tokens_attended

    attached = load_adapter(backbone.model, backbone.files.reference, directory)
    with eval_mode(attached):
        require_virtual_tokens_attended(attached, str(directory))
    return attached


def load_adapter(base: torch.nn.Module, reference: str, directory: Path) -> PeftModel:
    """Attach a saved adapter to a model, frozen.

    Args:
        base: model without an adapter, changed in place.
        reference: name of the model in errors.
        directory: directory of the adapter.

    Raises:
        AdapterError: if the directory is not a PEFT adapter in safetensors, or does not fit.
    """
    from peft import PeftModel

    from lora_kit.adapter.virtual_tokens import add_virtual_tokens, require_supported_prompt_method

    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        raise AdapterError(
            f"{directory}: no {ADAPTER_CONFIG}. Fix: name an adapter directory, with "
            f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} as written by PEFT's save_pretrained"
        )
    require_weight_file(directory, AdapterError)
    config = read_configuration(path, AdapterError)
    require_supported_prompt_method(config, directory)
    require_known_options(config, path, AdapterError)
    require_sound_weights(directory, AdapterError)
    names = [name for name, _ in (*base.named_modules(), *base.named_parameters())]
    require_quick_patterns(vars(config), names, f"{path}: ")
    rows = saved_vocabulary_rows(base, directory, AdapterError)
    if rows:
        resize_vocabulary(base, rows, (reference, str(directory)))
    require_known_tokens(base, config, f"{path}: ")
    in_place = _parameters_in_full(base, directory)
    # PEFT would read the weights to the first GPU, in every process and with a model on the CPU.
    device = str(next(base.parameters()).device)
    try:
        model = PeftModel.from_pretrained(
            base, str(directory), config=config, is_trainable=False, torch_device=device
        )
    except MISMATCH_ERRORS as error:
        raise AdapterError(
            f"{directory}: this adapter does not fit {reference} ({first_line(error, 3)}). Fix: "
            "name the backbone that it was trained on"
        ) from error
    unloaded = _unloaded_keys(model, directory)
    if unloaded:
        raise AdapterError(
            f"{directory}: {len(unloaded)} tensors of the adapter match no module of {reference} "
            f"(first: {unloaded[0]}). Fix: name the backbone that it was trained on"
        )
    keep_backbone_values(model, in_place)
    add_virtual_tokens(model)
    return model


def _parameters_in_full(base: torch.nn.Module, directory: Path) -> list[BackboneValue]:
    """Return the parameters that the adapter holds in full, with the backbone's values.

    PEFT loads biases and resized embeddings into the backbone's own parameters.
    """
    with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
        names = {bare_key(key) for key in file.keys()}  # noqa: SIM118
    return [
        (parameter, parameter.data.clone())
        for name, parameter in base.named_parameters()
        if name in names
    ]


def _set_base_model_name(model: PeftModel, backbone: Backbone) -> None:
    # PEFT writes the directory that the backbone was loaded from: a cache of this machine.
    for config in model.peft_config.values():
        config.base_model_name_or_path = backbone.spec.model
        if getattr(config, "tokenizer_name_or_path", None):
            config.tokenizer_name_or_path = backbone.spec.model
        config.revision = backbone.spec.revision


def _unloaded_keys(model: PeftModel, directory: Path) -> list[str]:
    from peft import get_peft_model_state_dict

    with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    # PEFT saves an embedding that it adapts, and loads it into the backbone's parameter.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = {*state, *parameters}
    # PEFT saves a resized embedding that is trained in full twice, and so the trained tokens of a
    # tied one.
    return sorted(
        key
        for key in saved - known
        if not {f"{key}.{DEFAULT_ADAPTER}", f"{PREFIX}{bare_key(key)}"} & known
    )


def coverage(model: PeftModel, spec: AdapterSpec | None = None) -> Coverage:
    """Count modules with an adapter, for each class of module that holds weights.

    Args:
        model: model with the adapter attached.
        spec: adapter section of the recipe. Some initialisations freeze half of each factor;
            without a spec, frozen halves are counted as trainable.

    Raises:
        AdapterError: if no module has an adapter.
    """
    from peft.tuners.tuners_utils import BasePromptEncoder, BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    adapted: Counter[str] = Counter()
    total: Counter[str] = Counter()
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            base = module.original_module
        elif isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
        elif isinstance(module, BasePromptEncoder):
            # A prompt encoder holds the virtual tokens and adapts no other module.
            base = module
        else:
            continue
        adapted[type(base).__name__] += 1
        total[type(base).__name__] += 1
        inside.update(id(child) for child in module.modules())
    for module in model.modules():
        has_weights = next(module.parameters(recurse=False), None) is not None
        if id(module) not in inside and has_weights:
            total[type(module).__name__] += 1
    if not adapted:
        raise AdapterError(
            "adapter.target_modules: no module has an adapter, so nothing would be trained. Fix: "
            "name modules of the backbone, or use all-linear"
        )
    trainable, parameters = model.get_nb_trainable_parameters()
    if spec is not None and initialisation_of(spec) in SUBTRACTED:
        named = model.named_parameters()
        trainable -= sum(p.numel() for n, p in named if p.requires_grad and "lora_" in n) // 2
    return Coverage(
        classes=tuple(ClassCoverage(name, adapted[name], total[name]) for name in sorted(total)),
        trainable_parameters=trainable,
        total_parameters=parameters,
    )
