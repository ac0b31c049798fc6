"""What is worked on: a run or an adapter from disk, the adapter attached to its backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_kit.adapter.attach import ADAPTER_CONFIG, attach_saved
from lora_kit.backbone.load import Backbone, load
from lora_kit.backbone.files import resolve
from lora_kit.data.training_data import TrainingData
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import AdapterError, BackboneError
from lora_kit.runtime.files import read_json
from lora_kit.backbone.fingerprint import require_saved
from lora_kit.backbone.heads import saved_head
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runs.directory import RunDirectory

# What an adapter of ours says of its backbone.
SAVED = "backbone.json"


@dataclass(frozen=True)
class Session:
    """A run with its backbone loaded and its adapter attached, passed from stage to stage.

    Attributes:
        model: the backbone with the adapter as it was read from the run directory.
        data: the training rows, where a stage before has read them.
    """

    run: RunDirectory
    recipe: Recipe
    backbone: Backbone
    model: Any
    data: TrainingData | None = None


def open_run(directory: Path, data: TrainingData | None = None) -> Session:
    """Load a finished run's backbone and adapter.

    Args:
        directory: the run directory.
        data: the run's training rows, where they have been read already.

    Raises:
        LoraKitError: if it is no run, or the backbone is not the one that was trained on.
    """
    run = RunDirectory(directory)
    recipe = run.load_recipe()
    backbone = load(resolve(recipe.backbone), recipe.backbone, _classes(run.adapter))
    _require_fingerprint(backbone, run.adapter)
    return Session(run, recipe, backbone, attach_saved(backbone, run.adapter), data)


def _classes(adapter: Path) -> tuple[str, ...]:
    """The outputs of an adapter's head; none of a language model's."""
    if not (adapter / ADAPTER_CONFIG).is_file():
        return ()  # told when it is attached
    found = saved_head(adapter)
    return found.names if found else ()


def _require_fingerprint(backbone: Backbone, adapter: Path) -> None:
    trained_on = _saved_backbone(adapter)
    if trained_on and trained_on["fingerprint"]["digest"] != backbone.fingerprint.digest:
        now = asdict(backbone.fingerprint)
        changed = [part for part, value in now.items() if trained_on["fingerprint"][part] != value]
        raise AdapterError(
            f"{adapter}: trained on another backbone than {backbone.files.reference} is now; "
            f"different: {', '.join(changed)}"
        )


def _saved_backbone(adapter: Path) -> dict[str, Any] | None:
    """What an adapter of ours says of its backbone; `None` for one that another tool made."""
    path = adapter / SAVED
    if not path.is_file():
        return None
    value = read_json(path, AdapterError)
    if not {"model", "quantization", "dtype", "fingerprint"} <= set(value):
        raise AdapterError(f"{path}: says nothing of the backbone; delete it and use --backbone")
    require_saved(value["fingerprint"], path, AdapterError, "delete the file and use --backbone")
    return value


@dataclass(frozen=True)
class Subject:
    """What is evaluated, whether a run or an adapter alone.

    Attributes:
        session: of a run; `None` for an adapter alone, of which only the weights are known.
        spec: what is evaluated unless it is said otherwise.
    """

    backbone: Backbone
    model: Any
    adapter: Path
    session: Session | None
    spec: EvaluationSpec
    output: Path
    title: str
    facts: dict[str, str]


def open_subject(target: Path | Session, spec: BackboneSpec | None) -> Subject:
    """Make ready what is to be evaluated.

    Args:
        target: a run directory, an adapter directory, or an open session.
        spec: of an adapter's backbone: what is set in it comes before what the adapter says.

    Raises:
        LoraKitError: if the target is none of these, or does not fit its backbone.
    """
    if isinstance(target, Path):
        if not (target / "recipe.yaml").is_file():
            return _adapter_subject(target, spec)
        if spec is not None:
            raise AdapterError(f"{target}: a run knows its backbone; leave --backbone out")
        target = open_run(target)
    adapter = target.recipe.adapter
    return Subject(
        target.backbone,
        target.model,
        target.run.adapter,
        target,
        target.recipe.evaluation,
        target.run.evaluation,
        target.run.root.resolve().name,
        {"Adapter": adapter.describe(), "Recipe": target.recipe.name},
    )


def _adapter_subject(directory: Path, spec: BackboneSpec | None) -> Subject:
    """An adapter directory of any tool; what `spec` says of the backbone comes before its own."""
    config_path = directory / ADAPTER_CONFIG
    if not config_path.is_file():
        raise AdapterError(
            f"{directory}: neither a run (no recipe.yaml) nor an adapter (no {ADAPTER_CONFIG})"
        )
    config = read_json(config_path, AdapterError)
    chosen = _backbone_of(directory, config, spec)
    try:
        files = resolve(chosen)
    except BackboneError as error:
        raise AdapterError(
            f"{directory}: {error}. Say with --backbone where its base model is on this machine"
        ) from error
    backbone = load(files, chosen, _classes(directory))
    _require_fingerprint(backbone, directory)
    return Subject(
        backbone,
        attach_saved(backbone, directory),
        directory,
        None,
        EvaluationSpec(),
        directory / "evaluation",
        directory.resolve().name,
        {"Adapter": _described(config)},
    )


def _backbone_of(
    directory: Path, config: dict[str, Any], given: BackboneSpec | None
) -> BackboneSpec:
    """What an adapter says of its backbone, behind what is given of it."""
    chosen = given.model_dump(exclude_unset=True) if given else {}
    saved = _saved_backbone(directory)
    if saved is not None:
        # Not how attention was computed in training: that is a matter of the machine.
        known = set(BackboneSpec.model_fields) & set(saved) - {"attention"}
        said = {name: saved[name] for name in known}
    else:
        reference = config.get("base_model_name_or_path")
        if not reference and not chosen:
            raise AdapterError(f"{directory}: names no base model; say which with --backbone")
        # Another tool's adapter says nothing of quantization.
        said = {"model": reference, "revision": config.get("revision"), "quantization": "none"}
    if chosen:
        # Of where the model lay in training.
        said.pop("revision", None)
    try:
        return BackboneSpec.model_validate(said | chosen)
    except ValidationError as error:
        path = directory / (ADAPTER_CONFIG if saved is None else SAVED)
        raise AdapterError(_wrong_backbone(error, path, saved is None)) from error


def _wrong_backbone(error: ValidationError, path: Path, by_peft: bool) -> str:
    """The first thing that a file says of a backbone and no backbone can be."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if by_peft and field == "model":
        field = "base_model_name_or_path"
    what = f"{field}: {first['input']!r}: " if field else ""
    return f"{path}: {what}{first['msg']}"


def _described(config: dict[str, Any]) -> str:
    """An adapter of any tool in words."""
    method = config.get("peft_type", "unknown").lower()
    if "num_virtual_tokens" in config:
        return f"{method}, {config['num_virtual_tokens']} virtual tokens"
    return f"{method}, rank {config.get('r', '?')}"
