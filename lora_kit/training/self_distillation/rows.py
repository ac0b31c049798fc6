"""Training rows of a recipe, including rows and answers that the base generates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lora_kit.backbone.load import Backbone
from lora_kit.data.audit.label_errors import LabelErrors
from lora_kit.data.dataset import is_training_source, mix_replay
from lora_kit.data.formats import parse_row
from lora_kit.data.row_sets import Rows
from lora_kit.metrics.load import load_metric
from lora_kit.modeling.generation import Generator, stop_token_ids
from lora_kit.recipe.data import SELF
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.processes import broadcast_from_main
from lora_kit.training.label_errors import label_errors_of, searches_label_errors
from lora_kit.training.self_distillation.replay import generate_replay
from lora_kit.training.self_distillation.rewriting import (
    RewrittenAnswer,
    replace_answers,
    rewrite_answers,
)

# Part of the cache key. Raise it when prompts or sampling change.
VERSION = 2
REPLAY_KEY, ANSWERS_KEY = "replay", "answers"
Records = list[dict[str, Any]]


@dataclass(frozen=True)
class TrainingRows:
    """Training rows, and the part of them that the base generated.

    Attributes:
        rows: all training rows, replay included.
        replay: number of replay rows.
        generated: records that the base generated, by kind: `replay`, rows, and `answers`,
            rewritten answers.
        label_errors: suspected label errors, if the recipe asks for a search; rows that it drops
            are not in `rows`.
    """

    rows: Rows
    replay: int
    generated: dict[str, Records] = field(default_factory=dict)
    label_errors: LabelErrors | None = None

    def sources_of(self, sources: Rows) -> Rows:
        """Return the rows of `data.train` that are trained on.

        Args:
            sources: all rows of `data.train`.
        """
        # A classification, the only one with such a search, has no replay among its rows.
        return sources if self.label_errors is None else self.rows


def read_training_rows(
    recipe: Recipe, sources: Rows, backbone: Backbone, run: RunDirectory | None = None
) -> TrainingRows:
    """Read the training rows of a recipe, and generate, rewrite or drop some of them with the base.

    The main process generates, and searches for label errors; the records are cached in the cache
    directory and in the run.

    Args:
        recipe: the recipe, whose `data` and `retention` sections select the rows.
        sources: opened sources of `data.train`.
        backbone: the base, without an adapter.
        run: run that resumes; its generated records are used again.

    Raises:
        DataError: if a source cannot be read, too few generated rows end, or the labels cannot be
            checked.
    """
    if searches_label_errors(recipe):
        found = label_errors_of(recipe, sources, backbone, run)
        return TrainingRows(sources.select(found.kept()), 0, label_errors=found)
    earlier: dict[str, Records] = {}
    if run is not None and run.self_distillation.is_file():
        path = run.self_distillation
        earlier = {key: _read_records(path, key) for key in read_json(path, DataError)}
    generated: dict[str, Records] = {}

    def self_replay(count: int) -> Rows:
        records = earlier.get(REPLAY_KEY) or cached_replay(recipe, backbone, count)
        generated[REPLAY_KEY] = records
        return Rows.of(SELF, [parse_row(one, f"{SELF}#{n}") for n, one in enumerate(records)])

    rows, replay = mix_replay(sources, recipe.data, recipe.seed, self_replay)
    if recipe.retention.self_distillation is None:
        return TrainingRows(rows, replay, generated)
    # Replay rows keep their text: they represent answers that the model should retain.
    learned = rows.select(np.array([is_training_source(one) for one in rows.sources])[rows.parts])
    records = earlier.get(ANSWERS_KEY) or _rewritten_records(recipe, backbone, learned)
    generated[ANSWERS_KEY] = records
    answers = [RewrittenAnswer(**record) for record in records]
    say(
        f"retention.self_distillation: the base rewrote the answers of {len(answers)} of "
        f"{len(learned)} rows; {sum(one.taken for one in answers)} match the row's answer and "
        "replace it"
    )
    replaced = rows.map_rows(is_training_source, replace_answers(answers), json_sha256(records))
    return TrainingRows(replaced, replay, generated)


def cached_replay(recipe: Recipe, backbone: Backbone, count: int) -> Records:
    """Return `count` replay rows generated by the base, from the cache if they exist there."""
    max_length, stops = recipe.data.max_length, stop_token_ids(backbone)

    def generate() -> Records:
        say(
            f"data.replay.source: the base generates {count} rows (self), which takes a while on a "
            "CPU"
        )
        return generate_replay(Generator(backbone, stops), count, max_length)

    parts = [REPLAY_KEY, backbone.fingerprint.digest, recipe.seed, count, max_length]
    return _cached([*parts, *stops], recipe, generate)


def _rewritten_records(recipe: Recipe, backbone: Backbone, rows: Rows) -> Records:
    spec, max_length = recipe.retention.self_distillation, recipe.data.max_length
    assert spec is not None
    stops = stop_token_ids(backbone)

    def generate() -> Records:
        generator, similarity = Generator(backbone, stops), load_metric("chrf")
        answers = rewrite_answers(generator, rows.read(), spec, similarity, max_length)
        return [one.to_dict() for one in answers]

    parts = [ANSWERS_KEY, backbone.fingerprint.digest, rows.digest(), spec.similarity, max_length]
    return _cached([*parts, *stops], recipe, generate)


def _cached(parts: list[Any], recipe: Recipe, generate: Callable[[], Records]) -> Records:
    """Return cached records, or generate them with the recipe's seed in the main process.

    Args:
        parts: JSON values that determine the records besides library versions.
        recipe: the recipe with the seed.
        generate: function that generates the records.
    """
    versions = [VERSION, torch.__version__, transformers.__version__]
    digest = json_sha256([*parts, *versions])
    path = cache_directory() / "self-distillation" / f"{digest}.json"

    def read_or_generate() -> Records:
        if path.is_file():
            return _read_records(path, "records")
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            records = generate()
        write_json(path, {"records": records})
        return records

    return broadcast_from_main(read_or_generate)


def _read_records(path: Path, key: str) -> Records:
    value = read_json(path, DataError).get(key)
    if not isinstance(value, list):
        raise DataError(
            f"{path}: `{key}` is not a list (got {type(value).__name__}). Fix: delete the file, so "
            "that its rows are generated again"
        )
    return value
