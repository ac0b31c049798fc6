"""Traps of training data, labels and losses."""

from __future__ import annotations

from typing import Any

import torch
import yaml
from torch.nn.functional import cross_entropy

from lora_kit.data.dataset import prepare
from lora_kit.data.templates import render
from lora_kit.data.tokenization import end_of_turn_id, tokenize
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import pad_examples
from lora_kit.preflight import data_checks
from lora_kit.preflight.isolation import packed_difference
from lora_kit.preflight.step_timing import require_gradient
from lora_kit.preflight.traps.specimens import (
    ENDLESS_TEMPLATE,
    ROW,
    Leaky,
    example,
    specimen_adapter,
    specimen_backbone,
    specimen_context,
    specimen_model,
    specimen_recipe,
    specimen_tokenizer,
)
from lora_kit.preflight.traps.trap import Trap, is_refused
from lora_kit.recipe.training import TrainingSpec


def masked_labels_are_present() -> bool:
    """Return true if the loss without supervised tokens is 0 and no error is raised."""
    return float(cross_entropy(torch.zeros(1, 4), torch.tensor([-100]), reduction="sum")) == 0.0


def masked_labels_are_guarded() -> bool:
    """Return true if examples without supervised tokens are refused, dropped or not."""
    masked = specimen_context(examples=[example("a", "b")])
    spec = specimen_recipe(max_length=2).data
    return is_refused(data_checks.require_supervised_tokens, masked) and is_refused(
        prepare, [ROW], specimen_tokenizer(), spec
    )


def endless_turns_are_guarded() -> bool:
    """Return true if data without an end of turn is refused and generation stops on it."""
    from lora_kit.modeling.generation import stop_token_ids

    backbone = specimen_backbone()
    truncated = example("a", "</s>", "b", supervised=1)
    context = specimen_context(backbone=backbone, examples=[truncated])
    return (
        is_refused(tokenize, ROW, specimen_tokenizer(ENDLESS_TEMPLATE), 64)
        and is_refused(data_checks.require_supervised_end_of_turn, context)
        and end_of_turn_id(backbone.tokenizer) in stop_token_ids(backbone)
    )


def double_bos_is_present() -> bool:
    """Return true if chat template and tokenizer each write a BOS token."""
    tokenizer = specimen_tokenizer()
    ids = tokenizer(render(ROW.messages, tokenizer, add_generation_prompt=False))["input_ids"]
    return list(ids[:2]) == [tokenizer.bos_token_id] * 2


def double_bos_is_guarded() -> bool:
    """Return true if conversations get one BOS token and examples with two are refused."""
    backbone = specimen_backbone()
    tokenized = tokenize(ROW, backbone.tokenizer, 64)
    doubled = example("<s>", "<s>", "a", supervised=1)
    context = specimen_context(backbone=backbone, examples=[doubled])
    has_one = tokenized.input_ids[:2].count(1) == 1
    return has_one and is_refused(data_checks.refuse_double_bos, context)


PAIR = (example("a", "b", "c", "d", supervised=1), example("d", "c", "b", supervised=1))


def packing_leaks_are_present() -> bool:
    """Return true if a model that ignores restarted positions attends across packed examples."""
    return packed_difference(Leaky(specimen_model()), PAIR) > 0


def packing_leaks_are_guarded() -> bool:
    """Return true if a backbone that separates packed examples passes and a leaky one does not."""
    backbone, model = specimen_backbone(), specimen_model()
    parts = {"recipe": specimen_recipe(packing=True), "backbone": backbone, "examples": PAIR}
    if is_refused(data_checks.refuse_packing_leak, specimen_context(model=model, **parts)):
        return False
    leaky = specimen_context(model=Leaky(amplified(model)), **parts)
    return is_refused(data_checks.refuse_packing_leak, leaky)


def amplified(model: Any) -> Any:
    """Scale the weights in place until a leak changes the logits visibly; return the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0 if parameter.dim() == 2 else 1.0)
    return model


def uneven_batches_are_present() -> bool:
    """Return true if the mean of micro batches' means differs from the mean over tokens."""
    nll = [torch.tensor([4.0, 4.0, 4.0]), torch.tensor([0.0])]
    means = torch.stack([part.mean() for part in nll])
    return float(means.mean()) != float(torch.cat(nll).mean())


def uneven_batches_are_guarded() -> bool:
    """Return true if one pass over two examples and two passes over one have equal gradients."""
    uneven = (example("a", "b", "c", "d", supervised=3), example("d", "c", supervised=1))
    together = _gradient([uneven])
    accumulated = _gradient([uneven[:1], uneven[1:]])
    return float((together - accumulated).norm()) < 1e-5 * float(together.norm())


def _gradient(batches: Any) -> torch.Tensor:
    """Return the gradient of a step accumulated over batches, (parameters,) float32."""
    model = specimen_adapter(specimen_model())
    count = sum(one.supervised for batch in batches for one in batch)
    for batch in batches:
        (supervised_nll(model, pad_examples(batch, 0))[0].sum() / count).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def lost_gradients_are_present() -> bool:
    """Return true if checkpointing loses the gradient when the inputs require none."""
    from torch.utils.checkpoint import checkpoint

    layer = torch.nn.Linear(2, 2)
    output: torch.Tensor = checkpoint(layer, torch.ones(1, 2), use_reentrant=True)
    return not output.requires_grad


def lost_gradients_are_guarded() -> bool:
    """Return true if a backward pass without gradients for the adapter is refused."""
    return is_refused(require_gradient, specimen_adapter(specimen_model()))


def numbers_as_text_are_present() -> bool:
    """Return true if PyYAML reads `1e-5` as a string."""
    return isinstance(yaml.safe_load("1e-5"), str)


def numbers_as_text_are_guarded() -> bool:
    """Return true if a numeric field converts `1e-5` to a number."""
    return TrainingSpec.model_validate({"learning_rate": "1e-5"}).learning_rate == 1e-5


def downloaded_metrics_are_guarded() -> bool:
    """Return true if a metric that is not bundled is refused instead of downloaded."""
    from lora_kit.metrics.load import load_metric

    return is_refused(load_metric, "no-such-metric")


DATA_TRAPS = (
    Trap(
        "all labels masked",
        "Truncated prompts or templates without markers leave no supervised token; the loss is 0.",
        "rows without supervised tokens are dropped and counted; too many are refused",
        masked_labels_are_present,
        masked_labels_are_guarded,
    ),
    Trap(
        "no end of turn",
        "Answers never end if the end of turn is not supervised, or generation ignores it.",
        "templates and data without a supervised end of turn are refused; generation stops on the "
        "end tokens of template and model",
        None,
        endless_turns_are_guarded,
    ),
    Trap(
        "double BOS",
        "Chat template and tokenizer both write a beginning-of-text token.",
        "training and evaluation share one tokenization; checked before step 1",
        double_bos_is_present,
        double_bos_is_guarded,
    ),
    Trap(
        "packing leaks",
        "Attention crosses the examples of a packed row.",
        "with data.packing, tested on the backbone before step 1",
        packing_leaks_are_present,
        packing_leaks_are_guarded,
    ),
    Trap(
        "uneven accumulation",
        "Averaging the means of micro batches weights tokens by the size of their micro batch.",
        "losses are summed and divided by the supervised tokens of the complete step",
        uneven_batches_are_present,
        uneven_batches_are_guarded,
    ),
    Trap(
        "checkpointing without input gradients",
        "A layer recomputed from inputs without gradients passes none on; nothing is trained.",
        "zero gradients are refused by `lora-kit plan` and at step 1",
        lost_gradients_are_present,
        lost_gradients_are_guarded,
    ),
    Trap(
        "numbers as text",
        "PyYAML reads 1e-5 as a string.",
        "numeric fields of a recipe convert it to a number",
        numbers_as_text_are_present,
        numbers_as_text_are_guarded,
    ),
    Trap(
        "metrics fetched by name",
        "`evaluate.load` downloads code from the Hugging Face Hub and runs it.",
        "bundled metrics are files of this package; one of the Hub must be requested as hub:NAME",
        None,
        downloaded_metrics_are_guarded,
    ),
)
