"""The rows of a recipe, with what the base has to say for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import is_learned, with_replay
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
from lora_kit.runtime.processes import made_by_first
from lora_kit.training.self_distillation.replay import replay_records
from lora_kit.training.self_distillation.rewriting import Rewritten, putting_in, rewritten

# Raise it when the base is asked otherwise than before.
VERSION = 2
REPLAY, ANSWERS = "replay", "answers"
Records = list[dict[str, Any]]


@dataclass(frozen=True)
class ReadRows:
    """The rows to train on.

    Attributes:
        rows: replay among them.
        replay: how many of them are replay.
        said: what the base said for them: `replay`, its own rows, and `answers`, the rows' answers
            in its words.
    """

    rows: Rows
    replay: int
    said: dict[str, Records] = field(default_factory=dict)


def read_rows(
    recipe: Recipe, sources: Rows, backbone: Backbone, run: RunDirectory | None = None
) -> ReadRows:
    """The rows of a recipe, some of them made or written again by the base.

    The first process asks the base; what it said is kept in the cache folder, and in the run.

    Args:
        recipe: which rows.
        sources: those of `data.train`, opened.
        backbone: the base; no adapter is attached to it.
        run: that goes on, with what was said for it when it began.

    Raises:
        DataError: if a source cannot be read, or the base does not come to an end.
    """
    earlier = _earlier(run)
    said: dict[str, Records] = {}

    def own(count: int) -> Rows:
        said[REPLAY] = earlier.get(REPLAY) or replayed(recipe, backbone, count)
        return Rows.of(SELF, [parse_row(r, f"{SELF}#{n}") for n, r in enumerate(said[REPLAY])])

    rows, replay = with_replay(sources, recipe.data, recipe.seed, own)
    if recipe.retention.self_distillation is None:
        return ReadRows(rows, replay, said)
    # Replay is there to say what the base says, or what it is to go on saying.
    learned = rows.only(np.array([is_learned(one) for one in rows.sources])[rows.parts])
    said[ANSWERS] = earlier.get(ANSWERS) or _answers(recipe, backbone, learned)
    found = [Rewritten(**record) for record in said[ANSWERS]]
    taken = sum(one.taken for one in found)
    say(
        f"retention.self_distillation: of {len(learned)} rows the base wrote {len(found)} answers again, "
        f"and {taken} of those say what the row says and are learned in its place"
    )
    put = rows.changed(is_learned, putting_in(found), json_sha256(said[ANSWERS]))
    return ReadRows(put, replay, said)


def replayed(recipe: Recipe, backbone: Backbone, count: int) -> Records:
    """So many rows of the base's own; made once, then kept in the cache folder."""
    longest = recipe.data.max_length

    def ask() -> Records:
        say(f"data.replay.source: self: the base makes {count} rows, which takes a while on a CPU")
        return replay_records(_speaker(backbone), count, longest)

    parts = [REPLAY, backbone.fingerprint.digest, recipe.seed, count, longest]
    return _kept([*parts, *stop_token_ids(backbone)], recipe, ask)


def _answers(recipe: Recipe, backbone: Backbone, rows: Rows) -> Records:
    spec, longest = recipe.retention.self_distillation, recipe.data.max_length
    assert spec is not None

    def ask() -> Records:
        similarity = load_metric("chrf")
        found = rewritten(_speaker(backbone), rows.read(), spec, similarity, longest)
        return [one.to_dict() for one in found]

    parts = [ANSWERS, backbone.fingerprint.digest, rows.digest(), spec.similarity, longest]
    return _kept([*parts, *stop_token_ids(backbone)], recipe, ask)


def _speaker(backbone: Backbone) -> Generator:
    return Generator(backbone, stop_token_ids(backbone))


def _kept(parts: list[Any], recipe: Recipe, ask: Callable[[], Records]) -> Records:
    versions = [VERSION, torch.__version__, transformers.__version__]
    digest = json_sha256([*parts, *versions])
    path = cache_directory() / "self-distillation" / f"{digest}.json"

    def make() -> Records:
        if path.is_file():
            return _records(path, "records")
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            records = ask()
        write_json(path, {"records": records})
        return records

    return made_by_first(make)


def _records(path: Path, key: str) -> Records:
    value = read_json(path, DataError).get(key)
    if not isinstance(value, list):
        raise DataError(f"{path}: holds no `{key}`; delete it")
    return value


def _earlier(run: RunDirectory | None) -> dict[str, Records]:
    """What was said when the run began."""
    if run is None or not run.self_distillation.is_file():
        return {}
    return {
        key: _records(run.self_distillation, key)
        for key in read_json(run.self_distillation, DataError)
    }
