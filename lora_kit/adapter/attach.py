"""The adapter: PEFT method -> configuration -> attached to the backbone, and what it covers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lora_kit.adapter.named_parts import require_named, require_targets, require_tokens
from lora_kit.adapter.peft_methods import configuration
from lora_kit.adapter.saved_configuration import NOT_FITTING, read_configuration, require_options
from lora_kit.backbone.heads import begin_anew
from lora_kit.backbone.load import Backbone
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.initialisations import SUBTRACTED, initialisation_of
from lora_kit.runtime.errors import AdapterError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import file_sha256

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class ClassCoverage:
    """How many modules of one class there are, and how many got an adapter."""

    module_class: str
    adapted: int
    total: int


@dataclass(frozen=True)
class Coverage:
    """What an adapter reaches."""

    classes: tuple[ClassCoverage, ...]
    trainable_parameters: int
    total_parameters: int

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def attach(backbone: Backbone, spec: AdapterSpec, seed: int) -> PeftModel:
    """Attach a new adapter, its weights in float32 whatever the backbone computes in.

    The same seed gives the same initial weights.

    Raises:
        AdapterError: if a target is misspelt or the adapter reaches nothing.
    """
    from accelerate.utils import set_seed

    from lora_kit.adapter.virtual_tokens import require_heeded

    set_seed(seed)
    if backbone.head is not None:
        begin_anew(backbone.model, backbone.head)
    model = wrapped(backbone.model, spec, backbone.head.beside if backbone.head else ())
    _name_base_model(model, backbone)
    coverage(model)
    with eval_mode(model):
        require_heeded(model, f"adapter.method: {spec.method}")
    if backbone.head is not None:
        _require_trained_head(backbone.model.get_submodule(backbone.head.module), spec)
    return model


def _require_trained_head(head: torch.nn.Module, spec: AdapterSpec) -> None:
    if not any(parameter.requires_grad for parameter in head.parameters()):
        raise AdapterError(
            f"adapter.method: {spec.method}: PEFT neither trains nor saves a classifier's head "
            "with it, which would stay as random as it begins; use lora"
        )


def wrapped(model: torch.nn.Module, spec: AdapterSpec, beside: Sequence[str] = ()) -> PeftModel:
    """A frozen model with a new adapter in float32, be the model real or only its shapes.

    Args:
        model: to wrap.
        spec: of the adapter.
        beside: modules that are trained and saved whole besides a classifier's head.

    Raises:
        AdapterError: if a name or a token is not the backbone's, or the method takes other options
            or layers.
    """
    from peft import get_peft_model

    from lora_kit.adapter.virtual_tokens import stand_before

    if isinstance(spec.target_modules, list):
        require_targets(model, spec.target_modules)
    try:
        config = configuration(spec, model, beside)
        require_named(model, config)
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise AdapterError(f"adapter: {spec.method}: {_first_lines(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    stand_before(adapted)
    return adapted


# Of a configuration, what says where it came from and changes nothing of what it computes.
PROVENANCE = (
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "auto_mapping",
)


def adapter_sha256(directory: Path) -> str:
    """The sha256 of an adapter's weights and configuration: which one a verdict or a merge is of.

    The same weights under another alpha are another adapter.
    """
    config = read_json(directory / ADAPTER_CONFIG, AdapterError)
    kept = {name: value for name, value in config.items() if name not in PROVENANCE}
    for name, value in kept.items():
        # PEFT writes sets, whose order is another one each time.
        kept[name] = sorted(value) if isinstance(value, list) else value
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(file_sha256(directory / ADAPTER_WEIGHTS).encode())
    return digest.hexdigest()


def attach_saved(backbone: Backbone, directory: Path) -> PeftModel:
    """Attach an adapter from disk, frozen.

    Raises:
        AdapterError: if the directory is no PEFT adapter in safetensors, or does not fit.
    """
    from lora_kit.adapter.virtual_tokens import require_heeded

    attached = attach_to(backbone.model, backbone.files.reference, directory)
    with eval_mode(attached):
        require_heeded(attached, str(directory))
    for config in attached.peft_config.values():
        if getattr(config, "bias", "none") != "none":
            raise AdapterError(
                f"{directory}: bias: {config.bias}: PEFT trains biases of the backbone in their "
                "place, so that the base is not there any more when the adapter is switched off, "
                "and there is nothing to measure it against"
            )
    return attached


def attach_to(base: torch.nn.Module, reference: str, directory: Path) -> PeftModel:
    """Attach an adapter from disk, frozen, to a model by itself.

    Args:
        base: the model.
        reference: what it is called in errors.
        directory: of the adapter.

    Raises:
        AdapterError: as `attach_saved`.
    """
    from peft import PeftModel

    from lora_kit.adapter.virtual_tokens import require_known, stand_before

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise AdapterError(
                f"{directory}: no {name}; an adapter directory has {ADAPTER_CONFIG} and "
                f"{ADAPTER_WEIGHTS} (save_pretrained of PEFT writes both)"
            )
    path = directory / ADAPTER_CONFIG
    config = read_configuration(path, AdapterError)
    require_known(config, directory)
    require_options(config, path, AdapterError)
    require_tokens(base, config, f"{path}: ")
    try:
        model = PeftModel.from_pretrained(base, str(directory), config=config, is_trainable=False)
    except NOT_FITTING as error:
        raise AdapterError(
            f"{directory}: this adapter does not fit {reference}: {_first_lines(error)}"
        ) from error
    missing = _unloaded_keys(model, directory)
    if missing:
        raise AdapterError(
            f"{directory}: {len(missing)} tensors of the adapter have no place in "
            f"{reference}, the first: {missing[0]}. Was it trained on another "
            "backbone?"
        )
    stand_before(model)
    return model


def _name_base_model(model: PeftModel, backbone: Backbone) -> None:
    # PEFT writes the directory that the backbone was loaded from, which is a cache of this machine.
    for config in model.peft_config.values():
        config.base_model_name_or_path = backbone.spec.model
        if getattr(config, "tokenizer_name_or_path", None):
            config.tokenizer_name_or_path = backbone.spec.model
        config.revision = backbone.spec.revision


def _first_lines(error: Exception, lines: int = 3) -> str:
    return " ".join(str(error).strip().splitlines()[:lines])


def _unloaded_keys(model: PeftModel, directory: Path) -> list[str]:
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    # PEFT saves an embedding that it adapts, and puts it in the place of the backbone's.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return sorted(saved - set(state) - set(parameters))


def coverage(model: PeftModel, spec: AdapterSpec | None = None) -> Coverage:
    """Count, for each class of module that holds weights, how many got an adapter.

    Args:
        model: with the adapter attached.
        spec: of the adapter, some of whose starts hold half of each factor still; without it, what
            is held still is counted as trained.

    Raises:
        AdapterError: if none did.
    """
    from peft.tuners.tuners_utils import BasePromptEncoder, BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    adapted: Counter[str] = Counter()
    total: Counter[str] = Counter()
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            is_copy = isinstance(module, ModulesToSaveWrapper)
            base = module.original_module if is_copy else module.get_base_layer()
            name = type(base).__name__
            adapted[name] += 1
            total[name] += 1
            inside.update(id(child) for child in module.modules())
        elif isinstance(module, BasePromptEncoder):
            # It adapts nothing but itself: what makes the virtual tokens.
            adapted[type(module).__name__] += 1
            total[type(module).__name__] += 1
            inside.update(id(child) for child in module.modules())
    for module in model.modules():
        has_weights = next(module.parameters(recurse=False), None) is not None
        if id(module) not in inside and has_weights:
            total[type(module).__name__] += 1
    if not adapted:
        raise AdapterError(
            "adapter.target_modules: no module got an adapter; nothing would be trained"
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
