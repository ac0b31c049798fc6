"""A model over several devices: its map, and the same numbers as on one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.accelerate import _get_device_map

from lora_kit.backbone import devices
from lora_kit.backbone import load as loading
from lora_kit.backbone.devices import device_arguments, require_on_gpus
from lora_kit.backbone.open_files import open_model
from lora_kit.merging import reloaded
from lora_kit.pipeline import evaluate, merge, merged_comparison, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import BackboneError
from tests.merging.in_process import in_this_process

QUIZ = """
name: quiz
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 4, max_length: 64, margin: 2}
  - {name: choice, kind: multiple_choice, source: general-knowledge, limit: 4, shots: 2,
     margin: 0.9}
  - {name: lines, kind: generation, metric: chrf, source: stdlib-docstrings, limit: 4,
     max_new_tokens: 3, margin: 0.9}
"""
PARTS = (
    "model.embed_tokens",
    "model.rotary_emb",
    "model.layers.0",
    "model.layers.1",
    "model.norm",
    "lm_head",
)
Memory = Callable[..., dict[str, Any]]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Return the arguments for a process that sees three GPUs with 600,000 bytes free each."""

    def arguments(count: int, processes: int = 1) -> dict[str, Any]:
        state = SimpleNamespace(device=torch.device("cuda", 0), num_processes=processes)
        with monkeypatch.context() as patched:
            patched.setattr(devices, "process_state", lambda: state)
            patched.setattr(torch.cuda, "device_count", lambda: 3)
            patched.setattr(torch.cuda, "mem_get_info", lambda _: (600_000, 800_000))
            return device_arguments(count)

    return arguments


@pytest.fixture
def map_of(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Any]:
    """Return the devices that transformers gives the parts of a model of four blocks."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(tiny, vocab_size=512, num_hidden_layers=4),
            dtype=torch.float32,
        )

    def places(arguments: dict[str, Any]) -> Any:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        return _get_device_map(model, arguments["device_map"], arguments["max_memory"], None)

    return places


def test_each_block_is_whole_on_one_of_as_many_gpus_as_the_recipe_allows(
    gpus: Memory, map_of: Callable[[dict[str, Any]], Any]
) -> None:
    arguments = gpus(2)
    assert arguments["max_memory"] == {0: 510_000, 1: 510_000}
    places = map_of(arguments)
    assert set(places.values()) == {0, 1}
    blocks = [name for name in places if ".layers." in name]
    assert sorted(blocks) == [f"model.layers.{number}" for number in range(4)]
    require_on_gpus(SimpleNamespace(hf_device_map=places), "x", 2)


def test_a_model_that_the_gpus_cannot_hold_is_refused_rather_than_left_on_the_disk(
    gpus: Memory, map_of: Callable[[dict[str, Any]], Any]
) -> None:
    arguments = gpus(2)
    small = {**arguments, "max_memory": dict.fromkeys(arguments["max_memory"], 140_000)}
    model = SimpleNamespace(hf_device_map=map_of(small))
    assert "disk" in model.hf_device_map.values()
    with pytest.raises(BackboneError, match=r"^x: the weights do not fit on 2 GPUs \(got \d of \d"):
        require_on_gpus(model, "x", 2)


def test_other_processes_and_missing_gpus_are_heeded(gpus: Memory) -> None:
    own = {"device_map": {"": torch.device("cuda", 0)}}
    assert gpus(1) == own
    assert gpus(2, processes=2) == own
    assert device_arguments(2) == {}
    with pytest.raises(BackboneError, match=r"^evaluation.gpus: .*got 4, it has 3\)"):
        gpus(4)


@in_this_process()
def test_a_merged_model_is_compared_in_the_place_of_the_backbone_if_there_is_no_room_beside_it(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = train(tiny_recipe, tmp_path / "run").session
    closed: list[str] = []
    close = session.opened.close
    monkeypatch.setattr(session.opened, "close", lambda: (closed.append("closed"), close()))
    for room, number in (({0: 10**9}, 0), ({0: 10**5, 1: 10**5}, 1)):
        monkeypatch.setattr(merged_comparison, "room_on_gpus", lambda _gpus, room=room: room)
        (found,) = merge(session, tmp_path / f"merged-{len(room)}-{number}")
        assert found.verification.passed
        assert len(closed) == number
    # A later stage finds the model again.
    assert session.model is not None


@in_this_process()
def test_a_model_in_two_parts_gives_the_numbers_of_the_whole(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts on the CPU, to each of which accelerate moves what goes in, as between GPUs."""
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    value = tiny_recipe.model_dump(mode="json")
    value["evaluation"] |= {"suites": [str(tmp_path / "quiz.yaml")], "gpus": 2}
    run = tmp_path / "run"
    session = train(Recipe.model_validate(value), run).session
    whole = merge(session, tmp_path / "whole")[0].verification
    merge(session)
    of_whole = evaluate(session, arms=["merged"], output=tmp_path / "one", no_cache=True)
    asked: list[int] = []

    def arguments(gpus: int) -> dict[str, Any]:
        asked.append(gpus)
        return {}

    def in_parts(*positional: Any, **named: Any) -> Any:
        model, report = open_model(*positional, **named)
        parts = dict.fromkeys(PARTS, "cpu")
        skipped = model._skip_keys_device_placement
        dispatch_model(model, parts, force_hooks=True, skip_keys=skipped)
        del model.hf_device_map  # of a model whose rest is left in main memory
        return model, report

    for module in (loading, reloaded):
        monkeypatch.setattr(module, "device_arguments", arguments)
        monkeypatch.setattr(module, "open_model", in_parts)
    session.close()
    assert hasattr(session.backbone.model.model.layers[1], "_hf_hook")
    assert merge(session, tmp_path / "parts")[0].verification == whole
    of_parts = evaluate(session, arms=["merged"], output=tmp_path / "two", no_cache=True)
    assert asked == [2, 2, 2]
    for one, other in zip(of_whole.read_entries(), of_parts.read_entries(), strict=True):
        assert (one.item, one.score, one.log_likelihoods) == (
            other.item,
            other.score,
            other.log_likelihoods,
        )
