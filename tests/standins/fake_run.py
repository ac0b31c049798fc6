"""Trainings and evaluations of the package on a fake GPU; prints their counts as one JSON object.

Runs as `python -m tests.standins.fake_run MODEL FOLDER`, with the environment of
`fake_cuda.environment`: the directory of a small model, and one to write to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook_on_blocks, remove_hook_from_module
from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from lora_kit.adapter.attach import attach
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import load
from lora_kit.data.dataset import prepare
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.requests import (
    Branch,
    ChoiceRequest,
    ClassRequest,
    GenerationRequest,
    LossRequest,
    Request,
)
from lora_kit.modeling import model_inputs
from lora_kit.modeling.drift import prompt_drift
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.modeling.prefix import Prefix, encode_prefix
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.console import meter
from lora_kit.training import steps
from lora_kit.training.heads import HeadTask
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.setup import TrainingSetup
from lora_kit.training.validation import validation_loss
from tests import classifying, preferring
from tests.standins.fake_cuda import (
    CUDA,
    FakeCudaMode,
    Watch,
    on_fake_cuda,
    show,
    to_fake_cuda,
)
from tests.training_rows import training_rows

PROMPT = tuple(range(5, 25))
BRANCHES = (Branch((7, 8, 9), 3), Branch((9, 10), 2), Branch((11,), 1))
SECOND = torch.device("cuda", 1)
LAYOUTS = [BatchLayout(tree, prefix) for tree in (True, False) for prefix in (True, False)]


@dataclass(frozen=True)
class Counts:
    """Counts of `Watch` over one training step or one batch.

    Attributes:
        waits: host syncs by kind and line.
        copies: copies that the host does not wait for, by line.
        kernels: number of operations on the device.
    """

    waits: dict[str, int]
    copies: dict[str, int]
    kernels: int

    @classmethod
    def of(cls, watch: Watch) -> Counts:
        """Return what was counted so far."""
        return cls(dict(watch.waits), dict(watch.copies), sum(watch.kernels.values()))


class _Steps(TrainerCallback):
    """Callback that keeps the counts of each step, from its beginning to that of the next."""

    def __init__(self, watch: Watch):
        self._watch = watch
        self.counts: list[Counts] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.counts.append(Counts.of(self._watch))
        self._watch.clear()


def train(inputs: TrainingInputs, mode: FakeCudaMode) -> Counts:
    """Train three steps with the package's trainer, and return the counts of the second."""
    to_fake_cuda(inputs.model, mode)
    with on_fake_cuda(mode) as watch, meter("training", inputs.steps, visible=False) as progress:
        setup = TrainingSetup.prepare(inputs, HeadTask.of(inputs), lambda: None, None, progress)
        counted = _Steps(watch)
        setup.trainer.add_callback(counted)
        setup.trainer.args.save_strategy = "no"
        setup.trainer.train()
    # Before it came the trainer's beginning, and a step that is guarded more closely.
    return counted.counts[2]


def validate(inputs: TrainingInputs, mode: FakeCudaMode) -> Counts:
    """Return the counts of a validation of three passes or more."""
    with on_fake_cuda(mode) as watch:
        validation_loss(
            inputs.model, inputs.backbone, inputs.data, 4 * int(inputs.data.lengths.max())
        )
        return Counts.of(watch)


def score(
    model: Any, tokenizer: Any, requests: list[Request], layout: BatchLayout, mode: FakeCudaMode
) -> Counts:
    """Score a batch with the adapter and without, and return the counts of one of them."""
    scorer = Scorer(model, tokenizer, (2,))
    # Under inference mode, composite operations would not reach the counts.
    with on_fake_cuda(mode) as watch, eval_mode(model), torch.no_grad():
        for disabled in (True, False):
            with adapter_disabled(model) if disabled else nullcontext():
                prefix = _prefix(model, requests, layout)
                watch.clear()
                compute_outcomes(scorer, requests, layout, prefix)
        return Counts.of(watch)


def _prefix(model: Any, requests: list[Request], layout: BatchLayout) -> Prefix | None:
    if not layout.prefix or isinstance(requests[0], ClassRequest):
        return None
    return encode_prefix(model, PROMPT[:8], CUDA)


def drift(model: Any, mode: FakeCudaMode) -> Counts:
    """Return the counts of one batch of prompts whose drift is measured."""
    measured: Any = prompt_drift
    with on_fake_cuda(mode) as watch, eval_mode(model), torch.no_grad():
        measured.__wrapped__(model, [PROMPT, PROMPT[3:]], 2, CUDA)
        return Counts.of(watch)


def spread(model: Any, mode: FakeCudaMode) -> None:
    """Move the blocks and the norm of a model to a second GPU, and let accelerate dispatch."""
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "lm_head": 0, "model.norm": 1}
    places |= {f"model.layers.{number}": 1 for number in range(len(model.get_decoder().layers))}
    backbone = model.get_base_model()
    with mode:
        for block in (name for name, place in places.items() if place):
            for module in backbone.get_submodule(block).modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        there = torch.empty_like(parameter, device=SECOND)
                        module._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
        # As `dispatch_model` does, which knows tied weights by addresses, that fake ones lack.
        attach_align_device_hook_on_blocks(
            backbone,
            {"": CUDA, **{name: torch.device("cuda", place) for name, place in places.items()}},
            offload=dict.fromkeys(places, False),
            skip_keys=backbone._skip_keys_device_placement,
        )


def error_of(run: Callable[[], object]) -> str:
    """Return the error of a run; empty if there is none."""
    try:
        run()
    except RuntimeError as error:
        return str(error)
    return ""


@contextmanager
def left_on_the_host(name: str) -> Iterator[None]:
    """Plant an error: one tensor of each batch of a training stays on the CPU."""
    original = steps.to_device

    def careless(batch: Any, device: torch.device) -> dict[str, Any]:
        kept = {name: batch[name]} if name in batch else {}
        if name == model_inputs.SUPERVISED:
            kept = {name: torch.stack(model_inputs.supervised_positions(batch))}
        return original(batch, device) | kept

    prepare_inputs = steps.StepTrainer._prepare_inputs
    steps.to_device = careless  # type: ignore[attr-defined]
    steps.StepTrainer._prepare_inputs = lambda _, batch: batch  # type: ignore[method-assign]
    try:
        yield
    finally:
        steps.to_device = original  # type: ignore[attr-defined]
        steps.StepTrainer._prepare_inputs = prepare_inputs  # type: ignore[method-assign]


def sft_inputs(
    model: str, folder: Path, quantization: str, packing: bool | str, attention: str = "auto"
) -> TrainingInputs:
    """Return the inputs of three steps of four chats each."""
    rows = folder / "rows.jsonl"
    texts = [{"prompt": f"What is {n} plus 3?", "completion": f"It is {n + 3}."} for n in range(12)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {
                "model": model,
                "quantization": quantization,
                "dtype": "bfloat16",
                "attention": attention,
            },
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"train": [{"source": str(rows)}], "max_length": 128, "packing": packing},
            "training": {"batch_size": 4, "epochs": 1},
        }
    )
    return _inputs(recipe, folder / f"{quantization}-{packing}")


def classifier_inputs(model: str, folder: Path) -> TrainingInputs:
    """Return the inputs of six steps of four labelled texts each."""
    backbone = {"model": model, "quantization": "none", "dtype": "bfloat16"}
    recipe = classifying.classes_recipe(Path(model), folder, backbone=backbone)
    return _inputs(
        recipe, folder / "classes", HeadOutputs("classification", ("bird", "fruit", "metal"))
    )


def preference_inputs(model: str, folder: Path) -> TrainingInputs:
    """Return the inputs of six steps of four preference pairs each."""
    recipe = preferring.recipe_of(Path(model), folder, "dpo")
    backbone = recipe.backbone.model_copy(update={"dtype": "bfloat16"})
    return preferring.trainer_inputs(
        recipe.model_copy(update={"backbone": backbone}), folder / "dpo"
    )


def _inputs(recipe: Recipe, directory: Path, outputs: HeadOutputs | None = None) -> TrainingInputs:
    backbone = load(resolve(recipe.backbone), recipe.backbone, outputs)
    rows, _ = training_rows(recipe.data, recipe.seed)
    data = prepare(rows, backbone.tokenizer, recipe.data, outputs=outputs)
    model = attach(backbone, recipe.adapter, recipe.seed)
    return TrainingInputs(recipe, backbone, model, data, None, RunDirectory(directory))


def run_all(model: str, folder: Path) -> dict[str, Any]:
    """Return the counts of every case, and the errors that planted ones cause."""
    lora = sft_inputs(model, folder, "none", packing=False)
    packed = sft_inputs(model, folder, "none", packing=True)
    trainings = {
        "lora": lora,
        "packed": packed,
        "varlen": sft_inputs(model, folder, "none", "unpadded", "varlen"),
        "nf4": sft_inputs(model, folder, "nf4", packing=False),
        "classifier": classifier_inputs(model, folder),
        "preferences": preference_inputs(model, folder),
    }
    classes = [ClassRequest(PROMPT[n:]) for n in range(3)]
    # Everything above was loaded by a process without a GPU.
    show()
    AcceleratorState._reset_state(reset_partial_state=True)
    mode = FakeCudaMode()
    counts = {f"train {name}": train(inputs, mode) for name, inputs in trainings.items()}
    tokenizer = lora.backbone.tokenizer
    counts["validation"] = validate(lora, mode)
    kinds: dict[str, list[Request]] = {
        "loss": [LossRequest(Example(PROMPT, (IGNORE_INDEX,) * 9 + PROMPT[9:]))] * 3,
        "choice": [ChoiceRequest(PROMPT, BRANCHES)] * 3,
        "generation": [GenerationRequest(PROMPT, 3, ())] * 3,
    }
    for name, requests in kinds.items():
        for layout in LAYOUTS if name == "choice" else LAYOUTS[:2]:
            shape = f" {'tree' if layout.tree else 'rows'}" if name == "choice" else ""
            case = f"{name}{shape}{' prefix' if layout.prefix else ''}"
            counts[case] = score(lora.model, tokenizer, requests, layout, mode)
    counts["classes"] = score(
        trainings["classifier"].model, tokenizer, [*classes], LAYOUTS[0], mode
    )
    counts["drift"] = drift(lora.model, mode)
    planted: dict[str, str] = {}
    for name in ("position_ids", "input_ids", model_inputs.SUPERVISED):
        with left_on_the_host(name):
            planted[name] = error_of(lambda: train(packed, mode))
    spread(lora.model, mode)
    cases = {
        f"{name} {layout}": error_of(partial(score, lora.model, tokenizer, requests, layout, mode))
        for name, requests in kinds.items()
        for layout in LAYOUTS
    }
    cases["drift"] = error_of(lambda: drift(lora.model, mode))
    # The head then gets the last block's output where that block is.
    remove_hook_from_module(lora.model.get_output_embeddings())
    losses = partial(score, lora.model, tokenizer, kinds["loss"], LAYOUTS[0], mode)
    planted["head"] = error_of(losses)
    return {
        "counts": {name: asdict(one) for name, one in counts.items()},
        "planted": planted,
        "over two GPUs": cases,
    }


if __name__ == "__main__":
    print(json.dumps(run_all(sys.argv[1], Path(sys.argv[2]))))
