"""Model card in the hub's format, as a pure function of manifest, verdict and merge record.

Anyone with a release can therefore render its card again and compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup

from lora_kit.backbone.files import ALIASES
from lora_kit.evaluation.reporting.escaping import (
    escape_markdown,
    template_environment,
)
from lora_kit.evaluation.reporting.notation import format_percent
from lora_kit.evaluation.verdict import Verdict
from lora_kit.releasing.card_tasks import CardTask, card_tasks, lost_slices
from lora_kit.releasing.licences import LicenceNote, LicensedWork, hub_license, licence_notes
from lora_kit.releasing.manifest import Manifest
from lora_kit.runtime.console import visible
from lora_kit.runtime.files import finite

TEMPLATE = Path(__file__).parent / "card.md.j2"
FENCE = "---\n"


def model_card(manifest: Manifest, verdict: Verdict, merge: Mapping[str, Any]) -> str:
    """Render the card of a release.

    Args:
        manifest: manifest of the release; `files` is not used, since the card is one of them.
        verdict: the verdict of the evaluation.
        merge: content of the merge record.

    Returns:
        Front matter with `model-index`, and Markdown in which all values from rows, models and
        recipes are escaped.
    """
    tasks, notes = card_tasks(verdict), licence_notes(manifest.works)
    base = next(work for work in manifest.works if work.used == "base")
    body = _environment().get_template(TEMPLATE.name)
    text = body.render(
        manifest=manifest,
        recipe=manifest.resolved_recipe,
        verdict=verdict,
        merge=merge,
        tasks=tasks,
        retained=[task for task in tasks if task.role == "retention"],
        lost_slices=lost_slices(verdict),
        base=base,
        taken_from=_package_file(manifest),
        works=_works_with_uses(manifest.works),
        notes=notes,
        confidences=", ".join(
            sorted({format_percent(one.task.interval.confidence) for one in tasks})
        ),
    )
    return f"{FENCE}{_front_matter(manifest, tasks, base, notes)}\n{FENCE}\n{text}"


def same_card(written: str, expected: str) -> bool:
    """Return True if two cards have equal front matter and the same text, byte for byte.

    Front matter is compared as data, since versions of huggingface_hub wrap its lines differently.
    """
    written_parts = _split_card(written)
    return written_parts is not None and written_parts == _split_card(expected)


def _split_card(card: str) -> tuple[Any, str] | None:
    """Return the parsed front matter and the body; `None` if the front matter is malformed."""
    if not card.startswith(FENCE):
        return None
    head, fence, body = card.removeprefix(FENCE).partition(f"\n{FENCE}")
    try:
        return (yaml.safe_load(head), body) if fence else None
    except yaml.YAMLError:
        return None


def _front_matter(
    manifest: Manifest, tasks: Sequence[CardTask], base: LicensedWork, notes: Sequence[LicenceNote]
) -> str:
    from huggingface_hub import ModelCardData

    recipe = manifest.resolved_recipe
    trained_on = [w for w in manifest.works if w.used in ("train", "replay", "retention") and w.hub]
    license_ = hub_license(base, notes)
    metadata = ModelCardData(
        base_model=base.work if base.hub else None,
        base_model_relation="finetune",
        datasets=list(dict.fromkeys(work.work for work in trained_on)) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["lora_kit", recipe.adapter.method, recipe.backbone.quantization],
        model_name=manifest.name,
        eval_results=[_eval_result(task) for task in tasks if task.merged_score is not None],
        license=license_.get("license"),
        license_name=license_.get("license_name"),
    )
    return str(metadata.to_yaml()).strip()


def _eval_result(task: CardTask) -> Any:
    """Return the `model-index` entry of a task, with the values of the merged model.

    The format has no field for an interval, so the interval is in the metric's name for people,
    and in the metric's arguments for programs.
    """
    from huggingface_hub import EvalResult

    interval, formatted, unit = task.merged_interval, task.merged, task.task.unit
    return EvalResult(
        task_type="text-generation",
        # The hub groups results by type and configuration, so the name alone would merge tasks.
        dataset_type=visible(task.suite),
        dataset_config=visible(task.task.task),
        dataset_name=visible(task.name),
        metric_type=unit,
        metric_value=round(task.merged_score or 0.0, 6),
        metric_name=f"{unit}; difference from the base {formatted.delta} {formatted.unit}, "
        f"{format_percent(interval.confidence)} interval {formatted.low} to {formatted.high}",
        metric_args={
            "base": task.merged_base,
            "difference": interval.delta,
            "low": finite(interval.low),
            "high": finite(interval.high),
            "confidence": interval.confidence,
            "items": interval.items,
            "clusters": interval.clusters,
            "decision": task.task.merged,
        },
    )


def _package_file(manifest: Manifest) -> str | None:
    """Return the package file that an alias resolved to; `None` for a model from the hub."""
    spec = manifest.resolved_recipe.backbone
    alias = ALIASES.get(spec.model)
    return alias.package if alias and spec.revision is None else None


def _works_with_uses(works: Sequence[LicensedWork]) -> list[tuple[LicensedWork, str]]:
    """Return each work once, with all its uses."""
    same: dict[tuple[str, str | None], list[LicensedWork]] = {}
    for work in works:
        same.setdefault((work.work, work.license), []).append(work)
    return [
        (group[0], ", ".join(dict.fromkeys(work.used for work in group))) for group in same.values()
    ]


@cache
def _environment() -> Environment:
    environment = template_environment(TEMPLATE.parent, escape_markdown)
    environment.filters["code"] = _code
    environment.filters["share"] = lambda value: f"{100 * value:.4g}%"
    environment.filters["nats"] = lambda value: f"{value:.2e}"
    environment.filters["limit"] = lambda value: (
        "unbounded" if math.isinf(value) else f"{value:+.4g}"
    )
    return environment


def _code(value: object) -> Markup:
    """Return a value as inline code, without backticks that would end it."""
    text = " ".join(visible(str(value)).split()).replace("`", "'").replace("|", "\\|")
    return Markup(f"`{text}`")
