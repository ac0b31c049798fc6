"""Self-distillation of a base with few positions."""

from pathlib import Path

import pytest
import torch

from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.rows import Message, Row
from lora_kit.metrics.load import load_metric
from lora_kit.modeling.generation import Generator, generate, stop_token_ids
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import SelfDistillationSpec
from lora_kit.runtime.errors import DataError
from lora_kit.training.self_distillation.replay import generate_replay
from lora_kit.training.self_distillation.rewriting import rewrite_answers
from lora_kit.training.self_distillation.rows import cached_replay
from tests.narrow import write_narrow

POSITIONS = 24


def generator(directory: Path) -> Generator:
    spec = BackboneSpec(model=str(directory), quantization="none", dtype="float32")
    backbone = load(resolve(spec), spec)
    return Generator(backbone, stop_token_ids(backbone))


@pytest.fixture
def narrow(smollm: Path, tmp_path: Path) -> Backbone:
    return generator(write_narrow(tmp_path / "narrow", smollm, POSITIONS)).backbone


def test_short_and_long_prompts_are_continued_to_the_last_position(narrow: Backbone) -> None:
    prompts = [list(range(100, 100 + length)) for length in (2, 20, POSITIONS, POSITIONS + 1, 5)]
    # None of the texts ends; every token except the last fills a position.
    limits = [60, 60, 60, 60, 3]
    assert generate(narrow.model, prompts, [2], 2, limits) == [None] * 5
    with torch.no_grad():
        likeliest = int(narrow.model(torch.tensor([prompts[2]])).logits[0, -1].argmax())
    assert generate(narrow.model, prompts, [likeliest], 2, limits)[2] == ()
    alone = [generate(narrow.model, [one], [likeliest], 2, [60])[0] for one in prompts[:2]]
    assert generate(narrow.model, prompts, [likeliest], 2, limits)[:2] == alone


def test_generated_rows_fit_the_positions(
    tiny_recipe: Recipe, smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = generator(write_narrow(tmp_path / "ending", smollm, POSITIONS, ends=True)).backbone
    records = cached_replay(tiny_recipe, base, 40)
    lengths = [len(base.tokenizer(record["text"])["input_ids"]) for record in records]
    assert len(lengths) == 40
    assert max(lengths) <= POSITIONS


def test_too_few_rows_that_end_within_the_positions_are_an_error(narrow: Backbone) -> None:
    base = Generator(narrow, stop_token_ids(narrow))
    with pytest.raises(
        DataError, match=r"only 0 of 3 generated rows .* within 24 tokens .* Fix: lower data\.r"
    ):
        generate_replay(base, 3, max_length=128)


def test_a_template_that_leaves_no_position_is_refused(smollm: Path, tmp_path: Path) -> None:
    base = generator(write_narrow(tmp_path / "talking", smollm, 8, template=True))
    with pytest.raises(DataError, match=r"data\.replay\.source: .* has 8 positions \(got self\)"):
        generate_replay(base, 3, max_length=128)


def test_an_answer_that_does_not_fit_the_positions_is_not_rewritten(
    smollm: Path, tmp_path: Path
) -> None:
    base = generator(write_narrow(tmp_path / "wider", smollm, 64))
    answers = ("Blue.", "It is blue as the sky is on a clear day over the sea. " * 5)
    rows = [
        Row(f"r:{n}", "c", (Message("user", "Which?"), Message("assistant", answer)))
        for n, answer in enumerate(answers)
    ]
    spec = SelfDistillationSpec(similarity=0)
    found = rewrite_answers(base, rows, spec, load_metric("chrf"), max_length=128)
    assert not any(one.taken for one in found)
