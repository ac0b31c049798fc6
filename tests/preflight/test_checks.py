"""Checks before step 1 refuse problems and pass correct trainings silently."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.data.supervision import Example
from lora_kit.preflight import checks, data_checks, launch_checks
from lora_kit.preflight.checks import CHECKS, run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.isolation import logit_spacing, packed_difference, shortened
from lora_kit.preflight.traps.specimens import (
    ENDLESS_TEMPLATE,
    SIZES,
    Leaky,
    example,
    four_bit_layer,
    specimen_adapter,
    specimen_backbone,
    specimen_context,
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
from lora_kit.runtime.launch import Launch, read_launch, require_requested_launch
from tests.training_rows import training_rows

ACCELERATE = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_correct_training_passes_all_checks(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    rows, _ = training_rows(tiny_recipe.data, tiny_recipe.seed)
    examples = prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data).examples
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    packing = tiny_recipe.model_copy(
        update={"data": tiny_recipe.data.model_copy(update={"packing": True})}
    )
    done = run_checks(PreflightContext(packing, Launch(), tiny_backbone, model, examples))
    # These need a new head, grpo, virtual tokens, an encoder-decoder or an experiment tracker.
    others = (
        "new head",
        "equal shares",
        "rewards",
        "window",
        "virtual tokens",
        "encoder-decoder",
        "trackers",
    )
    assert done.names == tuple(check.name for check in CHECKS if check.name not in others)
    assert done.warnings == ()


def test_the_real_backbone_in_4_bits_passes(real_backbone: Backbone) -> None:
    model = attach(real_backbone, AdapterSpec(rank=2), seed=0)
    done = run_checks(
        specimen_context(recipe=specimen_recipe("nf4"), backbone=real_backbone, model=model)
    )
    assert "repacking" in done.names
    assert "supervised tokens" not in done.names, "there are no examples to look at"


def test_checks_without_their_inputs_are_skipped() -> None:
    assert run_checks(specimen_context()).names == (
        "launch",
        "acceleration",
        "sharding",
        "retention",
        "initialisation",
        "full gradients",
        "partitioned objective",
        "merging",
        "substituted estimate",
        "partial estimate",
    )


def test_the_first_failing_check_raises() -> None:
    with pytest.raises(TrainingError, match="requested several processes"):
        run_checks(specimen_context(launch=read_launch(ACCELERATE, 1, "NO")))


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
def test_a_launch_as_requested_passes(
    environment: dict[str, str], processes: int, kind: str
) -> None:
    require_requested_launch(read_launch(environment, processes, kind))


@pytest.mark.parametrize(
    ("environment", "processes", "kind", "part"),
    [
        (ACCELERATE, 1, "NO", r"several processes \(running: 1\)"),
        ({"WORLD_SIZE": "4"}, 1, "NO", r"4 processes \(running: 1\)"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, 2, "MULTI_CPU", "requested FSDP"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, 2, "FSDP", "set fsdp_version: 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 1, "NO", "requested DeepSpeed"),
    ],
)
def test_fallbacks_of_accelerate_are_refused(
    environment: dict[str, str], processes: int, kind: str, part: str
) -> None:
    with pytest.raises(TrainingError, match=part):
        require_requested_launch(read_launch(environment, processes, kind))


def test_zero_3_is_known_from_deepspeeds_own_file(tmp_path: Any) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path),
    }
    launch = read_launch(environment, 1, "DEEPSPEED")
    assert launch.zero_stage == 3
    four_bits = specimen_context(recipe=specimen_recipe("nf4"), launch=launch)
    with pytest.raises(BackboneError, match=r"backbone\.quantization: .*\(got nf4 under ZeRO-3\)"):
        launch_checks.refuse_sharded_quantization(four_bits)
    launch_checks.refuse_sharded_quantization(specimen_context(launch=launch))


def test_a_layer_that_would_be_repacked_is_refused() -> None:
    layer = four_bit_layer()
    layer.support_avx512bf16_for_cpu = True
    backbone = specimen_backbone(torch.nn.Sequential(layer))
    with pytest.raises(BackboneError, match="repacked by bitsandbytes"):
        checks.refuse_repacked_weights(specimen_context(backbone=backbone))
    layer.support_avx512bf16_for_cpu = False
    checks.refuse_repacked_weights(specimen_context(backbone=backbone))


def refusal(check: Any, **parts: Any) -> tuple[type[LoraKitError], str]:
    with pytest.raises(LoraKitError) as caught:
        check(specimen_context(**parts))
    return caught.type, str(caught.value)


def test_an_adapter_on_a_tied_head_is_refused_and_on_a_head_of_its_own_not() -> None:
    kind, message = refusal(
        checks.refuse_trained_tied_embeddings, model=specimen_adapter(specimen_model(), ["lm_head"])
    )
    assert kind is AdapterError
    assert "tie_word_embeddings" in message
    checks.refuse_trained_tied_embeddings(
        specimen_context(model=specimen_adapter(specimen_model()))
    )
    free = specimen_model(experts=True)
    assert not free.config.tie_word_embeddings
    checks.refuse_trained_tied_embeddings(
        specimen_context(model=specimen_adapter(free, ["lm_head"]))
    )


def test_experts_without_an_adapter_are_refused_unless_the_targets_were_named() -> None:
    model = specimen_adapter(specimen_model(experts=True))
    kind, message = refusal(checks.check_expert_coverage, model=model)
    assert kind is AdapterError
    assert "% of the weights are fused experts" in message
    recipe = specimen_recipe()
    named = recipe.model_copy(update={"adapter": AdapterSpec(target_modules=["q_proj"])})
    assert "fused experts" in str(
        checks.check_expert_coverage(specimen_context(recipe=named, model=model))
    )
    dense = specimen_context(model=specimen_adapter(specimen_model()))
    assert checks.check_expert_coverage(dense) is None


def test_experts_with_an_adapter_of_their_own_are_no_loss() -> None:
    from peft import LoraConfig, get_peft_model

    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names)
    model = get_peft_model(specimen_model(experts=True), config)
    assert any(parameter.dim() == 3 for parameter in model.parameters())
    assert checks.check_expert_coverage(specimen_context(model=model)) is None


@pytest.mark.parametrize(
    ("check", "examples", "part"),
    [
        (data_checks.require_supervised_tokens, [example("a", "b")], "none of the 1 examples"),
        (
            data_checks.require_supervised_end_of_turn,
            [example("a", "</s>", "b", supervised=1)],
            "never supervised",
        ),
        (
            data_checks.refuse_double_bos,
            [example("<s>", "<s>", "b", supervised=1)],
            "two beginning-of-text",
        ),
    ],
)
def test_examples_that_teach_the_wrong_thing_are_refused(
    check: Any, examples: Sequence[Any], part: str
) -> None:
    kind, message = refusal(check, backbone=specimen_backbone(), examples=examples)
    assert kind is DataError
    assert part in message


@pytest.mark.parametrize(
    ("reward", "part"),
    [
        (
            "chrff",
            r"grpo\.rewards: metric chrff: neither bundled nor a path to a module\. Fix: use one "
            r"of chrf, exact_match, or the path of an `evaluate` module$",
        ),
        ("/no/such.py", r"grpo\.rewards: metric /no/such\.py: neither bundled"),
        ("run:/no/such", r"grpo\.rewards: no run with an adapter in /no/such \(got run:/no/such\)"),
    ],
)
def test_an_unknown_reward_is_refused(tiny_recipe: Recipe, reward: str, part: str) -> None:
    def rewarded_by(name: str) -> Recipe:
        return tiny_recipe.model_copy(update={"grpo": GrpoSpec(rewards=[name])})

    with pytest.raises(RecipeError, match=part):
        run_checks(specimen_context(recipe=rewarded_by(reward)))
    run_checks(specimen_context(recipe=rewarded_by("chrf")))


def test_a_tracker_that_is_not_installed_is_refused(tiny_recipe: Recipe) -> None:
    def logged_to(name: str) -> Recipe:
        training = tiny_recipe.training.model_copy(update={"report_to": [name]})
        return tiny_recipe.model_copy(update={"training": training})

    with pytest.raises(
        TrainingError, match=r"training\.report_to: .* not installed \(got trackio\)"
    ):
        run_checks(specimen_context(recipe=logged_to("trackio")))
    run_checks(specimen_context(recipe=logged_to("tensorboard")))


def test_texts_pass_where_the_template_ends_no_turn() -> None:
    backbone = specimen_backbone()
    backbone.tokenizer.chat_template = ENDLESS_TEMPLATE
    data_checks.require_supervised_end_of_turn(
        specimen_context(backbone=backbone, examples=[example("a", "b", supervised=1)])
    )


def test_the_search_for_a_leak_keeps_the_mode_of_each_module() -> None:
    model = specimen_model().train()
    model.get_output_embeddings().eval()
    before = [module.training for module in model.modules()]
    packed_difference(model, [example("a", "b", "c", supervised=1)] * 2)
    assert [module.training for module in model.modules()] == before


def test_rounding_in_half_precision_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [example("a", "b", "c", supervised=1), example("d", "a", "b", supervised=1)]
    full = specimen_model()
    exact = logit_spacing(full, pair)
    half = specimen_model().to(torch.bfloat16)
    rounded = logit_spacing(half, pair)
    assert rounded == pytest.approx(2**16 * exact, rel=0.05)
    # Scale the logits to the size of a real model's; two computations differ by a few spacings.
    for model, factor in ((full, 10.0), (half, 10.0)):
        model.get_output_embeddings().weight.mul_(factor)
    difference = 4 * logit_spacing(half, pair)
    assert difference > data_checks.LEAK
    monkeypatch.setattr(data_checks, "packed_difference", lambda *_: difference)
    data_checks.refuse_packing_leak(specimen_context(model=half, examples=pair))
    with pytest.raises(TrainingError, match="attends across the examples of one packed row"):
        data_checks.refuse_packing_leak(specimen_context(model=full, examples=pair))


def test_a_model_that_will_be_sharded_computes_one_block_of_each_kind() -> None:
    """The real model has one kind; a Gemma 3 has a block of full attention after five others."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    pair = [example("a", "b", "c", supervised=1), example("d", "a", "b", supervised=1)]
    config = Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 12, "head_dim": 16})
    for whole, expected in ((specimen_model(), 1), (Gemma3ForCausalLM(config).eval(), 6)):
        model = specimen_adapter(whole)
        layers: Any = whole.model.layers
        ran: list[torch.nn.Module] = []
        for layer in layers:
            layer.register_forward_hook(lambda module, *_, ran=ran: ran.append(module))
        sharded = Launch(asked=2, processes=2, kind="FSDP", fsdp=True, fsdp_version=2)
        context = specimen_context(model=model, examples=pair, launch=sharded)
        data_checks.refuse_packing_leak(context)
        assert ran == [*layers[:expected]] * 3
        assert whole.model.layers is layers
        data_checks.refuse_packing_leak(specimen_context(model=model, examples=pair))
        assert ran[3 * expected :] == [*layers] * 3


def test_a_leak_is_found_in_one_block_too(real_backbone: Backbone) -> None:
    ids = real_backbone.tokenizer("The capital of France is Paris, and that of Italy is Rome.")
    tokens = tuple(ids["input_ids"])
    pair = [Example(tokens[:8], tokens[:8]), Example(tokens[8:], tokens[8:])]
    with shortened(real_backbone.model) as count:
        assert count == 1
        assert packed_difference(real_backbone.model, pair) < 1e-3
        assert packed_difference(Leaky(real_backbone.model), pair) > 0.1


def test_texts_without_turns_need_no_end_of_turn() -> None:
    texts = [example("a", "b", "c", supervised=2)]
    data_checks.require_supervised_end_of_turn(
        specimen_context(backbone=specimen_backbone(), examples=texts)
    )


def test_packed_examples_do_not_see_one_another(real_backbone: Backbone) -> None:
    """Compare the logits of the real model alone, packed, and packed with a leak."""
    ids = real_backbone.tokenizer("The capital of France is Paris, and that of Italy is Rome.")
    tokens = tuple(ids["input_ids"])
    pair = [Example(tokens[:8], tokens[:8]), Example(tokens[8:], tokens[8:])]
    assert packed_difference(real_backbone.model, pair) < 1e-3
    assert packed_difference(Leaky(real_backbone.model), pair) > 0.1
