"""Self-distillation: replay rows and rewritten answers that the base generates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.dataset import open_rows, prepare
from lora_kit.data.rows import Message, Row
from lora_kit.metrics.load import load_metric
from lora_kit.modeling.generation import Generator, generate, stop_token_ids
from lora_kit.pipeline import merge, train
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import SelfDistillationSpec
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.training.self_distillation.replay import generate_replay
from lora_kit.training.self_distillation.rewriting import (
    RewrittenAnswer,
    replace_answers,
    rewrite_answers,
)
from lora_kit.training.self_distillation.rows import read_training_rows
from tests.merging.in_process import in_this_process
from tests.training_rows import training_rows

QUESTIONS = ("What is the capital of France?", "Name a colour.")


@pytest.fixture(scope="module")
def smollm_backbone() -> Backbone:
    """Return the real model in float32, since 4-bit generation is slow on a CPU."""
    spec = BackboneSpec(model="smollm2-135m-instruct", quantization="none", dtype="float32")
    return load(resolve(spec), spec)


def changed(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    document = recipe.model_dump(mode="json")
    for name, values in sections.items():
        document[name] |= values
    return Recipe.model_validate(document)


def generator(backbone: Backbone) -> Generator:
    return Generator(backbone, stop_token_ids(backbone))


def prompts(backbone: Backbone) -> list[list[int]]:
    from lora_kit.data.tokenization import tokenize_prompt

    return [tokenize_prompt([Message("user", one)], backbone.tokenizer) for one in QUESTIONS]


def test_generated_text_does_not_depend_on_the_batch(smollm_backbone: Backbone) -> None:
    asked = prompts(smollm_backbone)
    assert len(asked[0]) != len(asked[1])
    together = generator(smollm_backbone).texts(asked, [24, 24], sampled=False)
    alone = [generator(smollm_backbone).texts([one], [24], sampled=False)[0] for one in asked]
    assert together == alone
    assert "Paris" in str(together[0])


def test_text_that_does_not_end_is_discarded(smollm_backbone: Backbone) -> None:
    asked = prompts(smollm_backbone)[:1]
    stops = stop_token_ids(smollm_backbone)
    pad = smollm_backbone.tokenizer.pad_token_id
    assert generate(smollm_backbone.model, asked, stops, pad, [2]) == [None]
    [ended] = generate(smollm_backbone.model, asked, stops, pad, [24])
    assert ended is not None
    assert not set(ended) & set(stops)


@pytest.mark.slow
def test_the_base_generates_conversations(smollm_backbone: Backbone) -> None:
    torch.manual_seed(0)
    records = generate_replay(generator(smollm_backbone), 2, max_length=96)
    assert len(records) == 2
    for record in records:
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant"]
        assert all(message["content"].strip() for message in record["messages"])


def test_too_few_rows_that_end_are_an_error(tiny_backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"data\.replay\.source: only \d of 3 generated rows"):
        generate_replay(generator(tiny_backbone), 3, max_length=4)


def rewritten_as(
    text: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, answer: str
) -> RewrittenAnswer:
    """Return the result for an answer that the base rewrites as `text`."""
    monkeypatch.setattr(Generator, "texts", lambda *_, **__: [text])
    row = Row("rows.jsonl:1", "c", (Message("user", "When?"), Message("assistant", answer)))
    spec = SelfDistillationSpec(similarity=50)
    [found] = rewrite_answers(generator(backbone), [row], spec, load_metric("chrf"), 512)
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
def test_a_rewritten_answer_is_taken_if_it_matches_the_reference(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, text: str, taken: bool
) -> None:
    found = rewritten_as(text, tiny_backbone, monkeypatch, "The war ended in 1945.")
    assert found.taken is taken


def test_answers_that_are_taken_replace_the_rows_answers() -> None:
    rows = [
        Row(f"r:{n}", "c", (Message("user", "?"), Message("assistant", f"answer {n}")))
        for n in (1, 2)
    ]
    text = Row("t:1", "c", text="answer 1")
    found = [
        RewrittenAnswer("r:1", "answer 1", "the answer: 1", 80.0, taken=True),
        RewrittenAnswer("r:2", "answer 2", "no", 1.0, taken=False),
    ]
    new = list(map(replace_answers(found), [*rows, text]))
    assert [row.messages[-1].content for row in new[:2]] == ["the answer: 1", "answer 2"]
    assert new[2] == text


def test_generated_rows_are_trained_on_and_read_again_from_the_run(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def generate_rows(_generator: Generator, count: int, _longest: int) -> list[dict[str, Any]]:
        asked.append(count)
        answer = f"Blue {torch.randint(1000, ()).item()}."
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        return [{"messages": turns}] * count

    monkeypatch.setattr("lora_kit.training.self_distillation.rows.generate_replay", generate_rows)
    recipe = changed(tiny_recipe, data={"replay": {"source": "self", "fraction": 0.25}})
    expected = training_rows(recipe.data, recipe.seed)[1]
    trained = train(recipe, tmp_path / "run")
    generated = json.loads((tmp_path / "run" / "generated_rows.json").read_text())
    assert asked == [expected]
    assert len(generated["replay"]) == expected
    record = trained.session.run.load_record()
    assert record["data"]["replay_rows"] == expected
    assert record["data"]["sources"]["replay: self"]["used"] == expected

    # On another machine the cache is empty and the random state differs; the run has the rows.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    torch.manual_seed(7)
    again = read_training_rows(
        recipe, open_rows(recipe.data, recipe.seed), trained.session.backbone, trained.run
    )
    digest = prepare(again.rows, trained.session.backbone.tokenizer, recipe.data).digest
    assert digest == record["data"]["digest"]
    assert asked == [expected]


def test_a_run_with_generated_rows_and_no_validation_is_merged(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge is verified on the adapter's training rows, which are not generated again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Blue."}]
    monkeypatch.setattr(
        "lora_kit.training.self_distillation.rows.generate_replay",
        lambda _, count, __: [{"messages": turns}] * count,
    )
    replay = {"source": "self", "fraction": 0.5}
    recipe = changed(tiny_recipe, data={"replay": replay, "validation": []})
    trained = train(recipe, tmp_path / "run")
    with in_this_process():
        (merged,) = merge(trained.session.run.root)
    assert merged.verification.passed


def test_replay_rows_keep_their_answers_and_every_row_its_source(
    tiny_recipe: Recipe, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = tiny_recipe.data.train[0].source
    again = tmp_path / "again.jsonl"
    again.write_text(Path(rows).read_text())

    def rewrite(_: Any, rows: Sequence[Row], *__: Any) -> list[RewrittenAnswer]:
        contents = [(row.origin, row.messages[-1].content) for row in rows]
        return [RewrittenAnswer(*one, f"Well: {one[1]}", 99.0, taken=True) for one in contents]

    monkeypatch.setattr("lora_kit.training.self_distillation.rows.rewrite_answers", rewrite)
    # Replay reads the same file, so replayed rows are also learned.
    replay = {"source": rows, "fraction": 0.3}
    recipe = changed(tiny_recipe, data={"replay": replay}, retention={"self_distillation": {}})
    recipe.data.train.append(recipe.data.train[0].model_copy(update={"source": str(again)}))
    before, expected = training_rows(recipe.data, recipe.seed)
    read = read_training_rows(recipe, open_rows(recipe.data, recipe.seed), tiny_backbone)
    assert read.replay == expected > 0
    assert [one.name for one in read.rows.sources] == [one.name for one in before.sources]
    assert read.rows.digest() != before.digest()
    for number, (row, old) in enumerate(zip(read.rows, before, strict=True)):
        is_replay = before.sources[before.parts[number]].name.startswith("replay: ")
        expected_text = old.messages[-1].content
        assert row.messages[-1].content == (
            expected_text if is_replay else f"Well: {expected_text}"
        )


def test_generation_ignores_the_defaults_of_the_generation_config(tiny_backbone: Backbone) -> None:
    model, asked = tiny_backbone.model, prompts(tiny_backbone)[:1]
    logits = model(torch.tensor(asked)).logits[0, -1]
    likeliest = int(logits.argmax())
    assert generate(model, asked, [likeliest], 2, [4]) == [()]
    model.generation_config.suppress_tokens = [likeliest]
    assert generate(model, asked, [likeliest], 2, [4]) == [()]
    assert model.generation_config.suppress_tokens == [likeliest]


def test_texts_have_no_answers_to_rewrite(tiny_recipe: Recipe) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["retention"] = {"self_distillation": {}}
    document["training"]["objective"] = "text"
    document["data"]["train"] = [{"source": "python-reference", "format": "text"}]
    document["data"]["validation"] = []
    with pytest.raises(ValueError, match=r"retention\.self_distillation: texts have no answers"):
        Recipe.model_validate(document)
    with pytest.raises(RecipeError, match=r"similarity"):
        Recipe.load("quickstart", ["retention.self_distillation.similarity=101"])
