"""Whatever a recipe or a row holds: it is read, or refused with a message. Nothing else happens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_kit.data.dataset import prepare
from lora_kit.evaluation.suite import Suite
from lora_kit.recipe.data import DataSpec
from lora_kit.recipe.document import Document, override
from lora_kit.recipe.load import validate
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import LoraKitError
from tests.training_rows import training_rows

# Files and a tokenizer are the same for all examples of a test.
FREELY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
WORDS = st.text(max_size=30)
TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "robot"]),
        "content": WORDS | st.none() | st.lists(WORDS, max_size=2),
    }
)
ROWS = st.one_of(
    VALUES,
    st.fixed_dictionaries({"prompt": WORDS, "completion": WORDS}),
    st.fixed_dictionaries({"text": WORDS}),
    st.fixed_dictionaries({"text": WORDS, "label": WORDS | st.integers()}),
    st.fixed_dictionaries({"messages": st.lists(TURNS, max_size=5)}),
    st.fixed_dictionaries({"instruction": WORDS, "input": WORDS, "output": WORDS}),
)


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """Return the result of a call, or the message of its refusal."""
    try:
        return call(), ""
    except LoraKitError as error:
        return None, str(error) or "no message"


def paths(value: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [p for name, part in value.items() for p in paths(part, (*prefix, name))] + [prefix]
    return [prefix]


WHOLE = Recipe.load("quickstart").model_dump(mode="json")
FIELDS = [path for path in paths(WHOLE) if path]


@FREELY
@given(path=st.sampled_from(FIELDS), value=VALUES)
def test_a_recipe_is_read_or_refused(path: tuple[str, ...], value: Any) -> None:
    document = yaml.safe_load(yaml.safe_dump(WHOLE))
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    recipe, message = attempt(lambda: validate(Recipe, Document("r.yaml", document)))
    if recipe is None:
        assert path[0] in message
    else:
        assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


@FREELY
@given(text=st.text(max_size=60))
def test_an_override_is_read_or_refused(text: str) -> None:
    recipe, message = attempt(lambda: validate(Recipe, override(Document("r.yaml", WHOLE), text)))
    assert (recipe is None) == (message != "")
    assert message != "no message"


@FREELY
@given(value=st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_a_suite_is_read_or_refused(value: dict[str, Any]) -> None:
    suite, message = attempt(lambda: validate(Suite, Document("s.yaml", value)))
    assert suite is not None or "s.yaml" in message


@FREELY
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_no_row_is_lost(rows: list[Any], tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    spec = DataSpec.model_validate({"train": [{"source": str(path)}], "max_length": 64})
    counts, message = attempt(
        lambda: prepare(training_rows(spec, seed=0)[0], tokenizer, spec).counts
    )
    if counts is None:
        assert "rows.jsonl" in message
    else:
        assert counts.rows == len(rows)
        assert counts.used + counts.dropped >= counts.rows
