"""All kinds of check: responses that pass, responses that fail, and differences to ignore."""

import dataclasses
import json

import pytest

from lora_kit.metrics.instruction_checks import (
    CHECK_FUNCTIONS,
    InstructionCheck,
    follows_instructions,
)


def check(kind: str, value: object) -> InstructionCheck:
    return InstructionCheck.parse({"kind": kind, "value": value})


# kind, value, responses that pass, responses that fail
CASES: list[tuple[str, object, list[str], list[str]]] = [
    (
        "contains_words",
        ["moon", "ice cream"],
        ["Moon and ice cream.", "**moon**, _ice  cream_", "“Ice\ncream” on the moon!"],
        ["The moon.", "moonlight and ice cream", "moon, ice and cream"],
    ),
    ("contains_words", ["café"], ["A cafe\u0301 in Paris", "CAFÉ"], ["A cafe", "cafés"]),
    ("contains_words", ["don't"], ["I don’t know."], ["I do not know."]),
    ("contains_words", ["C++"], ["I like C++."], ["I like C."]),
    ("omits_words", ["sun", "red"], ["A sunny day", "It was bored"], ["The SUN.", "*red*"]),
    ("words", 3, ["well-known old song", "- one\n- two — three", "I don't go."], ["two words"]),
    ("words", 1, ["Yes.", "1. Apple", "**Star**", "42"], ["Yes, it is", "one—two"]),
    ("min_words", 3, ["one two three", "a b c d"], ["one two", "one - two", "1. one\n2. two"]),
    ("max_words", 2, ["one", "one two …", "- one\n- two"], ["one two three"]),
    ("starts_with", "Sure", ["Sure, yes", "**Sure** thing", '"sure"'], ["Surely", "Be sure"]),
    ("starts_with", "Once upon", [" Once\nupon a time"], ["Once, upon", "upon"]),
    ("starts_with", "#", ["# Title", "  #1"], ["Title #"]),
    ("ends_with", "thanks", ["Many thanks", "Many **thanks**.", "THANKS!"], ["Thanks to you"]),
    ("ends_with", "thanks", ["thanks"], ["nothanks", "thanks a lot"]),
    ("ends_with", "?", ["Why?", '"Why?"', "Why? \n", "**Why?**"], ["Why.", "Why? No.", "Why?!"]),
    ("first_letter", "b", ["Banana", "1. banana", '"B"', "**Bear**"], ["A banana", "1 bear"]),
    ("first_letter", "É", ["école", "E\u0301cole"], ["ecole"]),
    (
        "repeats_first",
        "What is ice?",
        ["What is ice? Water.", '"what is ice?" Frozen\nwater'],
        ["What is ice?", "What is ice? ...", "Ice. What is ice?", "What is water? Ice"],
    ),
    ("choice", ["yes", "no"], ["Yes", "**no**.", ' "YES" ', "no\n"], ["yes no", "Yes, it is", "n"]),
    ("choice", ["ice cream", "cake"], ["Ice  cream!"], ["cream", "icecream"]),
    ("lowercase", True, ["all small, 3 ß é", "a"], ["One", "É", "123"]),
    ("uppercase", True, ["ALL BIG, É 3!", "A"], ["ALL BIg", "123", "STRAßE"]),
    ("uppercase", False, ["Ok"], ["OK"]),
    ("digits", True, ["8 legs", "1. one", "٣"], ["eight"]),
    ("digits", False, ["eight legs"], ["8 legs", "1. one"]),
    ("commas", False, ["a and b; c"], ["a, b", "1,000", "你好，世界"]),
    ("commas", True, ["a, b"], ["a b"]),
    ("quoted", True, ['"Hi there"', "“Hi” ", '\n"It\'s"'], ['"Hi" there', "'Hi'", '"a" "b"', '""']),
    ("bold", True, ["a **b** c", "**b c**", "__b__"], ["a *b* c", "****", "** b", "2**3", "**a"]),
    ("sentences", 1, ["It is.", "no end mark", "Dr. A. Lee paid 3.50."], ["It is. It was."]),
    ("sentences", 1, ['"Stop!" he said.', "Really?!", "He said, “Wait…” and left."], ["No. Yes"]),
    ("sentences", 2, ["One. Two.", "one. two", "*One.* Two.", "1. One.\n2. Two."], ["One, two."]),
    ("sentences", 2, ["Title\nText.", "“Hi.” He left."], ["Title", "a.b.c"]),
    ("max_sentences", 2, ["One.", "One! Two?"], ["One. Two. Three"]),
    ("lines", 2, ["a\nb", "a\n\n---\nb\n"], ["a", "a\nb\nc"]),
    (
        "numbered_lines",
        2,
        ["1. a\n2. b", "Here:\n 1) a\n 2) b\nDone.", "1. **a**\n\n2. b"],
        [
            "1. a",
            "1. a\n2. b\n3. c",
            "1. a\n3. b",
            "1. a 2. b",
            "- a\n- b",
            "1.\n2.",
            "9" * 5000 + ". a",
        ],
    ),
    (
        "bulleted_lines",
        2,
        ["- a\n- b", "Here:\n* a\n* b", "• a\n  + b"],
        ["- a", "- a\n- b\n- c", "**a**\n**b**", "-a\n-b", "1. a\n2. b", "- a - b"],
    ),
    ("comma_items", 3, ["a, b, c", "a,b,and c."], ["a, b", "a, b, c, d", "a, b,", "a,\nb,\nc"]),
    (
        "json_keys",
        ["name", "age"],
        ['{"name": "A", "age": 3, "x": []}', '```json\n{"age": 1, "name": null}\n```'],
        ['{"name": "A"}', "{'name': 1, 'age': 2}", '["name", "age"]', 'Sure: {"name":1,"age":2}'],
    ),
    (
        "json_keys",
        ["a"],
        ['```\n{"a": 1}\n```'],
        ["[" * 100_000 + "1", '"a"', '{"a": 1', '{"A": 1}'],
    ),
    (
        "contains_any",
        ["moon", "ice cream"],
        ["Ice cream!", "The moon"],
        ["moonlight", "ice, cream"],
    ),
    ("refuses", True, ["I can’t help with that."], ["I can't help but smile."]),
    ("refuses", False, ["Use kill and the number."], ["Sorry, I can't."]),
    ("coherent", True, ["The cat sat on a mat."], ["the the the the the", "cat"]),
    ("coherent", False, ["no no no no no no"], ["The cat sat on a mat."]),
    (
        "no_echo",
        "What is a cat?",
        ["A cat is a small animal."],
        ["What is a cat?", "what is a CAT"],
    ),
    ("json_schema", {"type": "integer"}, ["3", "```json\n3\n```"], ["three", '"3"', "3 4", "3.5"]),
    (
        "calls",
        {"name": "add", "arguments": {"a": 1}},
        ['{"name": "add", "arguments": {"a": 1.0}}'],
        ['{"name": "add", "arguments": {"a": true}}', "add(a=1)"],
    ),
    ("calls", "none", ["It is one."], ['{"name": "add", "arguments": {}}', "add(1)", "{}"]),
]


def test_every_kind_has_cases() -> None:
    assert {kind for kind, *_ in CASES} == set(CHECK_FUNCTIONS)
    assert len(CHECK_FUNCTIONS) >= 12


@pytest.mark.parametrize(
    ("kind", "value", "response"),
    [(kind, value, response) for kind, value, good, _ in CASES for response in good],
)
def test_passes(kind: str, value: object, response: str) -> None:
    assert follows_instructions(response, [check(kind, value)])


@pytest.mark.parametrize(
    ("kind", "value", "response"),
    [(kind, value, response) for kind, value, _, bad in CASES for response in bad],
    ids=lambda value: str(value)[:40],
)
def test_fails(kind: str, value: object, response: str) -> None:
    assert not follows_instructions(response, [check(kind, value)])


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, value, *_ in CASES])
@pytest.mark.parametrize("response", ["", "  \n", "...", "**", '""', "—"])
def test_a_response_without_a_word_never_passes(kind: str, value: object, response: str) -> None:
    assert not follows_instructions(response, [check(kind, value)])


def test_all_checks_must_hold() -> None:
    both = [check("max_words", 2), check("lowercase", True)]
    assert follows_instructions("small words", both)
    assert not follows_instructions("Small words", both)
    assert not follows_instructions("three small words", both)


def test_an_empty_list_of_checks_is_refused() -> None:
    with pytest.raises(ValueError, match="without checks"):
        follows_instructions("Hello", [])


def test_a_check_has_the_kind_and_value_of_the_yaml() -> None:
    assert check("max_words", 12) == InstructionCheck("max_words", 12)
    assert check("choice", ["yes", "no"]) == InstructionCheck("choice", ("yes", "no"))


@pytest.mark.parametrize(
    ("kind", "value", "takes"),
    [
        ("max_words", "twelve", "a whole number above zero"),
        ("max_words", 0, "a whole number above zero"),
        ("max_words", 2.0, "a whole number above zero"),
        ("max_words", True, "a whole number above zero"),
        ("lowercase", 1, "true or false"),
        ("lowercase", "true", "true or false"),
        ("starts_with", ["Sure"], "text"),
        ("starts_with", " ", "text"),
        ("first_letter", "ab", "one letter"),
        ("first_letter", "1", "one letter"),
        ("contains_words", "moon", "a list of texts"),
        ("contains_words", [], "a list of texts"),
        ("choice", ["yes", False], "a list of texts"),
        ("json_keys", None, "a list of texts"),
        ("refuses", "yes", "true or false"),
        ("json_schema", "object", "a JSON Schema"),
        ("calls", 3, "a call, a list of calls, or none"),
    ],
)
def test_a_wrong_value_is_refused_with_the_expected_type(
    kind: str, value: object, takes: str
) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' takes {takes}") as error:
        check(kind, value)
    assert repr(tuple(value) if isinstance(value, list) else value) in str(error.value)
    assert all(possible in str(error.value) for possible in CHECK_FUNCTIONS)


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, value, *_ in CASES])
def test_a_check_is_plain_values_in_its_digest(kind: str, value: object) -> None:
    plain = dataclasses.asdict(check(kind, value))
    assert json.loads(json.dumps(plain)) == {
        "kind": kind,
        "value": [value] if kind == "calls" and isinstance(value, dict) else value,
    }


def test_an_unknown_kind_is_refused_with_the_possible_kinds() -> None:
    with pytest.raises(ValueError, match=r"check: unknown kind \(got 'max_wrds'\)") as error:
        check("max_wrds", 12)
    assert all(possible in str(error.value) for possible in CHECK_FUNCTIONS)


@pytest.mark.parametrize(
    "mapping",
    [{"kind": "max_words"}, {"value": 3}, {"kind": "words", "value": 3, "x": 1}, "words", None, {}],
)
def test_a_mapping_of_another_shape_is_refused(mapping: object) -> None:
    with pytest.raises(ValueError, match="keys kind and value"):
        InstructionCheck.parse(mapping)


def test_a_kind_that_is_not_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        InstructionCheck.parse({"kind": ["words"], "value": 3})
