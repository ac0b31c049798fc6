"""Virtual tokens: scores equal those that plain PEFT computes with the saved adapter."""

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lora_kit import pipeline
from lora_kit.adapter.attach import attach, attach_saved, coverage
from lora_kit.adapter.saved import save_adapter
from lora_kit.adapter.virtual_tokens import add_virtual_tokens, require_virtual_tokens_attended
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.evaluation.engine.layout_search import LAYOUTS, find_layout, within_window
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.requests import (
    Branch,
    ChoiceRequest,
    GenerationRequest,
    LossRequest,
    Request,
)
from lora_kit.modeling.likelihood import supervised_logits, supervised_nll
from lora_kit.modeling.model_inputs import pad_examples
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.modeling.prefix import encode_prefix
from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.make_plan import make_plan
from lora_kit.recipe.adapter import VIRTUAL, AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.document import parse_document
from lora_kit.recipe.load import validate
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_subject
from lora_kit.runtime.errors import (
    AdapterError,
    EvaluationError,
    RecipeError,
    ReleaseError,
    TrainingError,
)
from lora_kit.runtime.launch import Launch
from tests.plain_process import run_plain
from tests.training.cut import cut_off, losses, sha256, with_training

COUNT = 5
SHARED = tuple(range(40, 48))
# Texts of different lengths, so that a batch is padded.
TEXTS = tuple((*SHARED, *range(100 + n, 106 + 4 * n)) for n in range(3))
NEW = 6
# PEFT's default initialisation, which gives outputs far from the base's.
RANDOM: dict[str, dict[str, Any]] = {
    "prefix_tuning": {"init_weights": None},
    "prompt_tuning": {"prompt_tuning_init": "RANDOM"},
}


def spec_of(method: str, **options: Any) -> AdapterSpec:
    return AdapterSpec.model_validate(
        {"method": method, "options": {"num_virtual_tokens": COUNT, **options}}
    )


# Plain PEFT: one text at a time, without padding, with its own forward and generate.
PLAIN = f"""
import sys
import torch
from pathlib import Path
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
tiny, folder = sys.argv[1:]
result = {{}}
for adapter in sorted(Path(folder).iterdir()):
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    for number, text in enumerate({TEXTS}):
        ids = torch.tensor([text])
        ones = torch.ones_like(ids)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=ones).logits[0, -len(text):]
        new = model.generate(
            input_ids=ids, attention_mask=ones, max_new_tokens={NEW}, do_sample=False,
            eos_token_id=None, pad_token_id=2,
        )
        result[f"{{adapter.name}}.{{number}}.logits"] = logits.contiguous()
        result[f"{{adapter.name}}.{{number}}.new"] = new[0, len(text):].contiguous()
save_file(result, Path(folder) / "plain.safetensors")
"""


@dataclass(frozen=True)
class Plain:
    """Outputs of plain PEFT, in a separate process, with the adapters in a folder."""

    folder: Path
    tensors: dict[str, torch.Tensor]

    def of(self, method: str, kind: str) -> list[torch.Tensor]:
        return [self.tensors[f"{method}.{n}.{kind}"] for n in range(len(TEXTS))]


@pytest.fixture(scope="module")
def lively(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model like `tiny`, with weights so large that every token changes the output."""
    directory = tmp_path_factory.mktemp("lively")
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny, initializer_range=0.4, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(directory)
    for pattern in ("tokenizer*", "*.jinja"):
        for file in tiny.glob(pattern):
            shutil.copy(file, directory / file.name)
    return directory


def backbone_in(directory: Path) -> Backbone:
    spec = BackboneSpec(model=str(directory), quantization="none", dtype="float32")
    return load(resolve(spec), spec)


@pytest.fixture(scope="module")
def plain(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    folder = tmp_path_factory.mktemp("adapters")
    for method in VIRTUAL:
        backbone = backbone_in(lively)
        spec = spec_of(method, **RANDOM.get(method, {}))
        save_adapter(attach(backbone, spec, seed=3), backbone, folder / method)
    run_plain(PLAIN, lively, folder)
    return Plain(folder, load_file(folder / "plain.safetensors"))


@pytest.fixture
def backbone(lively: Path) -> Backbone:
    return backbone_in(lively)


@pytest.fixture(params=VIRTUAL)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def attached(backbone: Backbone, plain: Plain, method: str) -> Iterator[Any]:
    with torch.inference_mode():
        yield attach_saved(backbone, plain.folder / method).eval()


def examples() -> list[Example]:
    """Return examples with a label for all tokens but the first, which nothing predicts."""
    return [Example(text, (IGNORE_INDEX, *text[1:])) for text in TEXTS]


def scorer_of(model: Any, backbone: Backbone) -> Scorer:
    return Scorer(model, backbone.tokenizer, (backbone.tokenizer.eos_token_id,))


def test_a_padded_batch_has_the_logits_that_peft_computes_for_each_text(
    attached: Any, plain: Plain, method: str
) -> None:
    batch = pad_examples(examples(), pad_token_id=2)
    expected = [logits[:-1] for logits in plain.of(method, "logits")]
    result = supervised_logits(attached, batch)
    torch.testing.assert_close(result, torch.cat(expected), atol=1e-4, rtol=0)
    nll, rows = supervised_nll(attached, batch)
    for row, text in enumerate(TEXTS):
        losses = torch.nn.functional.cross_entropy(
            expected[row], torch.tensor(text[1:]), reduction="none"
        )
        torch.testing.assert_close(nll[rows == row], losses, atol=1e-4, rtol=0)


def requests() -> dict[str, list[Request]]:
    prompts = [text[:-2] for text in TEXTS]
    branches = (Branch((7, 8, 9), 3), Branch((10, 11), 2))
    return {
        "loss": [LossRequest(Example(t, (*[IGNORE_INDEX] * 9, *t[9:]))) for t in TEXTS],
        "choices": [ChoiceRequest(prompt, branches) for prompt in prompts],
        "text": [GenerationRequest(text, NEW) for text in TEXTS],
    }


@pytest.mark.parametrize("kind", ["loss", "choices", "text"])
def test_no_batch_layout_changes_a_score_and_disabled_is_the_base(
    attached: Any, backbone: Backbone, lively: Path, kind: str
) -> None:
    """All branches in one row, a cached prefix, and the head at scored positions only."""
    scorer, batch_requests = scorer_of(attached, backbone), requests()[kind]
    assert find_layout(scorer, batch_requests, SHARED) == BatchLayout()
    result = compute_outcomes(
        scorer, batch_requests, BatchLayout(), encode_prefix(attached, SHARED, scorer.device)
    )
    alone = [compute_outcomes(scorer, [one], LAYOUTS[-1])[0] for one in batch_requests]
    with adapter_disabled(attached):
        base = compute_outcomes(
            scorer, batch_requests, BatchLayout(), encode_prefix(attached, SHARED, scorer.device)
        )
    untouched = scorer_of(unadapted_model(lively), backbone)
    prefix = encode_prefix(untouched.model, SHARED, scorer.device)
    expected = compute_outcomes(untouched, batch_requests, BatchLayout(), prefix)
    for one, other in zip(result, alone, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)
        assert one.text == other.text
    assert base == expected
    assert result != base


def unadapted_model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_answers_are_those_of_peft_with_padding_and_after_a_prefix(
    attached: Any, backbone: Backbone, plain: Plain, method: str
) -> None:
    expected = [
        backbone.tokenizer.decode(new, skip_special_tokens=True) for new in plain.of(method, "new")
    ]
    scorer = Scorer(attached, backbone.tokenizer, ())
    for prefix in (None, encode_prefix(attached, SHARED, scorer.device)):
        result = compute_outcomes(scorer, requests()["text"], BatchLayout(), prefix)
        assert [outcome.text for outcome in result] == expected


def test_choices_are_scored_as_peft_scores_their_tokens(
    attached: Any, backbone: Backbone, plain: Plain, method: str
) -> None:
    batch_requests = [
        ChoiceRequest(t[:-2], (Branch(t[-2:], 2), Branch((7, 8, 9), 3))) for t in TEXTS
    ]
    result = compute_outcomes(scorer_of(attached, backbone), batch_requests, BatchLayout())
    for text, logits, outcome in zip(TEXTS, plain.of(method, "logits"), result, strict=True):
        nats = logits[-3:-1].log_softmax(dim=-1)[torch.arange(2), torch.tensor(text[-2:])]
        assert outcome.log_likelihoods[0] == pytest.approx(float(nats.sum()), abs=1e-4)


def test_a_copy_of_a_model_has_its_own_virtual_tokens(attached: Any) -> None:
    ids = torch.tensor([TEXTS[0]])
    before = attached(input_ids=ids).logits
    other = copy.deepcopy(attached)
    for parameter in other.prompt_encoder.parameters():
        parameter.data = parameter.data * 3
    assert not torch.equal(other(input_ids=ids).logits, before)
    assert torch.equal(attached(input_ids=ids).logits, before)


def test_trained_parameters_are_counted_and_the_default_is_twenty_tokens(
    tiny_backbone: Backbone,
) -> None:
    covered = coverage(attach(tiny_backbone, AdapterSpec(method="prompt_tuning"), seed=0))
    assert covered.trainable_parameters == 20 * 64
    assert [c.module_class for c in covered.classes if c.adapted] == ["PromptEmbedding"]


def test_tokens_are_initialised_with_zeros_or_embeddings_of_words(tiny: Path) -> None:
    prompt = attach(backbone_in(tiny), AdapterSpec(method="prompt_tuning"), seed=0)
    words = prompt.get_input_embeddings().weight
    initial = prompt.prompt_encoder["default"].embedding.weight
    assert all(bool((words == token).all(dim=1).any()) for token in initial)
    prefix = attach(backbone_in(tiny), AdapterSpec(method="prefix_tuning"), seed=0)
    assert not prefix.prompt_encoder["default"].embedding.weight.any()


def of(recipe: Recipe, method: str, **options: Any) -> Recipe:
    return recipe.model_copy(update={"adapter": spec_of(method, **options)})


@pytest.mark.parametrize(
    "method", ["p_tuning", *(pytest.param(m, marks=pytest.mark.slow) for m in VIRTUAL[:2])]
)
def test_training_lowers_the_loss_and_resumes_after_an_interruption(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With p-tuning, the adapter holds only part of the trained weights; checkpoints hold all."""
    recipe = with_training(of(tiny_recipe, method), save_steps=1, learning_rate=0.03)
    complete = pipeline.train(recipe, tmp_path / "complete").result
    assert complete.validation_before is not None
    assert complete.validation_after is not None
    assert complete.validation_after < complete.validation_before
    cut_off(monkeypatch, recipe, tmp_path / "run", 2)
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "complete")
    assert sha256(tmp_path / "run") == sha256(tmp_path / "complete")


SUITE = {
    "name": "keep",
    "role": "retention",
    "tasks": [
        {"name": name, "source": source, "limit": 8, "margin": 0.1, **more}
        for name, source, more in (
            ("quiz", "general-knowledge", {"kind": "multiple_choice", "shots": 2}),
            ("prose", "python-reference", {"kind": "loss"}),
        )
    ],
}


@pytest.mark.slow  # plans, trains and evaluates
def test_a_run_and_another_tools_adapter_are_planned_trained_and_evaluated(
    tiny_recipe: Recipe, tiny: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "keep.yaml"
    suite.write_text(json.dumps(SUITE))
    evaluation = tiny_recipe.evaluation.model_copy(update={"suites": [str(suite)]})
    recipe = of(tiny_recipe, "prefix_tuning").model_copy(update={"evaluation": evaluation})
    planned = make_plan(recipe)
    found = planned.on_backbone
    assert found is not None
    assert found.forecast is not None
    assert found.coverage.trainable_parameters == COUNT * 2 * 2 * 32
    assert any("cannot be merged" in warning for warning in found.checked.warnings)
    outcome = pipeline.run(recipe, tmp_path / "run")
    assert {suite.suite for suite in outcome.verdict.suites} == {"keep"}
    assert outcome.release is None
    assert "an adapter of prefix_tuning cannot be merged" in outcome.refusal
    with pytest.raises(ReleaseError, match="an adapter of prefix_tuning cannot be merged"):
        pipeline.release(tmp_path / "run")

    model = get_peft_model(
        unadapted_model(tiny), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path / "other")
    subject = open_subject(tmp_path / "other", None)
    assert subject.facts == {"Adapter": "prompt_tuning, 4 virtual tokens"}


def test_tokens_initialised_from_a_text_are_its_embeddings(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    options = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Add two numbers."}
    ids = tiny_backbone.tokenizer(options["prompt_tuning_init_text"])["input_ids"]
    spec = spec_of("prompt_tuning", num_virtual_tokens=len(ids), **options)
    model = attach(tiny_backbone, spec, seed=0)
    expected = tiny_backbone.model.get_input_embeddings()(torch.tensor(ids))
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, expected)
    save_adapter(model, tiny_backbone, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["tokenizer_name_or_path"] == tiny_backbone.spec.model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_virtual_tokens": "many"}, "adapter.options.num_virtual_tokens"),
        ({"token_dim": 8}, "adapter.options.token_dim: not an option"),
        ({"modules_to_save": ["lm_head"]}, "adapter.options.modules_to_save: not an option"),
        ({"prompt_tuning_init": "TEXT"}, "adapter.options.prompt_tuning_init_text: required by"),
        ({"prompt_tuning_init_text": "a"}, "has an effect only with prompt_tuning_init: TEXT"),
        (
            {
                "prompt_tuning_init": "TEXT",
                "prompt_tuning_init_text": "one two three four five six",
            },
            r"only the first 5 tokens \(got 6 tokens\)",
        ),
    ],
)
def test_impossible_options_are_refused(
    tiny_backbone: Backbone, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        attach(tiny_backbone, spec_of("prompt_tuning", **options), seed=0)


@pytest.mark.parametrize("field", ["rank", "alpha", "dropout"])
def test_fields_of_layer_methods_are_refused(
    tiny_backbone: Backbone, method: str, field: str
) -> None:
    spec = AdapterSpec.model_validate({"method": method, field: 0.5 if field == "dropout" else 4})
    with pytest.raises(AdapterError, match=f"adapter.{field}: {method} has none"):
        attach(tiny_backbone, spec, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"adapter": {"target_modules": ["q_proj"]}},
            "prepends virtual tokens and changes no module",
        ),
        *(
            (
                {"adapter": {"options": {"num_virtual_tokens": count}}},
                rf"adapter.options.num_virtual_tokens: must be a .* 1 \(got {count}\)\. Fix: set",
            )
            for count in ("abc", None, 0, 1.5, True)
        ),
        ({"data": {"packing": True}}, "data.packing: prefix_tuning prepends its tokens"),
        ({"training": {"gradient_checkpointing": True}}, "training.gradient_checkpointing: "),
        (
            {"training": {"layerwise_lr_decay": 0.9}},
            "training.layerwise_lr_decay: prefix_tuning trains no block",
        ),
        ({"training": {"gradual_unfreezing_steps": 2}}, "training.gradual_unfreezing_steps: "),
        ({"training": {"loraplus_lr_ratio": 4}}, "training.loraplus_lr_ratio: "),
        (
            {"training": {"objective": "dpo"}, "data": {"validation": []}},
            "supports the objectives sft and text only, and training.objective is dpo",
        ),
        ({"retention": {"ewc": {}}}, "retention.ewc: "),
        (
            {"evaluation": {"arms": ["base", "adapter", "merged"]}},
            "changes no weight that could be merged",
        ),
        ({"merge": {"shard_size": 1}}, "merge: prefix_tuning changes no weight"),
    ],
)
def test_settings_that_conflict_with_virtual_tokens_are_refused_with_the_recipe(
    tiny_recipe: Recipe, changes: dict[str, Any], message: str
) -> None:
    document = of(tiny_recipe, "prefix_tuning").model_dump(mode="json", exclude_unset=True)
    for section, fields in changes.items():
        document[section] = document.get(section, {}) | fields
    with pytest.raises(RecipeError, match=message):
        validate(Recipe, parse_document(json.dumps(document), "x.yaml"))


def test_tokens_beyond_the_positions_are_refused_before_step_1(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    recipe, config = of(tiny_recipe, "p_tuning"), tiny_backbone.model.config
    config.max_position_embeddings = recipe.data.max_length + COUNT
    run_checks(PreflightContext(recipe, Launch(), backbone=tiny_backbone))
    config.max_position_embeddings -= 1
    with pytest.raises(AdapterError, match="exceed the 132 positions of this backbone"):
        run_checks(PreflightContext(recipe, Launch(), backbone=tiny_backbone))


def test_sharded_weights_are_refused(tiny_recipe: Recipe) -> None:
    launch = Launch(fsdp=True, fsdp_version=2, asked=2, processes=2, kind="FSDP")
    with pytest.raises(TrainingError, match="in a separate forward pass"):
        run_checks(PreflightContext(of(tiny_recipe, "p_tuning"), launch=launch))


def test_a_sliding_window_exceeded_through_padding_is_refused(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    recipe, config = of(tiny_recipe, "prompt_tuning"), tiny_backbone.model.config
    model = attach(tiny_backbone, recipe.adapter, seed=0)
    batch_requests, scorer = requests()["text"], scorer_of(model, tiny_backbone)
    config.sliding_window = recipe.data.max_length + COUNT - 1
    with pytest.raises(AdapterError, match="exceed the sliding window of"):
        run_checks(PreflightContext(recipe, Launch(), backbone=tiny_backbone))
    assert within_window(BatchLayout(), scorer, batch_requests) == BatchLayout()
    config.sliding_window = max(request.length for request in batch_requests)
    with pytest.raises(EvaluationError, match="got 5 virtual tokens and an item of"):
        within_window(BatchLayout(), scorer, batch_requests)


def test_a_sliding_window_layer_attends_to_the_tokens_despite_padding() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=40,
    )  # fmt: skip
    tuning = PromptTuningConfig(num_virtual_tokens=COUNT, task_type="CAUSAL_LM")
    model = get_peft_model(MistralForCausalLM(config), tuning).eval()
    add_virtual_tokens(model)
    together = pad_examples(examples(), pad_token_id=2)
    alone = [pad_examples([one], pad_token_id=2) for one in examples()]
    with torch.no_grad():
        result = supervised_logits(model, together)
        expected = torch.cat([supervised_logits(model, one) for one in alone])
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_a_backbone_that_ignores_virtual_tokens_is_refused(tiny_backbone: Backbone) -> None:
    """Layers with a recurrent state, and layers that never receive the keys and values."""
    tuning = PromptTuningConfig(num_virtual_tokens=COUNT, task_type="CAUSAL_LM")
    config = Lfm2Config(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    model = get_peft_model(Lfm2ForCausalLM(config), tuning).eval()
    add_virtual_tokens(model)
    unsupported = "x: this backbone does not support prepended keys and values"
    with pytest.raises(AdapterError, match=unsupported):
        require_virtual_tokens_attended(model, "x")
    deaf = attach(tiny_backbone, spec_of("prompt_tuning"), seed=0).eval()
    deaf.base_model.model._forward_pre_hooks.clear()
    with pytest.raises(AdapterError, match="logits differ by"):
        require_virtual_tokens_attended(deaf, "x")


def test_saved_adapters_of_unsupported_prompt_methods_are_refused(
    tiny_backbone: Backbone, plain: Plain, tmp_path: Path
) -> None:
    config = json.loads((plain.folder / "prompt_tuning" / "adapter_config.json").read_text())
    for changes, message in (
        ({"task_type": "SEQ_CLS"}, "prompt_tuning of task_type SEQ_CLS is not supported"),
        ({"peft_type": "CPT"}, "cpt is not supported"),
    ):
        adapter = tmp_path / message.split()[0]
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
        (adapter / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(AdapterError, match=message):
            attach_saved(tiny_backbone, adapter)
