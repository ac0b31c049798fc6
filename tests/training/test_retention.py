"""Ways to keep what the base knew: what each does to a training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from lora_kit.adapters import ADAPTER_WEIGHTS, attach, attach_saved, switched_off
from lora_kit.backbone import Backbone, load, resolve
from lora_kit.data.dataset import prepare, training_rows
from lora_kit.data.tokenization import IGNORED, end_of_turn
from lora_kit.errors import DataError, RecipeError, TrainingError
from lora_kit.likelihood import pad_examples
from lora_kit.pipeline import train
from lora_kit.recipe import Recipe
from lora_kit.retention_spec import AnchorSpec, ConsolidationSpec, MaskSpec, RetentionSpec
from lora_kit.run import RunDirectory
from lora_kit.training.retention.anchor import Anchor
from lora_kit.training.retention.budget import Budget, pessimistic_rise
from lora_kit.training.retention.consolidation import (
    Consolidation,
    fisher,
    low_rank_updates,
)
from lora_kit.training.retention.masking import without_improbable
from lora_kit.training.retention.texts import read_texts

SPEC = AnchorSpec(rows=3, length=24)


def changed(recipe: Recipe, retention: dict[str, Any], **training: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["retention"] = retention
    document["training"] |= training
    return Recipe.model_validate(document)


def disturbed(backbone: Backbone, recipe: Recipe, size: float = 0.05) -> Any:
    model = attach(backbone, recipe.adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return model


def anchor_of(model: Any, backbone: Backbone, rows: int = 2) -> Anchor:
    texts = read_texts(SPEC, backbone.tokenizer, 0, "retention.anchor", limit=8)
    return Anchor(model, texts.examples, SPEC, 0, backbone.tokenizer.pad_token_id, rows, None)


def gradient(model: Any) -> torch.Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


def test_the_anchor_is_the_divergence_from_the_base(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    anchor = anchor_of(model, tiny_backbone)
    found = sum(float(part) for part in anchor.losses(0, 0, 1))
    total, tokens = 0.0, 0
    for number in anchor._of_step(0):
        ids = torch.tensor([anchor._examples[number].input_ids])
        with torch.no_grad():
            now = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            with switched_off(model):
                base = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total += float((base.exp() * (base - now)).sum())
        tokens += ids.shape[1] - 1
    assert found == pytest.approx(total / tokens, rel=1e-4)
    assert found > 1e-4


def test_a_new_adapter_is_at_the_anchor(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    assert sum(float(part) for part in anchor_of(model, tiny_backbone).losses(0, 0, 1)) == 0


def test_the_parts_of_two_processes_are_the_anchor_of_one(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    anchor = anchor_of(model, tiny_backbone)
    for part in anchor.losses(4, 0, 1):
        part.backward()
    alone = gradient(model)
    for process in (0, 1):
        for part in anchor.losses(4, process, 2):
            part.backward()
    torch.testing.assert_close(gradient(model), alone, rtol=1e-4, atol=1e-7)


def test_each_text_is_seen_before_one_comes_again(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    anchor = anchor_of(attach(tiny_backbone, tiny_recipe.adapter, 0), tiny_backbone)
    seen = [number for step in range(8) for number in anchor._of_step(step)]
    assert [sorted(seen[start : start + 8]) for start in (0, 8, 16)] == [list(range(8))] * 3
    assert seen[:8] != seen[8:16]


def test_an_anchored_training_stays_nearer_to_the_base(tiny_recipe: Recipe, tmp_path: Path) -> None:
    strong = {"anchor": {"weight": 50.0, "rows": 4, "length": 32}}
    found = {}
    for name, retention in (("free", {}), ("held", strong)):
        recipe = changed(tiny_recipe, retention, epochs=2.0, learning_rate=5e-3)
        trained = train(recipe, tmp_path / name)
        model = trained.session.model.eval()
        anchor = anchor_of(model, trained.session.backbone)
        with torch.no_grad():
            found[name] = sum(float(part) for part in anchor.losses(0, 0, 1))
        assert trained.result.final_loss < trained.result.first_loss
        assert ("anchor" in trained.result.history[-1]) is (name == "held")
    assert found["held"] < 0.5 * found["free"]


def test_the_fisher_information_is_the_square_of_each_texts_gradient(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    texts = read_texts(SPEC, tiny_backbone.tokenizer, 0, "retention.consolidation", limit=3)
    layers = {name: update.base for name, update in low_rank_updates(model).items()}
    found = fisher(model, tiny_backbone, texts.examples, layers)
    assert set(found) == set(layers)
    name = next(name for name in layers if "layers.0.self_attn.v_proj" in name)
    weight = layers[name].weight.requires_grad_()
    wanted = torch.zeros_like(weight)
    with switched_off(model):
        for example in texts.examples:
            ids = torch.tensor([example.input_ids])
            logits = model(input_ids=ids).logits[0, :-1]
            cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
            assert weight.grad is not None
            wanted += weight.grad**2 / (3 * (ids.shape[1] - 1))
            weight.grad = None
    torch.testing.assert_close(found[name].float(), wanted, rtol=0.02, atol=1e-8)


def test_the_consolidations_gradient_is_that_of_its_penalty(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    texts = read_texts(SPEC, tiny_backbone.tokenizer, 0, "retention.consolidation", limit=3)
    held = Consolidation(
        model, tiny_backbone, texts.examples, ConsolidationSpec.model_validate({"weight": 7.0})
    )
    nothing: Any = None
    held.on_train_begin(nothing, nothing, nothing)
    assert all(p.grad is None for p in model.parameters())
    held.on_pre_optimizer_step(nothing, nothing, nothing)
    found = gradient(model)
    for name, update in low_rank_updates(model).items():
        moved = update.scaling * update.second @ update.first
        (3.5 * (held._fisher[name].float() * moved**2).sum()).backward()
    torch.testing.assert_close(found, gradient(model), rtol=1e-4, atol=1e-9)
    assert found.abs().max() > 0


@pytest.mark.parametrize("adapter", [{"method": "ia3"}, {"options": {"use_dora": True}}])
def test_consolidation_is_for_lora(tiny_recipe: Recipe, adapter: dict[str, Any]) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document |= {"retention": {"consolidation": {}}, "adapter": adapter}
    with pytest.raises(ValueError, match=r"retention\.consolidation: holds the product"):
        Recipe.model_validate(document)


def test_a_consolidated_training_moves_less(tiny_recipe: Recipe, tmp_path: Path) -> None:
    strong = {"consolidation": {"weight": 1e8, "rows": 4, "length": 32}}
    moved = {}
    for name, retention in (("free", {}), ("held", strong)):
        model = train(changed(tiny_recipe, retention, epochs=2.0), tmp_path / name).session.model
        updates = low_rank_updates(model).values()
        moved[name] = sum(float((one.second @ one.first).norm()) for one in updates)
    assert moved["held"] < 0.7 * moved["free"]


def test_the_mask_leaves_what_the_base_finds_probable(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    rows, _ = training_rows(tiny_recipe.data, 0)
    data = prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data)
    # The random model's perplexities are all near its vocabulary's size.
    spec = MaskSpec(max_perplexity=49_152.0)
    left = without_improbable(data, model, tiny_backbone, spec, 256)
    end = end_of_turn(tiny_backbone.tokenizer)
    by_origin = {example.origin: example for example in left.examples}
    kept = 0
    for before in data.examples:
        after = by_origin.get(before.origin)
        if after is None:
            continue
        batch = pad_examples([before], 0)
        with torch.no_grad(), switched_off(model):
            logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
        nll = cross_entropy(logits, batch["labels"][0, 1:], ignore_index=IGNORED, reduction="none")
        for label, now, one in zip(before.labels[1:], after.labels[1:], nll.tolist(), strict=True):
            if label not in (IGNORED, end) and abs(one - math.log(49_152)) > 1e-4:
                assert (now == label) is (one < math.log(49_152))
                kept += now == label
            elif label == end:
                assert now == end, "the end of a turn is learned whatever the base thinks"
    assert 0 < kept < data.counts.supervised_tokens
    assert left.counts.supervised_tokens == sum(e.supervised for e in left.examples)
    assert left.digest == data.digest
    dataset = left.to_dataset()
    assert dataset["row"] == list(range(left.counts.used))
    assert dataset[0]["labels"] == list(left.examples[0].labels)


def test_a_mask_that_leaves_nothing_is_refused(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, 0)
    rows, _ = training_rows(tiny_recipe.data, 0)
    data = prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data)
    with pytest.raises(TrainingError, match=r"retention\.mask\.max_perplexity: 2\.5"):
        without_improbable(data, model, tiny_backbone, MaskSpec(), 256)


def test_a_masked_run_says_how_much_it_masked(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(changed(tiny_recipe, {"mask": {"max_perplexity": 49_152}}), tmp_path / "run")
    assert (
        "supervised tokens" in " ".join(capsys.readouterr().err.split()).split("retention.mask")[1]
    )


def test_the_pessimistic_rise_is_that_of_a_paired_t_interval() -> None:
    before, now = [1.0, 2.0, 3.0, 4.0], [1.1, 2.3, 3.1, 4.3]
    # Mean 0.2, standard error 0.1155 / 2, one-sided 95% of t with three degrees: 2.353.
    assert pessimistic_rise(before, now) == pytest.approx(0.2 + 2.3534 * 0.11547 / 2, rel=1e-3)


def test_a_training_ends_at_its_budget_with_what_was_within_it(
    tiny_recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = {"budget": {"margin": 0.02, "steps": 1, "rows": 8, "length": 32}}
    recipe = changed(tiny_recipe, budget, epochs=8.0, learning_rate=3e-3, schedule="constant")
    kept: dict[int, dict[str, torch.Tensor]] = {}

    end = Budget.on_step_end

    def watched(self: Budget, args: Any, state: Any, control: Any, **rest: Any) -> None:
        kept[state.global_step] = {
            n: p.detach().clone() for n, p in self._model.named_parameters() if p.requires_grad
        }
        end(self, args, state, control, **rest)

    monkeypatch.setattr(Budget, "on_step_end", watched)
    result = train(recipe, tmp_path / "run").result
    assert 0 < result.kept_step < result.steps < 32
    assert "retention.budget.margin 0.02" in " ".join(capsys.readouterr().err.split())
    bounds = [line["retention_bound"] for line in result.history if "retention_bound" in line]
    assert bounds[-1] > 0.02
    assert max(bounds[:-1]) <= 0.02
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in kept[result.kept_step].items():
        assert torch.equal(saved[name.replace(".default", "")], tensor)


def test_a_training_that_is_cut_off_past_its_budget_keeps_what_was_within_it(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the checkpoint of the step that ended it, before the adapter was saved."""
    budget = {"budget": {"margin": 0.02, "steps": 1, "rows": 8, "length": 32}}
    changes = {"epochs": 8.0, "learning_rate": 3e-3, "schedule": "constant", "checkpoint_steps": 1}
    recipe = changed(tiny_recipe, budget, **changes)
    whole = train(recipe, tmp_path / "whole").result

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "put_back", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "cut")
    gone_on = train(recipe, tmp_path / "cut", resume=True).result
    assert gone_on.kept_step == whole.kept_step
    one, other = (tmp_path / name / "adapter" / ADAPTER_WEIGHTS for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


def test_a_budget_that_is_gone_at_once_leaves_nothing_and_says_so(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    budget = {"budget": {"margin": 1e-6, "steps": 1, "rows": 8, "length": 32}}
    recipe = changed(tiny_recipe, budget, learning_rate=0.5, warmup=0.0)
    with pytest.raises(TrainingError, match="past the margin at the first look"):
        train(recipe, tmp_path / "run")
    assert not RunDirectory(tmp_path / "run").adapter.exists()


def test_texts_by_which_it_is_measured_are_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    held = {"anchor": {"source": "python-reference", "split": "test"}}
    with pytest.raises(DataError, match=r"retention\.anchor\.source: .* items of core-retention"):
        train(changed(tiny_recipe, held), tmp_path / "run")


def test_texts_that_are_not_there_are_named(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = changed(tiny_recipe, {"anchor": {"source": "nowhere.jsonl"}})
    with pytest.raises(DataError, match=r"retention\.anchor\.source"):
        train(recipe, tmp_path / "run")


def test_adalora_ends_with_the_ranks_it_was_given(tiny_recipe: Recipe, tmp_path: Path) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["adapter"] = {"method": "adalora", "rank": 2}
    document["training"] |= {"epochs": 4.0, "learning_rate": 5e-2}
    recipe = Recipe.model_validate(document)
    trained = train(recipe, tmp_path / "run")
    pattern = trained.session.model.peft_config["default"].rank_pattern
    assert sum(sum(ranks) for ranks in pattern.values()) == 2 * len(pattern)
    before, after = trained.result.validation_before, trained.result.validation_after
    assert before is not None
    assert after is not None
    assert after < before
    spec = recipe.backbone
    reloaded = attach_saved(load(resolve(spec), spec), tmp_path / "run" / "adapter")
    ids = torch.arange(50, 70)[None]
    with torch.no_grad():
        one, other = (model.eval()(ids).logits for model in (reloaded, trained.session.model))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"keep_best": True, "validate_steps": 1}, "retention": {"budget": {}}},
         "training.keep_best and retention.budget"),
        ({"training": {"unfreeze_steps": 2}, "adapter": {"method": "adalora"}},
         "training.unfreeze_steps: adalora"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    tiny_recipe: Recipe, changes: dict[str, Any], said: str
) -> None:
    document = tiny_recipe.model_dump(mode="json")
    for name, value in changes.items():
        document[name] = (document[name] if name != "adapter" else {}) | value
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(document)


def test_another_retention_does_not_go_on(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(changed(tiny_recipe, {"anchor": {"length": 16}}, epochs=1.0), tmp_path / "run")
    other = changed(tiny_recipe, {"anchor": {"length": 16, "weight": 2.0}}, epochs=1.0)
    with pytest.raises(RecipeError, match=r"retention\.anchor\.weight: 1\.0 then, 2\.0 now"):
        train(other, tmp_path / "run", resume=True)


def test_retention_is_a_section_of_the_recipe() -> None:
    assert RetentionSpec() == RetentionSpec.model_validate({})
    assert RetentionSpec.model_validate({"anchor": {}}).anchor == AnchorSpec()
