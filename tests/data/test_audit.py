"""Findings of the audit, each on data with and without the problem."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from lora_kit.data.audit.audit import audit, refuse_problems
from lora_kit.data.audit.duplicates import DuplicateSearch
from lora_kit.data.audit.findings import Duplicates
from lora_kit.data.audit.words import hash_words, row_texts
from lora_kit.data.rows import Row
from lora_kit.data.tokenization import tokenize
from lora_kit.recipe.data import AuditSpec
from lora_kit.runtime.errors import DataError
from tests.data.auditing import VOCABULARY, chat, look, prose, sums


@dataclass(frozen=True)
class LabelledRow(Row):
    label: str | None = None


def twins(rows: Sequence[Row]) -> Duplicates:
    search = DuplicateSearch()
    texts = [row_texts(row) for row in rows]
    for begin in range(0, len(rows), 100):
        some = texts[begin : begin + 100]
        search.update(some, [hash_words(parts) for parts in some])
    return search.result(rows)


def test_rows_that_differ_in_case_and_white_space_are_exact_duplicates() -> None:
    rows = [
        chat("Who wrote Faust?", "Goethe", "a:1"),
        chat("Who wrote  faust?\n", " goethe", "a:2"),
        chat("Who wrote Emma?", "Austen", "a:3"),
        chat("Who wrote Faust?", "Goethe", "a:4"),
    ]
    found = twins(rows)
    assert (found.exact, found.near, found.share) == (2, 0, 0.5)
    assert {(twin.origin, twin.earlier) for twin in found.examples} == {
        ("a:2", "a:1"),
        ("a:4", "a:1"),
    }


def test_same_words_with_other_roles_are_no_duplicates() -> None:
    assert twins([chat("a b", "c"), chat("a", "b c"), prose("a b c")]).exact == 0


def changed(words: list[str], changes: int, generator: random.Random) -> list[str]:
    new = list(words)
    for place in generator.sample(range(len(words)), changes):
        new[place] = f"other{place}"
    return new


@pytest.mark.parametrize(("changes", "least", "most"), [(1, 0.97, 1.0), (12, 0.0, 0.02)])
def test_near_duplicates_are_found_with_the_documented_probability(
    changes: int, least: float, most: float
) -> None:
    # A word changed of 100 leaves 91 of 101 runs of five: a similarity of 0.9; twelve, about 0.4.
    generator = random.Random(0)
    texts = [generator.choices(VOCABULARY, k=100) for _ in range(200)]
    rows = [prose(" ".join(words), f"one:{n}") for n, words in enumerate(texts)]
    rows += [
        prose(" ".join(changed(words, changes, generator)), f"two:{n}")
        for n, words in enumerate(texts)
    ]
    found = twins(rows)
    assert found.exact == 0
    assert least <= found.near / 200 <= most
    for twin in found.examples:
        assert twin.origin == twin.earlier.replace("one", "two")
        assert 0.8 <= twin.similarity < 1


def test_rows_of_one_template_are_no_near_duplicates() -> None:
    assert twins(sums(0, 200)).near == 0


def test_estimates_are_the_same_in_every_process() -> None:
    code = """if True:
        from lora_kit.data.audit.duplicates import DuplicateSearch
        from lora_kit.data.audit.words import hash_words
        search = DuplicateSearch()
        texts = [" ".join(f"word{n * k}" for n in range(40)) for k in (1, 2)]
        search.update([(text,) for text in texts], [hash_words([text]) for text in texts])
        print(search._signatures[0].sum())
    """
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_a_copy_of_a_copy_counts_once() -> None:
    text = " ".join(VOCABULARY[:60])
    found = twins([prose(f"{text} {end}", f"p:{end}") for end in ("a", "b", "c", "d")])
    assert (found.exact, found.near) == (0, 3)


def test_truncated_rows_are_counted_and_refused_past_the_limit(tokenizer: Any) -> None:
    rows = [*sums(0, 6), *(prose(" ".join(VOCABULARY[n : n + 90]), f"long:{n}") for n in range(4))]
    found = look(rows, tokenizer, max_length=64, truncated=0.4)
    assert (found.tokens.truncated, found.tokens.truncated_share) == (4, 0.4)
    assert found.problems == ()
    found = look(rows, tokenizer, max_length=64, truncated=0.3)
    with pytest.raises(
        DataError, match=r"data\.audit\.truncated: 4 of 10 examples \(40\.0%\).*long:0"
    ):
        refuse_problems(found)


def test_rows_with_two_examples_are_counted_as_rows(tokenizer: Any) -> None:
    rows = [prose(" ".join(VOCABULARY[n : n + 90]), f"long:{n}") for n in range(10)]
    examples = [tokenize(row, tokenizer, 64) for row in rows[:8] for _ in range(2)]
    found = audit(rows, examples, [], [], tokenizer, AuditSpec.model_validate({"truncated": 1.0}))
    assert (found.tokens.truncated, found.tokens.truncated_share) == (16, 1.0)
    assert (found.tokens.dropped, found.tokens.dropped_share) == (2, 0.2)
    assert found.tokens.dropped_examples == ("long:8", "long:9")
    assert found.problems == ()


def test_rows_without_supervised_tokens_are_named_with_or_without_their_examples(
    tokenizer: Any,
) -> None:
    rows = [*sums(0, 3), chat(" ".join(VOCABULARY[:90]), "yes", "masked:1")]
    examples = [tokenize(row, tokenizer, 64) for row in rows]
    for given in (examples, examples[:-1]):
        found = audit(rows, given, [], [], tokenizer, AuditSpec()).tokens
        assert (found.dropped, found.dropped_share) == (1, 0.25)
        assert found.dropped_examples == ("masked:1",)
        assert found.examples == 3


def test_length_statistics_match_the_examples(tokenizer: Any) -> None:
    rows = [prose("one " * count, f"p:{count}") for count in (10, 20, 30, 40, 100)]
    found = look(rows, tokenizer).tokens.lengths
    lengths = sorted(len(tokenize(row, tokenizer, 128).input_ids) for row in rows)
    assert (found.p50, found.longest) == (lengths[2], lengths[-1])
    assert sum(count for _, count in found.histogram) == 5
    assert found.histogram[-1] == (128, 1)


def labelled(counts: dict[str, int]) -> list[Row]:
    return [
        LabelledRow(f"{label}:{n}", f"{label}:{n}", text=f"{label} text {n}", label=label)
        for label, count in counts.items()
        for n in range(count)
    ]


def test_class_imbalance_is_a_warning(tokenizer: Any) -> None:
    found = look(labelled({"ham": 50, "spam": 4}), tokenizer)
    assert found.classes.counts == {"ham": 50, "spam": 4}
    assert any("'spam' has 4 rows" in warning for warning in found.warnings)
    assert found.problems == ()
    even = look(labelled({"ham": 30, "spam": 20}), tokenizer)
    assert not any("label" in warning for warning in even.warnings)
    assert not look(sums(0, 3), tokenizer).classes.counts


def test_broken_tokens_are_counted_by_script(tokenizer: Any) -> None:
    odia = [chat("Translate: good morning", "ଶୁଭ ସକାଳ", f"odia:{n}") for n in range(4)]
    found = look([*sums(0, 4), *odia], tokenizer)
    pieces = found.tokens.pieces
    assert next(iter(pieces.scripts)) == "ORIYA"
    assert pieces.share > 0.2
    assert pieces.examples[0] == "odia:0"
    assert any("parts of a character (ORIYA" in warning for warning in found.warnings)


def test_english_with_an_accent_or_an_emoji_gives_no_warning(tokenizer: Any) -> None:
    rows = [
        chat("Where do you eat?", f"In the café “Zoë” at {n} o’clock — naïve, isn’t it?")
        for n in range(9)
    ]
    rows.append(chat("Thank you!", "You are welcome 😀, and see you soon in our little café!"))
    found = look(rows, tokenizer)
    assert found.tokens.pieces.share < 0.05
    assert not any("character" in warning for warning in found.warnings)


def test_unsupervised_prompts_have_no_broken_tokens(tokenizer: Any) -> None:
    found = look([chat("ଶୁଭ ସକାଳ", "good morning")], tokenizer)
    assert found.tokens.pieces.broken == 0


def test_all_exceeded_limits_are_reported_at_once(tokenizer: Any) -> None:
    rows = [prose(" ".join(VOCABULARY[:90]), f"same:{n}") for n in range(4)]
    found = look(rows, tokenizer, max_length=64, duplicates=0.7)
    with pytest.raises(DataError) as refused:
        refuse_problems(found)
    message = str(refused.value)
    assert "data.audit.duplicates: 3 of 4 rows (75.0%)" in message
    assert "(allowed: 70.0%), such as same:1 is same:0" in message
    assert "data.audit.truncated: 4 of 4 examples" in message
    refuse_problems(look(rows, tokenizer, max_length=1024, duplicates=0.75))


class Passing(Sequence[Row]):
    """Rows that count how many are read in passes over them, whole or in blocks."""

    def __init__(self, count: int):
        self.rows = sums(0, count)
        self.read = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            self.read += len(self.rows[index])
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        self.read += len(self.rows)
        return iter(self.rows)


def test_audit_reads_rows_once(tokenizer: Any) -> None:
    rows = Passing(1200)
    examples = [tokenize(row, tokenizer, 64) for row in rows.rows]
    found = audit(rows, examples, [], [], tokenizer, AuditSpec())
    assert rows.read == found.duplicates.rows == 1200


def test_audit_of_no_rows_has_no_findings(tokenizer: Any) -> None:
    found = audit([], [], [], [], tokenizer, AuditSpec())
    assert (found.problems, found.warnings, found.shifts) == ((), (), ())
    assert found.to_dict()["duplicates"]["share"] == 0
