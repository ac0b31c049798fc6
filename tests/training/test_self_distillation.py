"""What the base says before the training: rows of its own, answers in its words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.dataset import open_rows, prepare, training_rows
from lora_kit.data.rows import Message, Row
from lora_kit.metrics.load import load_metric
from lora_kit.modeling.generation import Generator, generate, stop_token_ids
from lora_kit.pipeline import merge, train
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import SelfDistillationSpec
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.training.self_distillation.replay import replay_records
from lora_kit.training.self_distillation.rewriting import Rewritten, putting_in, rewritten
from lora_kit.training.self_distillation.rows import read_rows

QUESTIONS = ("What is the capital of France?", "Name a colour.")


@pytest.fixture(scope="module")
def whole_backbone() -> Backbone:
    """The real model in float32: in 4 bits a CPU takes long for a token."""
    spec = BackboneSpec(model="smollm2-135m-instruct", quantization="none", dtype="float32")
    return load(resolve(spec), spec)


def changed(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    document = recipe.model_dump(mode="json")
    for name, values in sections.items():
        document[name] |= values
    return Recipe.model_validate(document)


def speaker(backbone: Backbone) -> Generator:
    return Generator(backbone, stop_token_ids(backbone))


def prompts(backbone: Backbone) -> list[list[int]]:
    from lora_kit.data.tokenization import tokenize_prompt

    return [tokenize_prompt([Message("user", one)], backbone.tokenizer) for one in QUESTIONS]


def test_what_is_said_does_not_depend_on_what_is_said_beside_it(whole_backbone: Backbone) -> None:
    asked = prompts(whole_backbone)
    assert len(asked[0]) != len(asked[1])
    together = speaker(whole_backbone).texts(asked, [24, 24], sampled=False)
    alone = [speaker(whole_backbone).texts([one], [24], sampled=False)[0] for one in asked]
    assert together == alone
    assert "Paris" in str(together[0])


def test_what_comes_to_no_end_is_not_taken(whole_backbone: Backbone) -> None:
    asked = prompts(whole_backbone)[:1]
    stops = stop_token_ids(whole_backbone)
    pad = whole_backbone.tokenizer.pad_token_id
    assert generate(whole_backbone.model, asked, stops, pad, [2]) == [None]
    [ended] = generate(whole_backbone.model, asked, stops, pad, [24])
    assert ended is not None
    assert not set(ended) & set(stops)


@pytest.mark.slow
def test_the_base_makes_conversations_of_its_own(whole_backbone: Backbone) -> None:
    torch.manual_seed(0)
    records = replay_records(speaker(whole_backbone), 2, longest=96)
    assert len(records) == 2
    for record in records:
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant"]
        assert all(message["content"].strip() for message in record["messages"])


def test_a_base_that_comes_to_no_end_is_said_so(tiny_backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"data\.replay\.source: self: \d of the 3 rows"):
        replay_records(speaker(tiny_backbone), 3, longest=4)


def rewritten_as(
    text: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, answer: str
) -> Rewritten:
    """What becomes of an answer that the base writes again as `text`."""
    monkeypatch.setattr(Generator, "texts", lambda *_, **__: [text])
    row = Row("rows.jsonl:1", "c", (Message("user", "When?"), Message("assistant", answer)))
    spec = SelfDistillationSpec(similarity=50)
    [found] = rewritten(speaker(backbone), [row], spec, load_metric("chrf"), 512)
    return found


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("The war ended in the year 1945.", True),
        ("The war ended in the year 1954.", False),
        ("The war ended in 1945, on May 8.", False),
        ("I am a helpful assistant.", False),
        ("The war ended in 1945.<|im_end|>", False),
        ("", False),
    ],
)
def test_an_answer_is_taken_where_it_says_the_same(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, text: str, taken: bool
) -> None:
    found = rewritten_as(text, tiny_backbone, monkeypatch, "The war ended in 1945.")
    assert found.taken is taken


def test_answers_that_are_taken_stand_in_the_rows_place() -> None:
    rows = [
        Row(f"r:{n}", "c", (Message("user", "?"), Message("assistant", f"answer {n}")))
        for n in (1, 2)
    ]
    text = Row("t:1", "c", text="answer 1")
    found = [
        Rewritten("r:1", "answer 1", "the answer: 1", 80.0, taken=True),
        Rewritten("r:2", "answer 2", "no", 1.0, taken=False),
    ]
    new = list(map(putting_in(found), [*rows, text]))
    assert [row.messages[-1].content for row in new[:2]] == ["the answer: 1", "answer 2"]
    assert new[2] == text


def test_own_rows_are_trained_on_kept_in_the_run_and_the_same_again(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def made(_speaker: Generator, count: int, _longest: int) -> list[dict[str, Any]]:
        asked.append(count)
        answer = f"Blue {torch.randint(1000, ()).item()}."
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        return [{"messages": turns}] * count

    monkeypatch.setattr("lora_kit.training.self_distillation.rows.replay_records", made)
    recipe = changed(tiny_recipe, data={"replay": {"source": "self", "fraction": 0.25}})
    wanted = training_rows(recipe.data, recipe.seed)[1]
    trained = train(recipe, tmp_path / "run")
    said = json.loads((tmp_path / "run" / "generated_rows.json").read_text())
    assert asked == [wanted]
    assert len(said["replay"]) == wanted
    record = trained.session.run.load_record()
    assert record["data"]["replay_rows"] == wanted
    assert record["data"]["sources"]["replay: self"]["used"] == wanted

    # From the run alone: another machine has another cache, and draws other numbers.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    torch.manual_seed(7)
    again = read_rows(
        recipe, open_rows(recipe.data, recipe.seed), trained.session.backbone, trained.run
    )
    digest = prepare(again.rows, trained.session.backbone.tokenizer, recipe.data).digest
    assert digest == record["data"]["digest"]
    assert asked == [wanted]


def test_a_run_with_rows_of_its_own_and_no_validation_is_merged(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a merge is compared on are the adapter's rows: the base's own are not made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Blue."}]
    monkeypatch.setattr(
        "lora_kit.training.self_distillation.rows.replay_records",
        lambda _, count, __: [{"messages": turns}] * count,
    )
    replay = {"source": "self", "fraction": 0.5}
    recipe = changed(tiny_recipe, data={"replay": replay, "validation": []})
    trained = train(recipe, tmp_path / "run")
    (merged,) = merge(trained.session.run.root)
    assert merged.verification.passed


def test_replay_keeps_its_words_and_every_row_its_source(
    tiny_recipe: Recipe, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = tiny_recipe.data.train[0].source
    again = tmp_path / "again.jsonl"
    again.write_text(Path(rows).read_text())

    def said(_: Any, asked: Sequence[Row], *__: Any) -> list[Rewritten]:
        contents = [(row.origin, row.messages[-1].content) for row in asked]
        return [Rewritten(*one, f"Well: {one[1]}", 99.0, taken=True) for one in contents]

    monkeypatch.setattr("lora_kit.training.self_distillation.rows.rewritten", said)
    # Of the same file, so that a row that is replayed is one that is learned too.
    replay = {"source": rows, "fraction": 0.3}
    recipe = changed(tiny_recipe, data={"replay": replay}, retention={"self_distillation": {}})
    recipe.data.train.append(recipe.data.train[0].model_copy(update={"source": str(again)}))
    before, wanted = training_rows(recipe.data, recipe.seed)
    read = read_rows(recipe, open_rows(recipe.data, recipe.seed), tiny_backbone)
    assert read.replay == wanted > 0
    assert [one.name for one in read.rows.sources] == [one.name for one in before.sources]
    assert read.rows.digest() != before.digest()
    for number, (row, old) in enumerate(zip(read.rows, before, strict=True)):
        is_replay = before.sources[before.parts[number]].name.startswith("replay: ")
        wanted_text = old.messages[-1].content
        assert row.messages[-1].content == (wanted_text if is_replay else f"Well: {wanted_text}")


def test_what_the_base_says_is_bent_by_no_default_of_its_own(tiny_backbone: Backbone) -> None:
    model, asked = tiny_backbone.model, prompts(tiny_backbone)[:1]
    logits = model(torch.tensor(asked)).logits[0, -1]
    likeliest = int(logits.argmax())
    assert generate(model, asked, [likeliest], 2, [4]) == [()]
    model.generation_config.suppress_tokens = [likeliest]
    assert generate(model, asked, [likeliest], 2, [4]) == [()]
    assert model.generation_config.suppress_tokens == [likeliest]


def test_texts_have_no_answers_to_write_again(tiny_recipe: Recipe) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["retention"] = {"self_distillation": {}}
    document["training"]["objective"] = "text"
    document["data"]["train"] = [{"source": "python-reference", "format": "text"}]
    document["data"]["validation"] = []
    with pytest.raises(ValueError, match=r"retention\.self_distillation: texts have no answers"):
        Recipe.model_validate(document)
    with pytest.raises(RecipeError, match=r"similarity"):
        Recipe.load("quickstart", ["retention.self_distillation.similarity=101"])
