"""Training an adapter on TRL's SFTTrainer, and measuring what it did to held-out loss."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from lora_kit.adapters import ADAPTER_CONFIG
from lora_kit.backbone import Backbone
from lora_kit.console import meter
from lora_kit.data.batches import LengthGroupedSampler
from lora_kit.data.dataset import PreparedData
from lora_kit.data.tokenization import Example
from lora_kit.errors import TrainingError
from lora_kit.files import whole_directory, write_json
from lora_kit.likelihood import pad_examples, supervised_nll, to_device
from lora_kit.processes import process_state
from lora_kit.recipe import Recipe, TrainingSpec
from lora_kit.run import RunDirectory, peak_memory
from lora_kit.training.callbacks import FirstStepCheck, MetricsLog

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. Losses are in nats per supervised token, memory in bytes."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    first_loss: float
    final_loss: float
    validation_before: float | None
    validation_after: float | None
    peak_memory: int
    history: tuple[dict[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the history, which `metrics.jsonl` has."""
        return {name: value for name, value in asdict(self).items() if name != "history"}


class SupervisedTrainer(SFTTrainer):
    """SFTTrainer with float32 adapters, batches by length, and logits only where they are scored.

    TRL 1.16 casts the adapters of a quantized model to bfloat16, in which most AdamW steps at
    learning rates below 1e-4 round to nothing, and on a CPU its loss projects every position to
    the vocabulary.
    """

    def __init__(self, *args: Any, model: PeftModel, **kwargs: Any):
        masters = {n: p.data.clone() for n, p in model.named_parameters() if p.requires_grad}
        super().__init__(*args, model=model, **kwargs)
        for name, parameter in model.named_parameters():
            if name in masters:
                parameter.data = masters[name]
        self._tokens = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in dataset["input_ids"]]
        return LengthGroupedSampler(
            lengths, self.args.per_device_train_batch_size, self.args.data_seed
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of the supervised tokens' losses over the supervised tokens of the whole step.

        `num_items_in_batch` counts them over all micro-batches and processes; since gradients are
        averaged over processes, the sum is scaled up by their number.
        """
        if return_outputs:
            raise TrainingError("the loss is computed without the full logits; ask for the loss")
        nll, _ = supervised_nll(model, inputs)
        self._tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum())
        count = nll.numel() if num_items_in_batch is None else num_items_in_batch
        loss: torch.Tensor = nll.sum() / count * self.accelerator.num_processes
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tokens seen so far."""
        super().log(logs | {"tokens": self._tokens}, start_time)


def train(
    recipe: Recipe,
    backbone: Backbone,
    model: PeftModel,
    data: PreparedData,
    validation: PreparedData | None,
    run: RunDirectory,
) -> TrainingResult:
    """Train the adapter that is attached to `model` and save it in the run directory.

    Raises:
        TrainingError: if the batch cannot be divided as asked, or nothing is trained.
    """
    state = process_state()
    arguments = _arguments(recipe, backbone, state, run.root)
    before = validation_loss(model, backbone, validation)
    micro = arguments.per_device_train_batch_size
    steps = optimizer_steps(len(data.examples), recipe.training, micro, state.num_processes)
    started = time.monotonic()
    with meter("training", steps, visible=state.is_main_process) as progress:
        log = MetricsLog(run.metrics, progress, state.is_main_process)
        trainer = SupervisedTrainer(
            model=model,
            args=arguments,
            train_dataset=data.to_dataset(),
            data_collator=partial(collate, pad_token_id=backbone.tokenizer.pad_token_id),
            processing_class=backbone.tokenizer,
            callbacks=[log, FirstStepCheck(), *_tensorboard(run.root / "tensorboard")],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = time.monotonic() - started
    # Accelerate leaves the forward wrapped in autocast, and what is measured would not be what a
    # model from disk computes.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    after = validation_loss(model, backbone, validation)
    if state.is_main_process:
        save_adapter(model, backbone, run.adapter)
    state.wait_for_everyone()
    history = tuple(log.history)
    tokens = int(trainer._tokens)
    return TrainingResult(
        steps=trainer.state.global_step,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        first_loss=history[0]["loss"] if history else float("nan"),
        final_loss=history[-1]["loss"] if history else float("nan"),
        validation_before=before,
        validation_after=after,
        peak_memory=peak_memory(),
        history=history,
    )


def collate(features: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch of data set rows, padded as `likelihood.pad_examples` does."""
    examples = [Example(tuple(f["input_ids"]), tuple(f["labels"])) for f in features]
    return pad_examples(examples, pad_token_id)


def micro_batch_size(spec: TrainingSpec, processes: int, device: torch.device) -> int:
    """Examples a forward pass on one process.

    Raises:
        TrainingError: if the batch cannot be divided over the processes.
    """
    if spec.batch_size % processes:
        raise TrainingError(
            f"training.batch_size: {spec.batch_size} examples cannot be divided over {processes} "
            "processes; make it a multiple"
        )
    share = spec.batch_size // processes
    default = next(n for n in (4, 3, 2, 1) if share % n == 0) if device.type == "cpu" else share
    size = spec.micro_batch_size or default
    if share % size:
        raise TrainingError(
            f"training.micro_batch_size: {size} does not divide the {share} examples that each of "
            f"{processes} processes gets of batch_size {spec.batch_size}"
        )
    return size


def _arguments(
    recipe: Recipe, backbone: Backbone, state: PartialState, directory: Path
) -> SFTConfig:
    spec = recipe.training
    micro = micro_batch_size(spec, state.num_processes, state.device)
    arguments = SFTConfig(
        output_dir=str(directory),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=spec.batch_size // (micro * state.num_processes),
        num_train_epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="constant_with_warmup" if spec.schedule == "constant" else spec.schedule,
        warmup_steps=spec.warmup,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        gradient_checkpointing=spec.gradient_checkpointing,
        bf16=backbone.spec.dtype == "bfloat16",
        fp16=backbone.spec.dtype == "float16",
        use_cpu=state.device.type == "cpu",
        dataloader_pin_memory=state.device.type == "cuda",
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    # Without a launcher, all visible GPUs would be taken by nn.DataParallel, which deals out the
    # columns that logits are wanted in as if they were examples.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def optimizer_steps(examples: int, spec: TrainingSpec, micro: int, processes: int) -> int:
    """Steps of the optimizer over all epochs, as transformers counts them."""
    batches = -(-examples // (micro * processes))
    an_epoch = max(-(-batches * micro * processes // spec.batch_size), 1)
    return max(math.ceil(spec.epochs * an_epoch), 1)


def _tensorboard(directory: Path) -> list[Any]:
    """A TensorBoard log where the package is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(directory)))]


def validation_loss(
    model: torch.nn.Module,
    backbone: Backbone,
    validation: PreparedData | None,
    batch_tokens: int = 4096,
) -> float | None:
    """Mean loss of the held-out supervised tokens, nats per token; `None` without such data."""
    if validation is None or not validation.examples:
        return None
    was_training = model.training
    model.eval()
    total = 0.0
    count = 0
    examples = sorted(validation.examples, key=lambda example: len(example.input_ids))
    with torch.inference_mode():
        for batch in _by_tokens(examples, batch_tokens):
            padded = pad_examples(batch, backbone.tokenizer.pad_token_id)
            nll, _ = supervised_nll(model, to_device(padded, backbone.model.device))
            total += float(nll.double().sum())
            count += nll.numel()
    model.train(was_training)
    return total / count


def _by_tokens(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    batches: list[list[Example]] = []
    for example in examples:
        if batches and (len(batches[-1]) + 1) * len(example.input_ids) <= budget:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches


def save_adapter(model: PeftModel, backbone: Backbone, directory: Path) -> None:
    """Write a PEFT adapter directory with the backbone's fingerprint beside it."""
    with whole_directory(directory) as temporary:
        model.save_pretrained(str(temporary), safe_serialization=True, save_embedding_layers=False)
        # PEFT leaves a card of blanks to be filled in; the release writes a real one.
        (temporary / "README.md").unlink(missing_ok=True)
        write_json(
            temporary / "backbone.json",
            {
                **backbone.spec.model_dump(mode="json"),
                "fingerprint": asdict(backbone.fingerprint)
                | {"digest": backbone.fingerprint.digest},
                "quantized_modules": list(backbone.quantized_modules),
            },
        )
        if not (temporary / ADAPTER_CONFIG).is_file():
            raise TrainingError(f"{directory}: PEFT wrote no {ADAPTER_CONFIG}")
