import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig

from lora_kit.adapter.attach import attach, attach_saved
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.prepared import PreparedData
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.retention_methods import RetentionMethods
from lora_kit.training.step_sizes import micro_batch_size
from lora_kit.training.supervised import SupervisedTrainer
from lora_kit.training.trainer import TrainingResult, run_training
from lora_kit.training.validation import validation_loss
from tests.training_rows import training_rows

GOLDEN = [8.271, 8.060, 7.983, 7.964]


def data_of(recipe: Recipe, backbone: Backbone) -> PreparedData:
    rows, _ = training_rows(recipe.data, recipe.seed)
    return prepare(rows, backbone.tokenizer, recipe.data)


def train_once(recipe: Recipe, root: Path) -> tuple[TrainingResult, str]:
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    model = attach(backbone, recipe.adapter, recipe.seed)
    held_out = prepare(validation_rows(recipe.data, recipe.seed), backbone.tokenizer, recipe.data)
    run = RunDirectory(root)
    data = data_of(recipe, backbone)
    result = run_training(TrainingInputs(recipe, backbone, model, data, held_out, run))
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    return result, hashlib.sha256(weights).hexdigest()


def with_training(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def test_training_lowers_the_loss_and_leaves_a_log_of_every_step(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    result, _ = train_once(with_training(tiny_recipe, epochs=4.0), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, result.steps + 1))
    assert result.steps == 16
    assert result.validation_after is not None
    assert result.validation_before is not None
    assert result.validation_after < result.validation_before
    assert lines[-1]["tokens"] == result.tokens


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    _, one = train_once(tiny_recipe, tmp_path / "one")
    _, two = train_once(tiny_recipe, tmp_path / "two")
    _, other = train_once(tiny_recipe.model_copy(update={"seed": 1}), tmp_path / "other")
    assert one == two
    assert one != other


def test_the_loss_curve_is_the_known_one(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Golden values: a change that should not alter training does not alter them."""
    recipe = with_training(tiny_recipe, epochs=4.0, learning_rate=5e-3)
    result, _ = train_once(recipe, tmp_path / "run")
    # A random model starts at ln(4096) = 8.32.
    losses = [entry["loss"] for entry in result.history]
    assert losses[::5] == pytest.approx(GOLDEN, abs=0.01)


def trainer_of(
    backbone: Backbone,
    recipe: Recipe,
    micro: int,
    directory: Path,
    tokens: int | None = None,
    packing: bool = False,
) -> SupervisedTrainer:
    recipe = with_training(recipe, micro_batch_size=micro, max_tokens_per_batch=tokens)
    # By default a pack holds up to `max_length` tokens: enough for all examples of a step.
    limits = recipe.data.model_copy(update={"packing": packing, "max_length": 2048})
    recipe = recipe.model_copy(update={"data": limits})
    model = attach(backbone, recipe.adapter, recipe.seed)
    data = data_of(recipe, backbone)
    arguments = SFTConfig(
        output_dir=str(directory),
        per_device_train_batch_size=recipe.training.batch_size,
        remove_unused_columns=False,
        max_steps=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    inputs = TrainingInputs(recipe, backbone, model, data, None, RunDirectory(directory))
    return SupervisedTrainer(args=arguments, inputs=inputs, retention=RetentionMethods())


def first_gradient(
    backbone: Backbone, recipe: Recipe, micro: int, directory: Path, **options: Any
) -> torch.Tensor:
    """Return the gradient of the first optimizer step, over the same examples."""
    from transformers import TrainerCallback

    caught: list[torch.Tensor] = []

    class Catch(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            gradients = [p.grad for p in model.parameters() if p.requires_grad]
            caught.append(torch.cat([g.flatten() for g in gradients]).clone())

    trainer = trainer_of(backbone, recipe, micro, directory, **options)
    trainer.add_callback(Catch())
    trainer.train()
    return caught[0]


def test_micro_batches_weigh_by_supervised_tokens(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """In one pass or several, padded or packed: the gradient of a step is the same."""
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    # All examples in one step, with very different numbers of supervised tokens.
    recipe = with_training(tiny_recipe, batch_size=16, max_grad_norm=1e9)
    ways: list[tuple[int, dict[str, Any]]] = [
        (16, {}),
        (4, {}),
        (1, {}),
        (16, {"tokens": 90}),
        (16, {"packing": True}),
        (16, {"packing": True, "tokens": 90}),
    ]
    whole, *parts = (
        first_gradient(load(resolve(spec), spec), recipe, micro, tmp_path, **options)
        for micro, options in ways
    )
    for part in parts:
        assert torch.nn.functional.cosine_similarity(whole, part, dim=0) > 0.9999
        assert float(part.norm() / whole.norm()) == pytest.approx(1.0, abs=1e-3)


def test_trl_does_not_round_the_adapter_of_a_quantized_model(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    spec = BackboneSpec(model=str(tiny), quantization="nf4", dtype="float32")
    backbone = load(resolve(spec), spec)
    trainer = trainer_of(backbone, tiny_recipe, 4, tmp_path)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert trained
    assert {p.dtype for p in trained} == {torch.float32}
    first = next(p for n, p in trainer.model.named_parameters() if "lora_A" in n)
    assert not torch.equal(first, first.to(torch.bfloat16).float()), "it went through bfloat16"


def test_an_evaluation_in_training_does_not_change_the_gradient(real_backbone: Backbone) -> None:
    """Fails on a CPU with AVX512-BF16 without the guard in `backbone`."""
    from lora_kit.modeling.likelihood import supervised_nll
    from lora_kit.modeling.model_inputs import pad_examples

    model = attach(real_backbone, AdapterSpec(rank=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    spec = Recipe.load("quickstart").data.model_copy(
        update={"train": [SourceSpec(source="stdlib-docstrings", limit=1)], "replay": None}
    )
    rows, _ = training_rows(spec, seed=0)
    data = prepare(rows, real_backbone.tokenizer, spec)
    batch = pad_examples(data.examples, 2)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model.train()
        supervised_nll(model, batch)[0].mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradient()
    loss = validation_loss(model, real_backbone, data, 4096)
    after = gradient()
    assert loss is not None
    assert torch.equal(before, after)


def test_training_leaves_no_autocast_behind(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="bfloat16")
    backbone = load(resolve(spec), spec)
    model = attach(backbone, tiny_recipe.adapter, seed=0)
    run = RunDirectory(tmp_path / "run")
    data = data_of(tiny_recipe, backbone)
    run_training(TrainingInputs(tiny_recipe, backbone, model, data, None, run))
    again = load(resolve(spec), spec)
    reloaded = attach_saved(again, run.adapter).eval()
    ids = torch.arange(64)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reloaded(ids).logits)


def test_a_gradient_of_zero_is_an_error_at_the_first_step(
    tiny_backbone: Backbone, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.zeros_(parameter)  # B @ A and both gradients vanish
    data, run = data_of(tiny_recipe, tiny_backbone), RunDirectory(tmp_path / "run")
    with pytest.raises(TrainingError, match="gradient of step 1 is zero"):
        run_training(TrainingInputs(tiny_recipe, tiny_backbone, model, data, None, run))
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [(8, None, 1, 4), (8, 2, 1, 2), (6, None, 2, 3), (7, None, 2, 4), (8, None, 8, 1)],
)
def test_a_forward_pass_has_no_more_than_a_processes_share(
    batch: int, micro: int | None, processes: int, expected: int
) -> None:
    spec = TrainingSpec(batch_size=batch, micro_batch_size=micro)
    assert micro_batch_size(spec, processes, torch.device("cpu")) == expected


def test_a_batch_of_fewer_examples_than_processes_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"batch_size: .* \(got 8 examples, 9 processes\)"):
        micro_batch_size(TrainingSpec(batch_size=8), 9, torch.device("cpu"))
