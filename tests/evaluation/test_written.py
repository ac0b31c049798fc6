"""Written questions: reasoning and language."""

from collections import Counter

import pytest

from lora_kit.evaluation.items import language, parse, reasoning
from lora_kit.evaluation.items.parse import read_entry
from lora_kit.evaluation.items.written import WrittenGroup, WrittenQuestion

PAPER = {"question": "What do you cut paper with?", "right": "scissors", "wrong": ["a cup"]}


def group(**changes: object) -> dict[str, object]:
    return {"kind": "tool", "items": {"cut-paper": PAPER}} | changes


def read(value: dict[str, object]) -> list[WrittenQuestion]:
    return list(read_entry(WrittenGroup, value, "a.yaml").questions())


def item(**changes: object) -> dict[str, object]:
    return group(items={"cut-paper": PAPER | changes})


def test_a_kind_names_the_item_and_its_slice() -> None:
    (question,) = read(item(cluster="paper"))
    row = question.row("kind")
    assert (row.id, row.cluster, row.slices) == ("tool/cut-paper", "paper", {"kind": "tool"})
    assert row.choices[row.answer] == "scissors"
    assert set(row.choices) == {"scissors", "a cup"}


def test_a_kind_can_ask_the_same_of_all_its_items() -> None:
    about = {"about": "hot", "right": "cold", "wrong": ["wet"]}
    opposites = group(kind="antonym", ask="What is the opposite of {about}?", items={"hot": about})
    (question,) = read(opposites)
    assert question.question == "What is the opposite of hot?"


def test_a_blank_makes_the_answers_whole_sentences() -> None:
    about = {"about": "The dogs ___ .", "right": "bark", "wrong": ["barks"]}
    (question,) = read(group(ask="Complete: {about}", items={"dogs": about}))
    assert question.question == "Complete: The dogs ___ ."
    assert (question.right, question.wrong) == ("The dogs bark .", ("The dogs barks .",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            item(right=4),
            r"a.yaml: tool.items.cut-paper.right: Input should be a valid string \(got 4\)",
        ),
        (item(wrong=[]), "cut-paper.wrong: Tuple should have at least 1 item"),
        (item(wrong="a cup"), "cut-paper.wrong: Input should be a valid tuple"),
        (item(wrong=["a cup", False]), r"wrong.1: Input should be a valid string"),
        (item(wrong=["Scissors"]), "duplicate answers"),
        (item(question="One ___ two ___"), "more than one blank"),
        (item(rigth="a knife"), "cut-paper.rigth: Extra inputs"),
        (item(cluster=""), "cluster: String should match"),
        (group(items={"Cut paper": PAPER}), "must be a slug .*write 'cut-paper'"),
        (group(items={3: {}}), r"tool.items.3.\[key\]: Input should be a valid string"),
        (group(items=[]), "tool.items: Input should be a valid dictionary"),
        (group(ask="What is the opposite?"), "tool.ask: String should match pattern"),
        (group(ask="What is {about}?"), "tool.cut-paper: needs `about` .*question"),
        (group(kind=None), "kind: Input should be a valid string"),
        (group(itmes={}), "tool.itmes: Extra inputs"),
    ],
)
def test_a_slip_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(changed)


def test_a_key_that_is_there_twice_is_refused() -> None:
    # PyYAML would keep the second one and say nothing.
    with pytest.raises(ValueError, match=r"line 1: duplicate keys \(got \['hot'\]\)"):
        parse.load_strict_yaml("hot: cold\nhot: warm\n")


def test_the_right_answers_are_no_longer_than_the_wrong_ones() -> None:
    # Likelihood falls with length: a right answer that stands out by it would be found by it alone.
    for rows in (reasoning.reasoning_rows(), language.language_rows()):
        shortest = Counter(
            len(row.choices[row.answer]) == min(map(len, row.choices)) for row in rows
        )
        assert 0.15 < shortest[True] / len(rows) < 0.6


def test_the_sentences_differ_from_the_right_one_in_the_blank_only() -> None:
    for row in language.language_rows():
        if "___" in row.question:
            before, after = row.question.removeprefix("Complete the sentence: ").split("___")
            assert all(c.startswith(before) and c.endswith(after) for c in row.choices)


def test_the_words_to_be_put_in_order_are_those_of_the_right_sentence() -> None:
    rows = [row for row in language.language_rows() if row.slices["phenomenon"] == "word order"]
    for row in rows:
        words = row.question.removeprefix("Put the words in order: ").lower().split(" / ")
        right = row.choices[row.answer].lower().rstrip(".").replace("?", " ?").split()
        assert sorted(words) == sorted(right), row
