"""The model card, in the form that the hub reads: a function of manifest, verdict and merge alone.

Nothing else goes into it, so that whoever has a release can make its card anew and compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from lora_kit.backbone.files import ALIASES
from lora_kit.evaluation.reporting.escaping import markdown, visible
from lora_kit.evaluation.reporting.notation import percent
from lora_kit.releasing.licences import Licensed, Note, hub_license, notes
from lora_kit.releasing.manifest import Manifest
from lora_kit.releasing.views import TaskView, lost_slices, task_views

TEMPLATE = Path(__file__).parent / "card.md.j2"
MARK = "---\n"


def model_card(manifest: Manifest, verdict: Mapping[str, Any], merge: Mapping[str, Any]) -> str:
    """The card of a release.

    Args:
        manifest: all of it but for `files`, which the card is one of.
        verdict: as it lies on disk.
        merge: the merge's record.

    Returns:
        Front matter with `model-index`, and Markdown in which everything that comes from rows,
        models and recipes is escaped.
    """
    tasks, found = task_views(verdict), notes(manifest.works)
    base = next(work for work in manifest.works if work.used == "base")
    body = _environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = body.render(
        manifest=manifest,
        recipe=manifest.resolved,
        verdict=verdict,
        merge=merge,
        tasks=tasks,
        retained=[task for task in tasks if task.role == "retention"],
        lost_slices=lost_slices(verdict),
        base=base,
        taken_from=_packaged(manifest),
        works=_listed(manifest.works),
        notes=found,
        confidences=", ".join(_confidences(tasks)),
    )
    return f"{MARK}{_front_matter(manifest, tasks, base, found)}\n{MARK}\n{text}"


def same_card(written: str, expected: str) -> bool:
    """Whether a card says what it has to: the same front matter, the same text byte by byte.

    Front matter is compared as data: another version of the library may break its lines elsewhere.
    """
    of_written, of_expected = _parts(written), _parts(expected)
    return of_written is not None and of_written == of_expected


def _parts(card: str) -> tuple[Any, str] | None:
    if not card.startswith(MARK):
        return None
    head, mark, body = card.removeprefix(MARK).partition(f"\n{MARK}")
    try:
        return (yaml.safe_load(head), body) if mark else None
    except yaml.YAMLError:
        return None


def _front_matter(
    manifest: Manifest, tasks: Sequence[TaskView], base: Licensed, found: Sequence[Note]
) -> str:
    from huggingface_hub import ModelCardData

    recipe = manifest.resolved
    trained_on = [w for w in manifest.works if w.used in ("train", "replay", "retention") and w.hub]
    license_ = hub_license(base, found)
    metadata = ModelCardData(
        base_model=base.work if base.hub else None,
        base_model_relation="finetune",
        datasets=list(dict.fromkeys(work.work for work in trained_on)) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["lora_kit", recipe.adapter.method, recipe.backbone.quantization],
        model_name=manifest.name,
        eval_results=[_result(task) for task in tasks if task.merged_score is not None],
        license=license_.get("license"),
        license_name=license_.get("license_name"),
    )
    return str(metadata.to_yaml()).strip()


def _result(task: TaskView) -> Any:
    """One entry of `model-index`: the merged model, which is what lies at the root.

    The format has no place for an interval. It stands in the metric's name, which people read, and
    in its arguments, which programs do; the table in the card has it too.
    """
    from huggingface_hub import EvalResult

    raw, written = task.task["merged_interval"], task.merged
    unit = task.task["unit"]
    return EvalResult(
        task_type="text-generation",
        # The hub groups results by type and configuration; the name alone would not part tasks.
        dataset_type=visible(task.suite),
        dataset_config=visible(task.task["task"]),
        dataset_name=visible(task.name),
        metric_type=unit,
        metric_value=round(task.merged_score or 0.0, 6),
        metric_name=f"{unit}; from the base {written.delta} {written.unit}, "
        f"{percent(raw['confidence'])} interval {written.low} to {written.high}",
        metric_args={
            "base": task.task["base"],
            "difference": raw["delta"],
            "low": raw["low"],
            "high": raw["high"],
            "confidence": raw["confidence"],
            "items": raw["items"],
            "clusters": raw["clusters"],
            "decision": task.task["merged"],
        },
    )


def _packaged(manifest: Manifest) -> str | None:
    """The file in a package that an alias led to; what came from the hub has a revision."""
    spec = manifest.resolved.backbone
    alias = ALIASES.get(spec.model)
    return alias.package if alias and spec.revision is None else None


def _listed(works: Sequence[Licensed]) -> list[tuple[Licensed, str]]:
    """Every work once, and all that it was used for."""
    uses: dict[tuple[str, str | None], list[str]] = {}
    first: dict[tuple[str, str | None], Licensed] = {}
    for work in works:
        key = work.work, work.license
        first.setdefault(key, work)
        if work.used not in uses.setdefault(key, []):
            uses[key].append(work.used)
    return [(work, ", ".join(uses[key])) for key, work in first.items()]


def _confidences(tasks: Sequence[TaskView]) -> list[str]:
    """The intervals' confidences, such as 95%."""
    return sorted({percent(task.task["interval"]["confidence"]) for task in tasks})


def _environment() -> jinja2.Environment:
    """Templates whose values are escaped, unless a filter of ours made Markdown of them."""

    def finalize(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return markdown(visible(value))

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    environment.filters["share"] = lambda value: f"{100 * value:.4g}%"
    environment.filters["nats"] = lambda value: f"{value:.2e}"
    environment.filters["limit"] = lambda value: "unbounded" if value is None else f"{value:+.4g}"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    return environment


def _code(value: object) -> Markup:
    """A value between backticks, which nothing in it can end."""
    text = " ".join(visible(str(value)).split()).replace("`", "'").replace("|", "\\|")
    return Markup(f"`{text}`")
