"""The audit of training rows against rows and items that are held out: clusters and shift."""

import random
from dataclasses import replace
from typing import Any

import pytest

from lora_kit.data.audit.audit import audit
from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.audit.shift import TrainingSample, shifts
from lora_kit.data.rows import Row
from lora_kit.data.sources import open_source
from lora_kit.data.tokenization import tokenize
from lora_kit.recipe.data import AuditSpec, SourceSpec
from tests.data.auditing import VOCABULARY, look, prose, sums


def test_clusters_on_both_sides_of_a_split_are_named(tokenizer: Any) -> None:
    def by(author: str, first: int) -> list[Row]:
        return [replace(row, cluster=author) for row in sums(first, 3)]

    found = look(by("ann", 0) + by("bob", 3), tokenizer, held_out=by("bob", 6) + by("cat", 9))
    (shared,) = found.groups
    assert (shared.suite, shared.items, shared.shared) == ("data.validation", 6, 3)
    assert shared.examples == ("bob",)
    (warning,) = [one for one in found.warnings if "clusters" in one]
    assert warning.startswith("3 of 6 rows of data.validation are of clusters")
    assert found.to_dict()["groups"][0]["shared"] == 3
    # Rows without a cluster are clusters of their own, which a copy does not make a group.
    rows = sums(0, 6)
    assert look(rows, tokenizer, held_out=rows[:2]).groups == ()


def test_clusters_of_gain_items_are_compared(tokenizer: Any) -> None:
    rows = [replace(row, cluster="ann") for row in sums(0, 3)]
    items = [
        AuditedItem(suite, "sums", f"{n}", "Which?", ("no",), gain=suite == "own", cluster="ann")
        for suite in ("own", "kept")
        for n in range(2)
    ]
    examples = [tokenize(row, tokenizer, 128) for row in rows]
    found = audit(rows, examples, items, [], tokenizer, AuditSpec())
    assert [(one.suite, one.shared) for one in found.groups] == [("own", 2)]


def test_held_out_rows_of_another_distribution_give_a_shift(tokenizer: Any) -> None:
    other = [
        prose(" ".join(random.Random(n).choices(VOCABULARY, k=30)), f"x:{n}") for n in range(40)
    ]
    found = look(sums(0, 60), tokenizer, held_out=other)
    (shift,) = found.shifts
    assert shift.other == "data.validation"
    assert shift.significant
    assert shift.auc > 0.95
    assert any("separates training rows from data.validation with AUC" in w for w in found.warnings)


def test_held_out_rows_of_the_same_distribution_give_no_shift(tokenizer: Any) -> None:
    rows = sums(0, 100)
    random.Random(0).shuffle(rows)
    found = look(rows[:60], tokenizer, held_out=rows[60:])
    (shift,) = found.shifts
    assert shift.low <= 0.5
    assert not any("classifier" in warning for warning in found.warnings)
    assert look(rows[:60], tokenizer, held_out=rows[60:65]).shifts == ()


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_other_modules_give_no_shift(seed: int) -> None:
    # Each module has words of its own, which tell the rows apart that were seen and no others.
    every = list(open_source(SourceSpec(source="stdlib-docstrings", split="all"), 0, "data.train"))
    modules = sorted({row.cluster for row in every})
    random.Random(seed).shuffle(modules)
    apart = set(modules[: len(modules) // 4])
    random.Random(seed).shuffle(every)
    rows = [row for row in every if row.cluster not in apart][:200]
    sample = TrainingSample.of(len(rows))
    sample.update(rows, first_row=0)
    (shift,) = shifts(sample, [row for row in every if row.cluster in apart][:100], [])
    assert not (shift.significant and shift.auc >= 0.8)
