from pathlib import Path

import pytest
from pydantic import ValidationError

from lora_kit.recipe.recipe import Recipe, recipe_names
from lora_kit.runtime.errors import DataError, RecipeError
from tests.training_rows import training_rows

GOOD = """
name: mine
backbone: {model: smollm2-135m-instruct}
data: {train: [{source: stdlib-docstrings}]}
"""

TEN_MISTAKES = """\
name: my run
seed: -1
seed: 3
backbone:
  model: smollm2-135m-instruct
  quantisation: nf4
  dtype: bf16
adapter:
  rank: true
  alfa: 3
  target_modules: [q_proj, ""]
data:
  train: {source: x}
training:
  learning_rate: fast
  epochs: 0
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return Recipe.load(path, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("adapter: {method: lorra}", "line 5, adapter.method: unknown method; did you mean lora? "),
        (
            "adapter: {target_modules: {a: 1}}",
            "line 5, adapter.target_modules: must be 'all-linear' or a list (got {'a': 1})",
        ),
        (
            "adapter: {target_modules: [q_proj, 3]}",
            "line 5, adapter.target_modules.1: must be a string (got 3)",
        ),
        ("adapter: [lora]", "line 5, adapter: must be a mapping (got ['lora'])"),
        (
            "classification: {class_weights: {a-b: no}}",
            "line 5, classification.class_weights.a-b: must be a number (got False)",
        ),
        (
            "classification:\n  class_weights:\n    1: 2\n    c d: -1",
            "line 8, classification.class_weights.c d: must be greater than 0 (got -1)",
        ),
        (
            "classification: {class_weights: balansed}",
            "class_weights: must be 'none' or 'balanced' or a mapping (got 'balansed')",
        ),
        ("training: {batch size: 3}", "line 5, training.batch size: unknown key. Did you mean"),
        ("1: 3", "line 5, 1: unknown key"),
        ("training: {1: 3}", "line 5, training.1: unknown key"),
        ("evaluation: {suites: []}", "evaluation.suites: must have at least 1 entries (got [])"),
        ("evaluation: {suites: [a, b, a]}", "names a twice (got ['a', 'b', 'a']). Fix: name each"),
        ("retention: {self_distillation: {similarity: true}}", "must be a number (got True)"),
    ],
)
def test_each_mistake_is_told_once_at_its_field_in_all_forms_that_it_takes(
    tmp_path: Path, written: str, told: str
) -> None:
    first, *lines = refusal(tmp_path, GOOD + written).splitlines()
    assert first.endswith("recipe.yaml: 1 problem")
    assert len(lines) == 1
    assert told in lines[0]


def test_a_section_that_is_overridden_has_no_lines_of_the_file(tmp_path: Path) -> None:
    text = GOOD + "training:\n  epochs: 3\n  batch_size: 4\n"
    told = refusal(tmp_path, text, "training={epochs: 0}").splitlines()
    assert told[1:] == ["  --set training.epochs: must be greater than 0 (got 0)"]


def test_ten_mistakes_are_told_at_once_each_with_its_line_and_remedy(tmp_path: Path) -> None:
    lines = refusal(tmp_path, TEN_MISTAKES).splitlines()
    assert "10 problems" in lines[0]
    told = "\n".join(lines[1:])
    for part in (
        "line 3, seed: given twice, first on line 2. Fix: keep one",
        "line 1, name: names a directory (got 'my run'). Fix: use letters, digits",
        "line 6, backbone.quantisation: unknown key. Did you mean `quantization`?",
        "line 7, backbone.dtype: must be 'auto', 'bfloat16', 'float16' or 'float32'",
        "line 9, adapter.rank: must be a number (got True)",
        "line 10, adapter.alfa: unknown key. Did you mean `alpha`?",
        "line 11, adapter.target_modules: names no module (got ['q_proj', '']). Fix: name",
        "line 13, data.train: must be a list",
        "line 15, training.learning_rate: must be a number",
        "line 16, training.epochs: must be greater than 0 (got 0)",
    ):
        assert part in told, part


def test_yaml_reads_1e_5_as_text_and_the_field_makes_it_a_number(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD + "training: {learning_rate: 1e-5}\n")
    assert recipe.training.learning_rate == 1e-5


def test_an_override_reaches_into_lists_and_absent_sections(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, GOOD, "data.train.0.limit=7", "training.epochs=2", "adapter.target_modules=[q]"
    )
    assert recipe.data.train[0].limit == 7
    assert recipe.training.epochs == 2
    assert recipe.adapter.target_modules == ["q"]


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("training.epochs", "write field=value"),
        ("data.train.3.limit=1", "a list of 1 entries"),
        ("name.first=x", "there is no `first` in"),
        ("training.rate=1", "unknown key"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(
    tmp_path: Path, assignment: str, part: str
) -> None:
    assert part in refusal(tmp_path, GOOD, assignment)


def test_a_batch_that_micro_batches_do_not_fill_is_refused(tmp_path: Path) -> None:
    text = refusal(tmp_path, GOOD + "training: {batch_size: 6, micro_batch_size: 4}\n")
    assert "micro_batch_size: does not divide training.batch_size 6 (got 4)" in text


def test_two_merges_that_would_be_the_same_are_refused(tmp_path: Path) -> None:
    plain = GOOD.replace("{model: ", "{quantization: none, model: ")
    assert "would be the same" in refusal(tmp_path, plain + "merge: {base: both}\n")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: 2024-13-45\n", "cannot be read"),
        ("a: &a [*a]\n", "a"),
        (GOOD + "seed: 5000000000\n", "seed"),
        ("", "got nothing"),
        ("- a\n", "got a list"),
        ("name: [", "not valid YAML"),
        ("name: x\n\tseed: 1\n", "line 2"),
    ],
)
def test_what_is_no_recipe_is_told_apart(tmp_path: Path, text: str, part: str) -> None:
    assert part in refusal(tmp_path, text)


def test_a_misspelt_bundled_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean `quickstart`"):
        Recipe.load("quikstart")


def test_all_bundled_recipes_are_valid_and_survive_being_written_out(tmp_path: Path) -> None:
    assert set(recipe_names()) == {
        "quickstart",
        "domain-text",
        "dpo",
        "reward",
        "grpo",
        "classify",
        "score",
        "tag",
        "extract",
        "embed",
        "mlm",
        "qlora-8b-chat",
        "lora-8b-chat",
    }
    for name in recipe_names():
        recipe = Recipe.load(name)
        assert load(tmp_path, recipe.to_yaml()) == recipe


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe.load("quickstart")
    with pytest.raises(ValidationError):
        recipe.training.epochs = 3


def test_a_perplexity_that_no_token_has_is_refused(tmp_path: Path) -> None:
    text = "name: t\nbackbone: {model: m}\ndata: {train: [{source: python-reference}]}\n"
    said = refusal(tmp_path, text, "retention.token_masking.max_perplexity=1.0")
    assert "retention.token_masking.max_perplexity: " in said
    assert "greater than 1" in said
    mask = load(
        tmp_path, text, "retention.token_masking.max_perplexity=1.1"
    ).retention.token_masking
    assert mask is not None
    assert mask.max_perplexity == 1.1


def test_continued_pre_training_takes_texts_and_splits_them(tmp_path: Path) -> None:
    text = (
        "name: t\nbackbone: {model: m}\n"
        "data: {train: [{source: python-reference}], validation: [{source: texts.jsonl}]}\n"
        "training: {objective: text}\n"
    )
    data = load(tmp_path, text).data
    assert data.overflow == "split"
    assert [one.format for one in (*data.train, *data.validation)] == ["text", "text"]
    assert load(tmp_path, text, "data.overflow=truncate").data.overflow == "truncate"
    assert (
        "data.train.0.format: objective text accepts only format: text (got messages)"
        in refusal(tmp_path, text, "data.train.0.format=messages")
    )


def test_conversations_are_refused_where_texts_are_learned() -> None:
    recipe = Recipe.load("domain-text", ["data.train.0.source=stdlib-docstrings"])
    with pytest.raises(DataError, match=r"data\.train\.0\.source: .*python-reference"):
        training_rows(recipe.data, recipe.seed)


@pytest.mark.parametrize("also", ["training.early_stopping_patience=2", "training.keep_best=true"])
def test_what_goes_by_validation_rows_needs_some(also: str) -> None:
    with pytest.raises(RecipeError, match=r"training\.eval_steps: .*data\.validation"):
        Recipe.load("quickstart", ["training.eval_steps=5", also, "data.validation=[]"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["training.decay_ratio=0.5"],
            r"is read by lr_scheduler wsd only, and lr_scheduler is \w+",
        ),
        (["data.temperature=2"], "temperature: mixes several sources"),
        (
            ["training.objective=text", "data.train_on=last"],
            r"data\.train_on: every token of a text",
        ),
    ],
)
def test_what_has_no_effect_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.load("quickstart", changes)
