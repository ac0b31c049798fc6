"""Mixtures: exact counts, complete passes, and reproducibility by seed."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lora_kit.data.dataset import validation_rows
from lora_kit.data.mixture import mixture_counts
from lora_kit.data.row_sets import Rows
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.errors import DataError
from tests.training_rows import training_rows

SIZES = {"a": 8, "b": 30, "c": 120}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        lines = [json.dumps({"text": f"{name}{number}"}) + "\n" for number in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def spec(folder: Path, weights: list[float] | None = None, **fields: Any) -> DataSpec:
    train = [{"source": str(folder / f"{name}.jsonl")} for name in SIZES]
    for source, weight in zip(train, weights or [], strict=False):
        source["weight"] = weight  # type: ignore[assignment]
    return DataSpec.model_validate({"train": train, **fields})


def texts(rows: Rows) -> list[str]:
    return [row.text or "" for row in rows]


def by_source(rows: Rows) -> dict[str, list[str]]:
    return {name: [t for t in texts(rows) if t.startswith(name)] for name in SIZES}


def test_sources_are_concatenated_without_weights(folder: Path) -> None:
    rows, replay = training_rows(spec(folder), seed=3)
    assert replay == 0
    assert texts(rows) == [f"{name}{n}" for name, size in SIZES.items() for n in range(size)]
    assert [source.name for source in rows.sources] == [
        str(folder / f"{name}.jsonl") for name in SIZES
    ]


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1, 1, 1], 10, [4, 3, 3]),
        ([5, 3, 2], 10, [5, 3, 2]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([0.1, 0.1, 0.1], 3, [1, 1, 1]),
        ([1, 2], 1, [0, 1]),
        ([1e-9, 1.0], 10, [0, 10]),
    ],
)
def test_counts_are_in_proportion_with_the_largest_remainders(
    weights: list[float], total: int, expected: list[int]
) -> None:
    assert mixture_counts(weights, total) == expected


def test_counts_always_sum_to_the_total_and_miss_their_share_by_less_than_one() -> None:
    generator = random.Random(0)
    for _ in range(300):
        weights = [generator.expovariate(1) + 1e-6 for _ in range(generator.randint(1, 9))]
        total = generator.randint(1, 10**6)
        counts = mixture_counts(weights, total)
        assert sum(counts) == total
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - total * weight / sum(weights)) < 1


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [8, 30, 120]), (1e6, [52, 53, 53]), (2.0, [24, 47, 94]), (0.5, None)],
)
def test_temperature_ranges_from_proportional_to_uniform(
    folder: Path, temperature: float, expected: list[int] | None
) -> None:
    wanted = spec(folder, temperature=temperature, rows=165 if temperature == 2.0 else None)
    rows, _ = training_rows(wanted, seed=0)
    counts = [len(found) for found in by_source(rows).values()]
    if expected is None:
        shares = [n**2 / sum(m**2 for m in SIZES.values()) for n in SIZES.values()]
        assert counts == pytest.approx([158 * share for share in shares], abs=1)
    else:
        assert counts == expected


def test_a_low_temperature_does_not_overflow(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"a mixture of 158 rows has none of .*a\.jsonl\. Fix: raise"
    ):
        training_rows(spec(folder, temperature=0.001), seed=0)


def test_a_small_source_is_repeated_in_complete_passes_and_a_large_one_drawn_once(
    folder: Path,
) -> None:
    rows, _ = training_rows(spec(folder, [1, 1, 1], rows=90), seed=0)
    found = by_source(rows)
    assert [len(part) for part in found.values()] == [30, 30, 30]
    small = found["a"]
    for start in range(0, 24, 8):
        assert sorted(small[start : start + 8]) == [f"a{n}" for n in range(8)]
    assert len(set(small[24:])) == 6
    assert len({tuple(small[start : start + 8]) for start in range(0, 24, 8)}) == 3
    assert sorted(found["b"]) == sorted(f"b{n}" for n in range(30))
    assert len(set(found["c"])) == 30
    assert max(int(text[1:]) for text in found["c"]) > 60, "only the first rows were drawn"


def test_sources_are_spread_evenly_over_the_mixture(folder: Path) -> None:
    rows, _ = training_rows(spec(folder, [1, 1, 2], rows=120), seed=0)
    for start in range(0, 120, 20):
        share = Counter(text[0] for text in texts(rows)[start : start + 20])
        assert abs(share["a"] - 5) <= 1
        assert abs(share["c"] - 10) <= 1


def test_a_mixture_depends_on_the_seed(folder: Path) -> None:
    wanted = spec(folder, [1, 2, 3], rows=100)
    one, same, other = (texts(training_rows(wanted, seed)[0]) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert Counter(text[0] for text in one) == Counter(text[0] for text in other)


def test_counts_per_row_of_a_mixture_differ_by_at_most_one(folder: Path) -> None:
    generator = random.Random(1)
    for seed in range(10):
        weights = [generator.uniform(0.2, 3) for _ in SIZES]
        total = generator.randint(60, 900)
        rows, _ = training_rows(spec(folder, weights, rows=total), seed)
        assert len(rows) == total
        for name, found in by_source(rows).items():
            times = Counter(found)
            everyone = [times[f"{name}{n}"] for n in range(SIZES[name])]
            assert max(everyone) - min(everyone) <= 1


def test_a_limit_is_the_size_of_a_source_in_a_mixture(folder: Path) -> None:
    wanted = spec(folder, [1, 1, 1], rows=30)
    limited = [wanted.train[2].model_copy(update={"limit": 4}), *wanted.train[:2]]
    rows, _ = training_rows(wanted.model_copy(update={"train": limited}), seed=0)
    found = by_source(rows)["c"]
    assert len(found) == 10
    assert len(set(found)) == 4


def test_the_order_of_rows_and_replay_is_pinned(folder: Path) -> None:
    """Rows in another order would train another adapter from the same recipe."""
    replay = {"source": str(folder / "c.jsonl"), "fraction": 0.2}
    limited = [{"source": str(folder / "a.jsonl")}, {"source": str(folder / "b.jsonl"), "limit": 8}]
    wanted = spec(folder, replay=replay, train=limited)
    chosen = sorted(random.Random("5/data.train.1.source").sample(range(30), 8))
    again = sorted(random.Random("5/data.replay.source").sample(range(120), 4))
    expected = [f"a{n}" for n in range(8)] + [f"b{n}" for n in chosen] + [f"c{n}" for n in again]
    random.Random("5/replay").shuffle(expected)
    assert texts(training_rows(wanted, seed=5)[0]) == expected


def test_replay_is_added_to_a_mixture(folder: Path) -> None:
    replay = {"source": str(folder / "a.jsonl"), "fraction": 0.1}
    rows, count = training_rows(spec(folder, [1, 1, 1], rows=27, replay=replay), seed=0)
    assert (len(rows), count) == (30, 3)
    assert rows.sources[-1].name == f"replay: {folder / 'a.jsonl'}"
    assert sum(rows.parts == 3) == 3


def test_a_source_used_twice_gets_two_names(folder: Path) -> None:
    source = {"source": str(folder / "a.jsonl")}
    rows, _ = training_rows(DataSpec.model_validate({"train": [source, source]}), seed=0)
    assert [one.name for one in rows.sources] == [source["source"], f"{source['source']} (2)"]
    assert len(rows.formats()) == 2


def test_held_out_rows_are_not_mixed(folder: Path) -> None:
    held_out = [{"source": str(folder / "a.jsonl"), "weight": 2}]
    with pytest.raises(DataError, match=r"data\.validation\.0\.weight: only the sources"):
        validation_rows(spec(folder, validation=held_out), seed=0)
    rows = validation_rows(spec(folder, validation=[{"source": str(folder / "a.jsonl")}]), seed=0)
    assert len(rows) == 8
    assert not validation_rows(spec(folder), seed=0)
