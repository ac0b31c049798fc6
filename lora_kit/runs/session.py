"""Open runs and adapters: the backbone loaded, the adapter attached."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_kit.adapter.attach import attach_saved
from lora_kit.adapter.peft_methods import RANK_NAMES
from lora_kit.adapter.saved import ADAPTER_CONFIG, BACKBONE, read_saved_head
from lora_kit.adapter.tokenizer import tokenizer_differences, with_adapter_tokenizer
from lora_kit.backbone.files import BackboneFiles, resolve
from lora_kit.backbone.fingerprint import require_saved_fingerprint
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone, load
from lora_kit.backbone.varlen import VARLEN
from lora_kit.data.training_data import TrainingData
from lora_kit.recipe.adapter import describe_method
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.open_model import LoadedModel, OpenModel, WithModel
from lora_kit.runtime.errors import AdapterError, BackboneError
from lora_kit.runtime.files import read_json


@dataclass(frozen=True)
class Session(WithModel):
    """A run with its backbone loaded and its adapter attached, passed from stage to stage.

    Attributes:
        run: run directory.
        recipe: recipe of the run.
        opened: owner of the backbone with the adapter as it was read from the run directory.
        data: training rows, if an earlier stage has read them.
    """

    run: RunDirectory
    recipe: Recipe
    opened: OpenModel
    data: TrainingData | None = None


def open_run(directory: Path, data: TrainingData | None = None, gpus: int | None = None) -> Session:
    """Load a finished run's backbone and adapter.

    Args:
        directory: run directory.
        data: training rows of the run, if they have been read already.
        gpus: overrides the recipe's `evaluation.gpus`.

    Raises:
        LoraKitError: if it is not a run, or the backbone is not the one that was trained on.
    """
    run = RunDirectory(directory)
    recipe = run.load_recipe()
    if gpus is not None:
        evaluation = recipe.evaluation.model_copy(update={"gpus": gpus})
        recipe = recipe.model_copy(update={"evaluation": evaluation})
    opened = OpenModel(partial(_load_run, run, recipe))
    opened.get()
    return Session(run, recipe, opened, data)


def _load_run(run: RunDirectory, recipe: Recipe) -> LoadedModel:
    outputs, gpus, spec = _outputs(run.adapter), recipe.evaluation.gpus, recipe.backbone
    if spec.attention == VARLEN:
        # This machine may not have it, and another attention gives the same but for its rounding.
        spec = spec.model_copy(update={"attention": "auto"})
    backbone = load(resolve(spec), spec, outputs, gpus)
    _require_fingerprint(backbone, run.adapter)
    model = attach_saved(backbone, run.adapter)
    if with_adapter_tokenizer(backbone, run.adapter) is not backbone:
        raise AdapterError(
            f"{run.adapter}: a run is trained with the backbone's tokenizer (got files of another "
            "one). Fix: remove them from the run"
        )
    return LoadedModel(backbone, model)


def _outputs(adapter: Path) -> HeadOutputs | None:
    """Return the outputs of an adapter's head; `None` for a language model."""
    if not (adapter / ADAPTER_CONFIG).is_file():
        return None  # refused when the adapter is attached
    found = read_saved_head(adapter)
    return found.outputs if found else None


def _require_fingerprint(backbone: Backbone, adapter: Path) -> None:
    trained_on = _saved_backbone(adapter)
    if trained_on and trained_on["fingerprint"]["digest"] != backbone.fingerprint.digest:
        now = asdict(backbone.fingerprint)
        changed = [part for part, value in now.items() if trained_on["fingerprint"][part] != value]
        raise AdapterError(
            f"{adapter}: was trained on another backbone than {backbone.files.reference} is now "
            f"(changed: {', '.join(changed)}). Fix: restore it, or name the right one with "
            "--backbone"
        )


def _saved_backbone(adapter: Path) -> dict[str, Any] | None:
    """Read our description of an adapter's backbone; `None` for another tool's adapter."""
    path = adapter / BACKBONE
    if not path.is_file():
        return None
    value = read_json(path, AdapterError)
    if not {"model", "quantization", "dtype", "fingerprint"} <= set(value):
        raise AdapterError(
            f"{path}: does not describe a backbone. Fix: delete it and use --backbone"
        )
    require_saved_fingerprint(
        value["fingerprint"], path, AdapterError, "delete the file and use --backbone"
    )
    return value


@dataclass(frozen=True)
class Subject(WithModel):
    """Subject of an evaluation or merge: a run, or an adapter without one.

    Attributes:
        opened: owner of the backbone with the adapter attached.
        adapter: adapter directory.
        session: the run; `None` for an adapter without one.
        spec: suites and arms, unless the caller names others.
        output: directory of the evaluation.
        title: title of the report.
        facts: facts for the report, by name.
    """

    opened: OpenModel
    adapter: Path
    session: Session | None
    spec: EvaluationSpec
    output: Path
    title: str
    facts: dict[str, str]


def evaluation_gpus(target: Path | Session) -> int:
    """Return the number of GPUs over which the model of a run or an adapter may be spread."""
    if isinstance(target, Session):
        return target.recipe.evaluation.gpus
    run = RunDirectory(target)
    return (run.load_recipe().evaluation if run.recipe.is_file() else EvaluationSpec()).gpus


def close_session(target: Path | Session) -> None:
    """Free the model of an open session; nothing is in memory for a directory."""
    if isinstance(target, Session):
        target.close()


def require_run_or_adapter(directory: Path) -> None:
    """Refuse with AdapterError a directory that is neither a run nor an adapter."""
    if not any((directory / name).is_file() for name in ("recipe.yaml", ADAPTER_CONFIG)):
        raise AdapterError(
            f"{directory}: neither a run (no recipe.yaml) nor an adapter (no {ADAPTER_CONFIG})"
        )


def open_subject(
    target: Path | Session, spec: BackboneSpec | None, gpus: int | None = None
) -> Subject:
    """Load a run or an adapter for evaluation or merging.

    Args:
        target: a run directory, an adapter directory, or an open session.
        spec: backbone of an adapter; its fields override what the adapter records.
        gpus: overrides the recipe's `evaluation.gpus`; ignored for an open session.

    Raises:
        LoraKitError: if the target is none of these, or does not fit its backbone.
    """
    if isinstance(target, Path):
        if not (target / "recipe.yaml").is_file():
            return _adapter_subject(target, spec, gpus or 1)
        if spec is not None:
            raise AdapterError(f"{target}: a run records its backbone. Fix: drop --backbone")
        target = open_run(target, gpus=gpus)
    return Subject(
        opened=target.opened,
        adapter=target.run.adapter,
        session=target,
        spec=target.recipe.evaluation,
        output=target.run.evaluation,
        title=target.run.root.resolve().name,
        facts={"Adapter": target.recipe.adapter.describe(), "Recipe": target.recipe.name},
    )


def _adapter_subject(directory: Path, spec: BackboneSpec | None, gpus: int) -> Subject:
    """Load an adapter directory of any tool; fields of `spec` override what it records."""
    require_run_or_adapter(directory)
    config = read_json(directory / ADAPTER_CONFIG, AdapterError)
    chosen = _backbone_of(directory, config, spec)
    try:
        files = resolve(chosen)
    except BackboneError as error:
        raise AdapterError(
            f"{directory}: {error}. Or name the base model's location with --backbone"
        ) from error
    opened = OpenModel(partial(_load_adapter, directory, files, chosen, gpus))
    differences = opened.get().tokenizer_differences
    facts = {"Adapter": _described(config)}
    if differences:
        facts["Tokenizer"] = f"the adapter's own (other {', '.join(differences)})"
    return Subject(
        opened=opened,
        adapter=directory,
        session=None,
        spec=EvaluationSpec(gpus=gpus),
        output=directory / "evaluation",
        title=directory.resolve().name,
        facts=facts,
    )


def _load_adapter(
    directory: Path, files: BackboneFiles, spec: BackboneSpec, gpus: int
) -> LoadedModel:
    backbone = load(files, spec, _outputs(directory), gpus)
    _require_fingerprint(backbone, directory)
    model = attach_saved(backbone, directory)
    own = with_adapter_tokenizer(backbone, directory)
    if own is backbone:
        return LoadedModel(own, model)
    return LoadedModel(own, model, tokenizer_differences(own.tokenizer, backbone.tokenizer))


def _backbone_of(
    directory: Path, config: dict[str, Any], given: BackboneSpec | None
) -> BackboneSpec:
    """Return the backbone that an adapter records, overridden by `given`."""
    chosen = given.model_dump(exclude_unset=True) if given else {}
    saved = _saved_backbone(directory)
    if saved is not None:
        # The attention implementation depends on the machine.
        known = set(BackboneSpec.model_fields) & set(saved) - {"attention"}
        said = {name: saved[name] for name in known}
    else:
        reference = config.get("base_model_name_or_path")
        if not reference and not chosen:
            raise AdapterError(f"{directory}: names no base model. Fix: add --backbone")
        # Other tools do not record the quantization.
        said = {"model": reference, "revision": config.get("revision"), "quantization": "none"}
    if chosen:
        # It belongs to the recorded location.
        said.pop("revision", None)
    try:
        return BackboneSpec.model_validate(said | chosen)
    except ValidationError as error:
        path = directory / (ADAPTER_CONFIG if saved is None else BACKBONE)
        raise AdapterError(_wrong_backbone(error, path, saved is None)) from error


def _wrong_backbone(error: ValidationError, path: Path, by_peft: bool) -> str:
    """Describe the first invalid field of a recorded backbone."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if by_peft and field == "model":
        field = "base_model_name_or_path"
    what = f"{field}: {first['input']!r}: " if field else ""
    return f"{path}: {what}{first['msg']}"


def _described(config: dict[str, Any]) -> str:
    """Return the method of a saved configuration with its rank or number of virtual tokens."""
    # AdaLoRA reduces its ranks to `target_r` and does not read `r`.
    rank = next((config[name] for name in ("target_r", *RANK_NAMES) if name in config), None)
    return describe_method(config["peft_type"].lower(), rank, config.get("num_virtual_tokens", 0))
