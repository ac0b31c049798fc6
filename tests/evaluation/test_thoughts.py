"""Thoughts before answers: prompts, grades, and a small model that learns to think."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from lora_kit.backbone.load import Backbone
from lora_kit.data.rows import Message, Row
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import GenerationRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.thoughts import Thinking, answer_behind_thought, opens_thought
from lora_kit.preflight.thoughts import TaughtThoughts, taught_thoughts
from lora_kit.recipe.sections import EvaluationSpec

THOUGHTS = (Path(__file__).parents[1] / "data" / "thoughts.jinja").read_text()
ROWS = [
    {"id": "a", "prompt": "Say A.", "checks": [{"kind": "choice", "value": ["A"]}]},
    {"id": "b", "prompt": "Say B.", "checks": [{"kind": "choice", "value": ["B"]}]},
]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {"name": "follow", "kind": "instructions", "source": str(path), "max_new_tokens": 4}
    return Suite.model_validate({"name": "x", "role": "gain", "tasks": [task]})


@pytest.fixture
def thinker(tiny_backbone: Backbone) -> Any:
    """Yield a backbone whose template is of Qwen3's kind."""
    before = tiny_backbone.tokenizer.chat_template
    tiny_backbone.tokenizer.chat_template = THOUGHTS
    yield tiny_backbone
    tiny_backbone.tokenizer.chat_template = before


def test_the_template_s_own_switch_decides_how_the_answer_begins(
    thinker: Backbone, suite: Suite
) -> None:
    texts = {}
    for tokens in (0, 7):
        [work] = plan_work([suite], thinker, thinking=Thinking(tokens))
        request = work.task.items[0].request
        assert isinstance(request, GenerationRequest)
        assert request.max_new_tokens == 4 + tokens
        texts[tokens] = str(thinker.tokenizer.decode(request.prompt_ids))
        assert not work.task.items[0].opens_thought
    assert texts[0].endswith("<think>\n\n</think>\n\n")
    assert texts[7].endswith("<|im_start|>assistant\n")


def test_the_answer_is_what_follows_the_end_of_the_thought(thinker: Backbone, suite: Suite) -> None:
    [work] = plan_work([suite], thinker, thinking=Thinking(7))
    item = work.task.items[0]
    scores = {
        "<think>Not B.</think>\n\nA": (1.0, 0.0),
        "<think>A it is.</think>\n\nB": (0.0, 0.0),
        "<think>A, A, A": (0.0, 1.0),
        "A": (1.0, 0.0),
    }
    for text, expected in scores.items():
        graded = work.task.grade(item, Outcome(text=text))
        assert (graded.score, graded.measures["unended_thoughts"]) == expected
        assert graded.output == text
    [plain] = plan_work([suite], thinker)
    assert "unended_thoughts" not in plain.task.grade(item, Outcome(text="A")).measures


def test_a_thought_that_the_template_opens_has_to_end(thinker: Backbone, suite: Suite) -> None:
    thinker.tokenizer.chat_template = THOUGHTS + "{{- '<think>\\n' if enable_thinking }}"
    [work] = plan_work([suite], thinker, thinking=Thinking(7))
    item = work.task.items[0]
    assert item.opens_thought
    assert work.task.grade(item, Outcome(text="A")).score == 0.0
    assert work.task.grade(item, Outcome(text="hm</think>A")).score == 1.0


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("a <think>\n", True),
        ("a <think>\n\n</think>\n\n", False),
        ("<think>x</think> b <think>", True),
        ("a", False),
    ],
)
def test_open_thoughts(prompt: str, is_open: bool) -> None:
    assert opens_thought(prompt) == is_open
    assert answer_behind_thought("A", is_open) == (None if is_open else "A")


def test_a_plan_says_which_thoughts_the_rows_teach(thinker: Backbone) -> None:
    def row(answer: str, **extra: str) -> Row:
        last = Message("assistant", answer, extra=tuple(extra.items()))
        return Row("x", "", (Message("user", "Q"), last))

    with_thought = row("<think>so</think>A")
    rows = [with_thought, row("A", reasoning_content="so"), row("A"), row("<think>\n</think>A")]
    taught = taught_thoughts(rows, thinker.tokenizer)
    assert taught == TaughtThoughts(thoughts=2, empty=2, none=0)
    assert taught.warning(EvaluationSpec()) == ""
    only = taught_thoughts([with_thought] * 3, thinker.tokenizer)
    assert "3 of 3 training answers have a thought" in only.warning(EvaluationSpec())
    without = taught_thoughts(rows[2:], thinker.tokenizer)
    assert "no training row has one" in without.warning(EvaluationSpec(thinking=True))
    assert only.warning(EvaluationSpec(thinking=True)) == ""
    thinker.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert taught_thoughts(rows[2:3], thinker.tokenizer) == TaughtThoughts(0, 0, 1)


def test_tokens_of_thoughts_without_thoughts_are_refused() -> None:
    assert EvaluationSpec(thinking=True, thinking_tokens=9).thinking_tokens == 9
    with pytest.raises(ValidationError, match="`thinking_tokens` has no effect"):
        EvaluationSpec(thinking_tokens=9)


@pytest.mark.slow
def test_a_small_model_learns_to_think_and_is_judged_behind_its_thoughts(
    smollm: Path, tmp_path: Path
) -> None:
    """Train the real model on rows with thoughts; with too few tokens, no thought ends."""
    from lora_kit.pipeline import evaluate, train
    from lora_kit.recipe.recipe import Recipe

    model = tmp_path / "model"
    shutil.copytree(smollm, model)
    (model / "chat_template.jinja").write_text(THOUGHTS)
    words = [
        "tree",
        "river",
        "stone",
        "cloud",
        "house",
        "bread",
        "light",
        "music",
        "paper",
        "glass",
    ]

    def chat(word: str, time: int) -> dict[str, Any]:
        answer = (
            f"<think>\nThe word is {word}, in capitals {word.upper()}.\n</think>\n\n{word.upper()}"
        )
        return {"prompt": f"Write {word} in capitals ({time}).", "completion": answer}

    rows = [chat(word, time) for time in range(6) for word in words]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [
        {"id": f"{word}-{time}", "prompt": f"Write {word} in capitals ({time})."}
        | {"checks": [{"kind": "choice", "value": [word.upper()]}]}
        for time in range(10, 16)
        for word in words
    ]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    task = {"name": "capitals", "kind": "instructions", "source": str(tmp_path / "held.jsonl")}
    suite = {"name": "think", "role": "gain", "tasks": [task | {"max_new_tokens": 8}]}
    (tmp_path / "think.yaml").write_text(yaml.safe_dump(suite))
    recipe = Recipe.model_validate(
        {
            "name": "thinker",
            "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
            "data": {
                "train": [{"source": str(tmp_path / "rows.jsonl")}],
                "validation": [{"source": str(tmp_path / "rows.jsonl"), "limit": 4}],
                "max_length": 128,
            },
            "training": {"batch_size": 8, "learning_rate": 1e-3, "epochs": 4},
            "evaluation": {
                "suites": [str(tmp_path / "think.yaml")],
                "thinking": True,
                "thinking_tokens": 48,
            },
        }
    )
    session = train(recipe, tmp_path / "run").session
    done = evaluate(session)
    [(_, verdict)] = done.verdict.tasks
    assert verdict.adapter > 0.8 > 0.5 > verdict.base
    assert done.verdict.decision == "PASS"
    short = evaluate(session, thinking=4)
    assert short.directory != done.directory
    [(_, cut)] = short.verdict.tasks
    assert cut.adapter == 0.0
    [unended] = [one for one in cut.measures if one.name == "unended_thoughts"]
    assert unended.adapter == 1.0
