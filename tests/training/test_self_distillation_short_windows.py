"""What the base says ends where its positions do."""

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
from lora_kit.training.self_distillation.replay import replay_records
from lora_kit.training.self_distillation.rewriting import rewritten
from lora_kit.training.self_distillation.rows import replayed
from tests.narrow import write_narrow

PLACES = 24


def speaker(directory: Path) -> Generator:
    spec = BackboneSpec(model=str(directory), quantization="none", dtype="float32")
    backbone = load(resolve(spec), spec)
    return Generator(backbone, stop_token_ids(backbone))


@pytest.fixture
def narrow(smollm: Path, tmp_path: Path) -> Backbone:
    return speaker(write_narrow(tmp_path / "narrow", smollm, PLACES)).backbone


def test_short_and_long_prompts_are_gone_on_with_to_the_last_place(narrow: Backbone) -> None:
    prompts = [list(range(100, 100 + length)) for length in (2, 20, PLACES, PLACES + 1, 5)]
    # None of these is said; a place is filled with each token but the last.
    most = [60, 60, 60, 60, 3]
    assert generate(narrow.model, prompts, [2], 2, most) == [None] * 5
    with torch.no_grad():
        likeliest = int(narrow.model(torch.tensor([prompts[2]])).logits[0, -1].argmax())
    assert generate(narrow.model, prompts, [likeliest], 2, most)[2] == ()
    alone = [generate(narrow.model, [one], [likeliest], 2, [60])[0] for one in prompts[:2]]
    assert generate(narrow.model, prompts, [likeliest], 2, most)[:2] == alone


def test_rows_of_its_own_find_places(
    tiny_recipe: Recipe, smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = speaker(write_narrow(tmp_path / "ending", smollm, PLACES, ends=True)).backbone
    records = replayed(tiny_recipe, base, 40)
    lengths = [len(base.tokenizer(record["text"])["input_ids"]) for record in records]
    assert len(lengths) == 40
    assert max(lengths) <= PLACES


def test_a_base_that_comes_to_no_end_within_its_positions_is_said_so(narrow: Backbone) -> None:
    base = Generator(narrow, stop_token_ids(narrow))
    with pytest.raises(DataError, match=r"0 of the 3 rows .* within 24 tokens, .*; lower data\.r"):
        replay_records(base, 3, longest=128)


def test_a_template_that_leaves_no_room_is_refused(smollm: Path, tmp_path: Path) -> None:
    base = speaker(write_narrow(tmp_path / "talking", smollm, 8, template=True))
    with pytest.raises(DataError, match=r"data\.replay\.source: self: .* has 8 positions"):
        replay_records(base, 3, longest=128)


def test_an_answer_without_room_to_be_written_again_stays_as_it_is(
    smollm: Path, tmp_path: Path
) -> None:
    base = speaker(write_narrow(tmp_path / "wider", smollm, 64))
    answers = ("Blue.", "It is blue as the sky is on a clear day over the sea. " * 5)
    rows = [
        Row(f"r:{n}", "c", (Message("user", "Which?"), Message("assistant", answer)))
        for n, answer in enumerate(answers)
    ]
    spec = SelfDistillationSpec(similarity=0)
    found = rewritten(base, rows, spec, load_metric("chrf"), longest=128)
    assert not any(one.taken for one in found)
