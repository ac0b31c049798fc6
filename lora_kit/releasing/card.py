"""The model card: the verdict's figures in the form that the hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from lora_kit.backbone import ALIASES
from lora_kit.errors import ReleaseError
from lora_kit.evaluation.reporting.escaping import markdown, visible
from lora_kit.files import read_json
from lora_kit.recipe import Recipe
from lora_kit.releasing.gate import Clearance
from lora_kit.run import RunDirectory

TEMPLATE = Path(__file__).parent / "card.md.j2"


def model_card(recipe: Recipe, clearance: Clearance, run: RunDirectory) -> str:
    """The card of a release, with `model-index` metadata."""
    from huggingface_hub import EvalResult, ModelCardData

    alias = ALIASES.get(recipe.backbone.model)
    base_model = alias.hub if alias else recipe.backbone.model
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=suite["suite"],
            dataset_name=f"{suite['suite']}/{task['task']}",
            metric_type=task["unit"],
            metric_value=round(task["adapter"], 6),
        )
        for suite in clearance.verdict["suites"]
        for task in suite["tasks"]
    ]
    # A directory or a package is no id that the hub could link to.
    on_hub = base_model.count("/") == 1 and ":" not in base_model and not Path(base_model).exists()
    metadata = ModelCardData(
        base_model=base_model if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["lora", "lora_kit", recipe.backbone.quantization],
        model_name=recipe.name,
        eval_results=results,
    )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # Markdown, read as text: what comes from rows is escaped where it is used.
        autoescape=False,
    )
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=recipe.name,
        base_model=base_model,
        revision=recipe.backbone.revision,
        quantization=recipe.backbone.quantization,
        dtype=recipe.backbone.dtype,
        method=recipe.adapter.method,
        rank=recipe.adapter.rank,
        verdict=clearance.verdict,
        merge=clearance.merge,
        sources=[source.source for source in recipe.data.train],
        replay=recipe.data.replay.source if recipe.data.replay else None,
        counts=read_json(run.record, ReleaseError)["data"],
        escaped=lambda text: markdown(visible(text)),
        number=_number,
        signed=_signed,
        percent=_percent,
    )
    return f"---\n{metadata.to_yaml().strip()}\n---\n\n{body}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: Any) -> str:
    return f"{100 * value:.4g}%"
