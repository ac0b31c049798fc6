"""Words with BIO tags: what is refused, what they mark, and the tokens that carry them."""

from pathlib import Path
from typing import Any

import pytest

from lora_kit.backbone.files import resolve
from lora_kit.backbone.open_files import open_tokenizer
from lora_kit.data.builtin.roles import labelled_code
from lora_kit.data.entities import (
    Entity,
    entities_of,
    parse_tags,
    parse_words,
    read_entities,
    tag_names,
    tags_of,
    write_entities,
)
from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Row
from lora_kit.data.word_tokens import encode_words
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.token_classification import TokenClassificationSpec
from lora_kit.runtime.errors import BackboneError, DataError

WORDS = ("Ada", "likes", "New", "York")
TAGS = ("B-person", "O", "B-place", "I-place")


@pytest.mark.parametrize("value", ["a", "{", None, 3, [3], [""], ["a", " "], ["a", None], [["a"]]])
def test_what_are_no_words_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="f:1: tokens: not a list of texts"):
        parse_words(value, "f:1")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O"], r"tags: other lengths \(got 1 tags of 2 tokens\)"),
        (["O", "X"], r"tags\[1\]: not a BIO tag \(got 'X'\)"),
        (["O", "B-"], r"tags\[1\]: not a BIO tag \(got 'B-'\)"),
        (["O", "E-x"], r"tags\[1\]: not a BIO tag \(got 'E-x'\)"),
        (["O", "I-x"], r"tags\[1\]: I-x continues no entity.*\(got 'I-x' after 'O'\)"),
        (["B-y", "I-x"], r"tags\[1\]: I-x continues no entity.*after 'B-y'\).*with B-x"),
        (["I-x", "I-x"], r"tags\[0\]: I-x continues no entity"),
    ],
)
def test_what_are_no_tags_of_the_words_is_refused(tags: list[str], message: str) -> None:
    with pytest.raises(DataError, match=f"f:1: {message}"):
        parse_tags(tags, ("a", "b"), "f:1")


def test_a_row_of_words_is_read_with_its_cluster_also_from_csv() -> None:
    raw: dict[str, Any] = {"tokens": list(WORDS), "tags": list(TAGS), "cluster": 7}
    row = parse_row(raw, "f:1", needed=("tokens-tags",))
    assert (row.words, row.tags, row.cluster, row.unused) == (WORDS, TAGS, "7", ())
    texts = {"tokens": '["a"]', "tags": '["O"]'}
    assert parse_row(texts, "f:1", needed=("tokens-tags",)).words == ("a",)
    # Indices of classes, as data sets of the hub have them.
    numbers = {"tokens": ["a", "b"], "ner_tags": [1, 2]}
    named = parse_row(
        numbers,
        "f:1",
        columns={"tags": "ner_tags"},
        names={"ner_tags": ["O", "B-x", "I-x"]},
        needed=("tokens-tags",),
    )
    assert named.tags == ("B-x", "I-x")


def test_entities_are_written_with_their_words_and_read_again() -> None:
    entities = entities_of(TAGS)
    assert entities == (Entity("person", 0, 1), Entity("place", 2, 4))
    assert tags_of(entities, 4) == TAGS
    text = write_entities(entities, WORDS)
    assert '["place", 2, 4, "New York"]' in text
    assert read_entities(text) == entities


def test_the_outputs_of_a_head_are_two_tags_for_each_type() -> None:
    rows = [Row("row 0", "", words=WORDS, tags=TAGS)]
    expected = ["O", "B-person", "I-person", "B-place", "I-place"]
    assert tag_names(rows, TokenClassificationSpec()) == expected
    given = TokenClassificationSpec(entities=["place", "person"])
    assert tag_names(rows, given)[1:3] == ["B-place", "I-place"]


@pytest.mark.parametrize(
    ("entities", "rows", "message"),
    [
        (["place"], [TAGS], r"row 0: tags: unknown tag \(got 'B-person'; the head has O, B-place"),
        (["place", "person", "time"], [TAGS], r"no training row has the type \(got 'time'\)"),
        (None, [("O",) * 4], r"no row has an entity.*\(got the tag O only\)"),
        (None, [None], r"row 0: training.objective: token-classification needs a tag for each"),
    ],
)
def test_tags_that_a_head_cannot_learn_are_refused(
    entities: list[str] | None, rows: list[Any], message: str
) -> None:
    given = [Row(f"row {n}", "", words=WORDS, tags=tags) for n, tags in enumerate(rows)]
    with pytest.raises(DataError, match=message):
        tag_names(given, TokenClassificationSpec(entities=entities))


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "smollm2-135m-instruct"])
def test_the_first_token_of_each_word_is_found(name: str) -> None:
    tokenizer = open_tokenizer(resolve(BackboneSpec(model=name)).directory)
    words = ("foo_bar", "(", "Äx", "two words", ")", "x" * 30)
    (found,) = encode_words([words], tokenizer, 64)
    assert not found.truncated
    assert list(found.input_ids) == tokenizer(" ".join(words))["input_ids"]
    ends = [*found.starts[1:], len(found.input_ids) - (name == "all-minilm-l6-v2")]
    for word, start, end in zip(words, found.starts, ends, strict=True):
        text = tokenizer.decode(list(found.input_ids[start:end])).replace(" ", "")
        assert text.casefold().replace("a", "ä") == word.casefold().replace(" ", "").replace(
            "a", "ä"
        )
    # One token of the last word is within the limit, or none.
    (short,) = encode_words([words], tokenizer, (found.starts[-1] or 0) + (name[0] == "a"))
    assert (short.starts[:-1], short.starts[-1]) == (found.starts[:-1], None)
    assert short.truncated
    if name == "all-minilm-l6-v2":
        numbers = tokenizer(list(words), is_split_into_words=True).word_ids()
        assert found.starts == tuple(numbers.index(number) for number in range(len(words)))


def test_a_tokenizer_that_does_not_tell_places_is_refused(tiny_encoder: Path) -> None:
    tokenizer = open_tokenizer(tiny_encoder)

    class Slow:
        is_fast = False

    assert tokenizer.is_fast
    with pytest.raises(BackboneError, match=r"need a fast tokenizer.*\(got Slow\)"):
        encode_words([("a",)], Slow(), 8)  # type: ignore[arg-type]


def test_the_roles_of_names_follow_from_the_syntax_tree() -> None:
    code = (
        "def read(self, size=-1, **options):\n"
        "    self.size, rest = size, options.get('rest')\n"
        "    try:\n"
        "        with open(self.path, size=size) as file:\n"
        "            return [line for line in file.lines(rest=rest)]\n"
        "    except (OSError, socket.error):\n"
        "        raise errors.ReadError('no')\n"
    )
    found = labelled_code(code)
    assert found is not None
    words, tags = found
    named = [(one.name, " ".join(words[one.start : one.end])) for one in entities_of(tags)]
    assert named == [
        *(("parameter", name) for name in ("self", "size", "options")),
        ("target", "self . size"),
        ("target", "rest"),
        ("callee", "options . get"),
        ("callee", "open"),
        ("keyword", "size"),
        ("target", "file"),
        ("target", "line"),
        ("callee", "file . lines"),
        ("keyword", "rest"),
        ("exception", "OSError"),
        ("exception", "socket . error"),
        ("exception", "errors . ReadError"),
    ]
    assert labelled_code(code.replace("'no'", "f'{size}'")) is None
    assert labelled_code("def short(a):\n    return a\n") is None
