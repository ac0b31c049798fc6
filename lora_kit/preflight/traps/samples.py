"""Traps of data and of what is learned from it: each tried out, and whether it is caught."""

from __future__ import annotations

from typing import Any

import torch
import yaml
from torch.nn.functional import cross_entropy

from lora_kit.data.dataset import prepare
from lora_kit.data.templates import render
from lora_kit.data.tokenization import end_of_turn, tokenize
from lora_kit.modeling.likelihood import pad_examples, supervised_nll
from lora_kit.preflight import data_checks
from lora_kit.preflight.isolation import packed_difference
from lora_kit.preflight.probe import require_gradient
from lora_kit.preflight.traps.specimens import (
    ENDLESS_TEMPLATE,
    ROW,
    Leaky,
    example,
    situation,
    specimen_adapter,
    specimen_backbone,
    specimen_model,
    specimen_recipe,
    specimen_tokenizer,
)
from lora_kit.preflight.traps.trap import Trap, refused
from lora_kit.recipe.training import TrainingSpec


def masked_labels_are_there() -> bool:
    """The loss of no token is 0, and no error."""
    return float(cross_entropy(torch.zeros(1, 4), torch.tensor([-100]), reduction="sum")) == 0.0


def masked_labels_are_caught() -> bool:
    """Examples without a supervised token are refused, before and after they are dropped."""
    masked = situation(examples=[example("a", "b")])
    spec = specimen_recipe(max_length=2).data
    return refused(data_checks.something_to_learn, masked) and refused(
        prepare, [ROW], specimen_tokenizer(), spec
    )


def endless_turns_are_caught() -> bool:
    """Templates and data that never end a turn are refused, and generation stops on its end."""
    from lora_kit.modeling.generation import stop_token_ids

    backbone = specimen_backbone()
    cut = situation(backbone=backbone, examples=[example("a", "</s>", "b", supervised=1)])
    return (
        refused(tokenize, ROW, specimen_tokenizer(ENDLESS_TEMPLATE), 64)
        and refused(data_checks.learns_to_stop, cut)
        and end_of_turn(backbone.tokenizer) in stop_token_ids(backbone)
    )


def two_beginnings_are_there() -> bool:
    """Template and tokenizer each write one."""
    tokenizer = specimen_tokenizer()
    ids = tokenizer(render(ROW.messages, tokenizer, add_generation_prompt=False))["input_ids"]
    return list(ids[:2]) == [tokenizer.bos_token_id] * 2


def two_beginnings_are_caught() -> bool:
    """A conversation has one, and examples with two are refused."""
    backbone = specimen_backbone()
    made = tokenize(ROW, backbone.tokenizer, 64)
    twice = situation(backbone=backbone, examples=[example("<s>", "<s>", "a", supervised=1)])
    return made.input_ids[:2].count(1) == 1 and refused(data_checks.begins_once, twice)


PAIR = (example("a", "b", "c", "d", supervised=1), example("d", "c", "b", supervised=1))


def packing_leaks_are_there() -> bool:
    """Examples in one row see one another unless something tells them apart."""
    return packed_difference(Leaky(specimen_model()), PAIR) > 0


def packing_leaks_are_caught() -> bool:
    """The backbone that tells them apart passes, the one that does not is refused."""
    backbone, model = specimen_backbone(), specimen_model()
    known = {"recipe": specimen_recipe(packing=True), "backbone": backbone, "examples": PAIR}
    return not refused(data_checks.packed_apart, situation(model=model, **known)) and refused(
        data_checks.packed_apart, situation(model=Leaky(amplified(model)), **known)
    )


def amplified(model: Any) -> Any:
    """The model with weights large enough that what it sees shows in its logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0 if parameter.dim() == 2 else 1.0)
    return model


def uneven_batches_are_there() -> bool:
    """The mean of micro batches' means is not the mean over tokens."""
    nll = [torch.tensor([4.0, 4.0, 4.0]), torch.tensor([0.0])]
    means = torch.stack([part.mean() for part in nll])
    return float(means.mean()) != float(torch.cat(nll).mean())


def uneven_batches_are_caught() -> bool:
    """One pass over two examples, and two passes over one each, have the same gradient."""
    uneven = (example("a", "b", "c", "d", supervised=3), example("d", "c", supervised=1))
    whole = _gradient([uneven])
    parts = _gradient([uneven[:1], uneven[1:]])
    return float((whole - parts).norm()) < 1e-5 * float(whole.norm())


def _gradient(batches: Any) -> torch.Tensor:
    """(parameters,) float32, of a step over batches of examples."""
    model = specimen_adapter(specimen_model())
    count = sum(one.supervised for batch in batches for one in batch)
    for batch in batches:
        (supervised_nll(model, pad_examples(batch, 0))[0].sum() / count).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def cut_gradients_are_there() -> bool:
    """What is recomputed from inputs without gradients has none."""
    from torch.utils.checkpoint import checkpoint

    layer = torch.nn.Linear(2, 2)
    made: torch.Tensor = checkpoint(layer, torch.ones(1, 2), use_reentrant=True)
    return not made.requires_grad


def cut_gradients_are_caught() -> bool:
    """A backward pass that reaches no adapter is refused."""
    return refused(require_gradient, specimen_adapter(specimen_model()))


def numbers_as_text_are_there() -> bool:
    """PyYAML takes `1e-5` for a string."""
    return isinstance(yaml.safe_load("1e-5"), str)


def numbers_as_text_are_caught() -> bool:
    """The field makes it a number."""
    return TrainingSpec.model_validate({"learning_rate": "1e-5"}).learning_rate == 1e-5


def fetched_metrics_are_caught() -> bool:
    """A metric that is not bundled is not looked for on a hub."""
    from lora_kit.metrics.load import load_metric

    return refused(load_metric, "no-such-metric")


DATA_TRAPS = (
    Trap(
        "all labels masked",
        "Cut prompts or a template without markers leave nothing to learn, at a loss of 0.",
        "rows with nothing to learn are dropped and counted; too many of them are refused",
        masked_labels_are_there,
        masked_labels_are_caught,
    ),
    Trap(
        "no end of turn",
        "Where the end of an answer is not learned, or not stopped on, answers never end.",
        "templates and data without a supervised end are refused; generation stops on the "
        "template's end and on the model's own",
        None,
        endless_turns_are_caught,
    ),
    Trap(
        "two beginnings",
        "Template and tokenizer both write the token that begins a text.",
        "one way of tokenizing, for training and evaluation; checked before step 1",
        two_beginnings_are_there,
        two_beginnings_are_caught,
    ),
    Trap(
        "packing leaks",
        "Examples that share a row see one another.",
        "with data.packing, tried out on the backbone before step 1",
        packing_leaks_are_there,
        packing_leaks_are_caught,
    ),
    Trap(
        "uneven accumulation",
        "The mean of micro batches' means weighs tokens by the batch they are in.",
        "losses are summed and divided by the supervised tokens of the whole step",
        uneven_batches_are_there,
        uneven_batches_are_caught,
    ),
    Trap(
        "checkpointing without input gradients",
        "Recomputed from inputs without gradients, a layer passes none on, and nothing is trained.",
        "a gradient of zero is refused, by the probe of `lora-kit plan` and at step 1",
        cut_gradients_are_there,
        cut_gradients_are_caught,
    ),
    Trap(
        "numbers as text",
        "PyYAML reads 1e-5 as a string.",
        "a recipe's field makes it a number",
        numbers_as_text_are_there,
        numbers_as_text_are_caught,
    ),
    Trap(
        "metrics fetched by name",
        "`evaluate.load` fetches code from a hub and runs it.",
        "bundled metrics are files of this package; a hub's is asked for as hub:NAME",
        None,
        fetched_metrics_are_caught,
    ),
)
