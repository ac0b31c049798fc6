"""What is wrong is refused before step 1, and what is right passes without a word."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare, training_rows
from lora_kit.data.tokenization import Example
from lora_kit.preflight import checks, data_checks
from lora_kit.preflight.checks import CHECKS, run_checks
from lora_kit.preflight.isolation import logit_spacing, packed_difference
from lora_kit.preflight.situation import Situation
from lora_kit.preflight.traps.specimens import (
    ENDLESS_TEMPLATE,
    Leaky,
    example,
    four_bit_layer,
    situation,
    specimen_adapter,
    specimen_backbone,
    specimen_model,
    specimen_recipe,
)
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.objective import GrpoSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import (
    AdapterError,
    BackboneError,
    DataError,
    LoraKitError,
    RecipeError,
    TrainingError,
)
from lora_kit.runtime.launch import Launch, read_launch, require_what_was_asked

ACCELERATE = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_run_in_which_all_is_right_passes(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    rows, _ = training_rows(tiny_recipe.data, tiny_recipe.seed)
    examples = prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data).examples
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    packing = tiny_recipe.model_copy(
        update={"data": tiny_recipe.data.model_copy(update={"packing": True})}
    )
    done = run_checks(Situation(packing, Launch(), tiny_backbone, model, examples))
    # Of a classifier, of grpo's rewards, of tokens before the text, of an encoder with a decoder,
    # of other programs that a run is logged to.
    others = ("head", "rewards", "window", "tokens", "two stacks", "trackers")
    assert done.names == tuple(check.name for check in CHECKS if check.name not in others)
    assert done.warnings == ()


def test_the_real_backbone_in_4_bits_passes(real_backbone: Backbone) -> None:
    model = attach(real_backbone, AdapterSpec(rank=2), seed=0)
    done = run_checks(situation(recipe=specimen_recipe("nf4"), backbone=real_backbone, model=model))
    assert "repacking" in done.names
    assert "labels" not in done.names, "there are no examples to look at"


def test_only_what_is_there_is_looked_at() -> None:
    assert run_checks(situation()).names == (
        "launch",
        "sharding",
        "keeping",
        "initialisation",
        "steps",
        "merging",
        "estimate",
        "processes",
        "objective",
    )


def test_the_first_that_fails_ends_it() -> None:
    with pytest.raises(TrainingError, match="asked for several processes"):
        run_checks(situation(launch=read_launch(ACCELERATE, 1, "NO")))


@pytest.mark.parametrize(
    ("environment", "processes", "kind"),
    [
        ({}, 1, "NO"),
        ({"MASTER_ADDR": "somewhere"}, 1, "NO"),
        ({"ACCELERATE_USE_CPU": "True"}, 1, "NO"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, 2, "MULTI_CPU"),
        (
            {"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            4,
            "MULTI_GPU",
        ),
        ({"WORLD_SIZE": "1", "ACCELERATE_USE_DEEPSPEED": "true"}, 1, "DEEPSPEED"),
        ({"OMPI_COMM_WORLD_SIZE": "2"} | ACCELERATE, 2, "MULTI_CPU"),
    ],
)
def test_what_runs_as_it_was_asked_for_passes(
    environment: dict[str, str], processes: int, kind: str
) -> None:
    require_what_was_asked(read_launch(environment, processes, kind))


@pytest.mark.parametrize(
    ("environment", "processes", "kind", "part"),
    [
        (ACCELERATE, 1, "NO", "several processes, and 1 runs"),
        ({"WORLD_SIZE": "4"}, 1, "NO", "4 processes, and 1 runs"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, 2, "MULTI_CPU", "asked for FSDP"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, 2, "FSDP", "Set fsdp_version: 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 1, "NO", "asked for DeepSpeed"),
    ],
)
def test_what_accelerate_fell_back_from_is_refused(
    environment: dict[str, str], processes: int, kind: str, part: str
) -> None:
    with pytest.raises(TrainingError, match=part):
        require_what_was_asked(read_launch(environment, processes, kind))


def test_zero_3_is_known_from_deepspeeds_own_file(tmp_path: Any) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path),
    }
    launch = read_launch(environment, 1, "DEEPSPEED")
    assert launch.zero_stage == 3
    four_bits = situation(recipe=specimen_recipe("nf4"), launch=launch)
    with pytest.raises(BackboneError, match=r"backbone\.quantization: nf4 under ZeRO-3"):
        checks.sharded_in_full_precision(four_bits)
    checks.sharded_in_full_precision(situation(launch=launch))


def test_a_layer_that_would_be_repacked_is_refused() -> None:
    layer = four_bit_layer()
    layer.support_avx512bf16_for_cpu = True
    backbone = specimen_backbone(torch.nn.Sequential(layer))
    with pytest.raises(BackboneError, match="repacked by bitsandbytes"):
        checks.never_repacked(situation(backbone=backbone))
    layer.support_avx512bf16_for_cpu = False
    checks.never_repacked(situation(backbone=backbone))


def refusal(check: Any, **parts: Any) -> tuple[type[LoraKitError], str]:
    with pytest.raises(LoraKitError) as caught:
        check(situation(**parts))
    return caught.type, str(caught.value)


def test_an_adapter_on_a_tied_head_is_refused_and_on_a_head_of_its_own_not() -> None:
    kind, said = refusal(checks.untied, model=specimen_adapter(specimen_model(), ["lm_head"]))
    assert kind is AdapterError
    assert "tie_word_embeddings" in said
    checks.untied(situation(model=specimen_adapter(specimen_model())))
    free = specimen_model(experts=True)
    assert not free.config.tie_word_embeddings
    checks.untied(situation(model=specimen_adapter(free, ["lm_head"])))


def test_experts_without_an_adapter_are_refused_unless_the_targets_were_named() -> None:
    model = specimen_adapter(specimen_model(experts=True))
    kind, said = refusal(checks.experts_covered, model=model)
    assert kind is AdapterError
    assert "% of the weights are fused experts" in said
    recipe = specimen_recipe()
    named = recipe.model_copy(update={"adapter": AdapterSpec(target_modules=["q_proj"])})
    assert "fused experts" in str(checks.experts_covered(situation(recipe=named, model=model)))
    dense = situation(model=specimen_adapter(specimen_model()))
    assert checks.experts_covered(dense) is None


def test_experts_with_an_adapter_of_their_own_are_no_loss() -> None:
    from peft import LoraConfig, get_peft_model

    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names)
    model = get_peft_model(specimen_model(experts=True), config)
    assert any(parameter.dim() == 3 for parameter in model.parameters())
    assert checks.experts_covered(situation(model=model)) is None


@pytest.mark.parametrize(
    ("check", "examples", "part"),
    [
        (data_checks.something_to_learn, [example("a", "b")], "none of the 1 examples"),
        (data_checks.learns_to_stop, [example("a", "</s>", "b", supervised=1)], "never supervised"),
        (
            data_checks.begins_once,
            [example("<s>", "<s>", "b", supervised=1)],
            "two beginning-of-text",
        ),
    ],
)
def test_examples_that_teach_the_wrong_thing_are_refused(
    check: Any, examples: Sequence[Any], part: str
) -> None:
    kind, said = refusal(check, backbone=specimen_backbone(), examples=examples)
    assert kind is DataError
    assert part in said


@pytest.mark.parametrize(
    ("reward", "part"),
    [
        (
            "chrff",
            r"grpo\.rewards: metric chrff: neither bundled \(chrf, exact_match\) nor a path to a "
            r"module$",
        ),
        ("/no/such.py", r"grpo\.rewards: metric /no/such\.py: neither bundled"),
        ("run:/no/such", r"grpo\.rewards: run:/no/such: no run with an adapter"),
    ],
)
def test_a_reward_that_is_not_there_is_refused(tiny_recipe: Recipe, reward: str, part: str) -> None:
    def rewarded_by(name: str) -> Recipe:
        return tiny_recipe.model_copy(update={"grpo": GrpoSpec(rewards=[name])})

    with pytest.raises(RecipeError, match=part):
        run_checks(situation(recipe=rewarded_by(reward)))
    run_checks(situation(recipe=rewarded_by("chrf")))


def test_a_tracker_that_is_not_installed_is_refused(tiny_recipe: Recipe) -> None:
    def logged_to(name: str) -> Recipe:
        training = tiny_recipe.training.model_copy(update={"report_to": [name]})
        return tiny_recipe.model_copy(update={"training": training})

    with pytest.raises(TrainingError, match=r"training\.report_to: trackio is not installed"):
        run_checks(situation(recipe=logged_to("trackio")))
    run_checks(situation(recipe=logged_to("tensorboard")))


def test_texts_pass_where_the_template_ends_no_turn() -> None:
    backbone = specimen_backbone()
    backbone.tokenizer.chat_template = ENDLESS_TEMPLATE
    data_checks.learns_to_stop(
        situation(backbone=backbone, examples=[example("a", "b", supervised=1)])
    )


def test_rounding_in_half_precision_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [example("a", "b", "c", supervised=1), example("d", "a", "b", supervised=1)]
    full = specimen_model()
    exact = logit_spacing(full, pair)
    half = specimen_model().to(torch.bfloat16)
    rounded = logit_spacing(half, pair)
    assert rounded == pytest.approx(2**16 * exact, rel=0.05)
    # As large logits as a real model's, and a few spacings between one computation and another.
    for model, factor in ((full, 10.0), (half, 10.0)):
        model.get_output_embeddings().weight.mul_(factor)
    difference = 4 * logit_spacing(half, pair)
    assert difference > data_checks.LEAK
    monkeypatch.setattr(data_checks, "packed_difference", lambda *_: difference)
    data_checks.packed_apart(situation(model=half, examples=pair))
    with pytest.raises(TrainingError, match="see one another"):
        data_checks.packed_apart(situation(model=full, examples=pair))


def test_texts_without_turns_need_no_end_of_turn() -> None:
    texts = [example("a", "b", "c", supervised=2)]
    data_checks.learns_to_stop(situation(backbone=specimen_backbone(), examples=texts))


def test_packed_examples_do_not_see_one_another(real_backbone: Backbone) -> None:
    """On the real model: the same logits alone and packed, and others where they leak."""
    ids = real_backbone.tokenizer("The capital of France is Paris, and that of Italy is Rome.")
    tokens = tuple(ids["input_ids"])
    pair = [Example(tokens[:8], tokens[:8]), Example(tokens[8:], tokens[8:])]
    assert packed_difference(real_backbone.model, pair) < 1e-3
    assert packed_difference(Leaky(real_backbone.model), pair) > 0.1
