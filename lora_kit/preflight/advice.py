"""Advice in words: with these rows, on this base and machine, which weights to train, and why.

Rules of thumb, each with its source. They change no recipe, and a run that was judged on the same
rows counts more than they do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.data.row_sets import Rows
from lora_kit.evaluation.task_verdict import BASELINES
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.recipe.objective import (
    LANGUAGE_MODELING,
    OF_TEXTS,
    TEXT_HEADS,
    WHOLE_TEXT_HEADS,
    Objective,
)
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import FEWSHOT, PROBE, RETRIEVAL
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import LoraKitError
from lora_kit.training.head_rows.probe_texts import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEASURED = "tests/benchmarks/RESULTS.md, Classification"
KUMAR = "Kumar et al. 2022, arXiv:2202.10054"
# Labels of the rarest class (or rows for each number) below which the features stay frozen.
FEW_LABELS = 15
# Largest backbone that is trained as a whole for a head, in parameters: none of its abilities
# are to be kept, and what is saved is small.
SMALL_BACKBONE = 50_000_000
FEW_EXAMPLES = 200
# Tokens of a word from which on the tokenizer, and so the base, has hardly seen such texts.
# English prose has 1.2 to 1.4; Python code about 3 with its punctuation.
UNFAMILIAR = 2.5
# Rows whose texts are tokenized to tell likeness.
SAMPLED = 200
# Largest and smallest class, as a ratio, from which on losses are weighed.
UNBALANCED = 5
# Baselines that an objective is held against, besides the base.
HELD_AGAINST: dict[Objective, tuple[str, ...]] = {
    **dict.fromkeys(LANGUAGE_MODELING, (FEWSHOT, RETRIEVAL)),
    **dict.fromkeys(WHOLE_TEXT_HEADS, (PROBE, RETRIEVAL)),
    "token-classification": (PROBE,),
}


@dataclass(frozen=True)
class Reason:
    """Sentence with the place that it comes from.

    Attributes:
        text: the sentence, with a full stop.
        source: paper or measurement; empty for a fact of the recipe.
    """

    text: str
    source: str = ""


@dataclass(frozen=True)
class Advice:
    """Recommendation of the weights to train, in words.

    Attributes:
        method: `adapter.method` that the rules suggest.
        own: `adapter.method` of the recipe.
        reasons: why, and what else follows from the rows.
        baselines: arms that tell whether the training was worth it, with a description.
        measured: runs that were judged on the same rows, with method and decision.
    """

    method: str
    own: str
    reasons: tuple[Reason, ...]
    baselines: tuple[tuple[str, str], ...] = ()
    measured: tuple[tuple[str, str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Situation:
    """Facts from which the rules reason.

    Attributes:
        objective: training objective.
        examples: training examples, without replay.
        classes: rows by class; empty for other objectives.
        parameters: parameters of the backbone.
        on_gpu: true if the training runs on a GPU.
        tokens_per_word: tokens of a word of the rows' texts.
    """

    objective: Objective
    examples: int
    classes: dict[str, int]
    parameters: int
    on_gpu: bool
    tokens_per_word: float

    @property
    def labels(self) -> int:
        """Labels of the rarest class; examples where there are no classes."""
        return min(self.classes.values(), default=self.examples)


def tokens_per_word(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the tokens of a word of texts on average, words being divided by white space.

    Rust et al. 2021, arXiv:2012.15613, call it fertility; a language or a domain that a model was
    trained on has a low one.
    """
    words = sum(len(text.split()) for text in rows)
    ids = (
        tokenizer(list(rows), add_special_tokens=False, verbose=False)["input_ids"] if words else []
    )
    return sum(map(len, ids)) / max(words, 1)


def advise(
    recipe: Recipe, situation: Situation, measured: Sequence[tuple[str, str, str]] = ()
) -> Advice:
    """Return what to train.

    Args:
        recipe: the recipe.
        situation: facts of its rows, base and machine.
        measured: directory, method and decision of runs that were judged on the same rows.
    """
    method, reason = _method(situation)
    reasons = [reason, *_likeness(situation), *_balance(recipe, situation)]
    arms = [arm for arm in HELD_AGAINST.get(situation.objective, ()) if arm in _possible(situation)]
    baselines = tuple((arm, BASELINES[arm][1]) for arm in arms)
    own = recipe.adapter.method
    return Advice(method, own, tuple(reasons), baselines, tuple(measured))


def _possible(situation: Situation) -> tuple[str, ...]:
    """Return the arms that make sense: few-shot prompting needs few examples to be a rival."""
    is_few = situation.examples < FEW_EXAMPLES
    return (PROBE, RETRIEVAL, FEWSHOT) if is_few else (PROBE, RETRIEVAL)


def _method(situation: Situation) -> tuple[str, Reason]:
    if situation.objective in TEXT_HEADS:
        return _head_method(situation)
    if situation.objective == "text" and situation.examples >= 100_000 and situation.on_gpu:
        return "full", Reason(
            f"{situation.examples:,} texts are enough for all weights to learn more than LoRA can "
            "hold, at the price of forgetting more.",
            "Biderman et al. 2024, arXiv:2405.09673",
        )
    few = f"{situation.examples:,} examples are few: " if situation.examples < FEW_EXAMPLES else ""
    return "lora", Reason(
        f"{few}LoRA on all layers learns as much as full fine-tuning from data of this size, "
        "forgets less, and can be switched off.",
        "Biderman et al. 2024, arXiv:2405.09673; Schulman et al. 2025, LoRA Without Regret",
    )


def _head_method(situation: Situation) -> tuple[str, Reason]:
    labels = situation.labels
    counted = (
        f"{labels:,} labels of the rarest class"
        if situation.classes
        else f"{labels:,} labelled rows"
    )
    if labels < FEW_LABELS:
        return "head", Reason(
            f"{counted[0].upper()}{counted[1:]} are too few to change the base's features: trained "
            "with so few, they fit the rows and are worse on others. Train the head alone.",
            KUMAR,
        )
    if situation.parameters <= SMALL_BACKBONE:
        return "full", Reason(
            f"With {counted} and a base of {situation.parameters / 1e6:.0f} million parameters, "
            "all weights can be trained: with 346 rows of seven classes, an encoder of 23 million "
            "had an accuracy of 0.96, its last two layers 0.94, LoRA 0.91, the head alone 0.83.",
            MEASURED,
        )
    if not situation.on_gpu and situation.parameters > 1_000_000_000:
        return "head", Reason(
            f"Without a GPU, a base of {situation.parameters / 1e9:.1f} billion parameters is read "
            "once for the head alone (its features are kept), and once in each epoch otherwise.",
        )
    return "lora", Reason(
        f"{counted[0].upper()}{counted[1:]} can change the features of a base of "
        f"{situation.parameters / 1e6:,.0f} million parameters by LoRA. Try the head alone too: of "
        "one of 135 million it was as good (0.89 and 0.88), in a fraction of the time.",
        MEASURED,
    )


def _likeness(situation: Situation) -> list[Reason]:
    if situation.tokens_per_word < UNFAMILIAR or situation.objective in OF_TEXTS:
        return []
    return [
        Reason(
            f"The texts have {situation.tokens_per_word:.1f} tokens a word (prose: about 1.3), so "
            "that the base has probably read few like them: training on such texts without labels "
            "first (objective: text, or mlm for an encoder) helps most there.",
            "Rust et al. 2021, arXiv:2012.15613; Gururangan et al. 2020, arXiv:2004.10964",
        )
    ]


def _balance(recipe: Recipe, situation: Situation) -> list[Reason]:
    sizes = situation.classes
    if not sizes or max(sizes.values()) < UNBALANCED * min(sizes.values()):
        return []
    if recipe.classification and recipe.classification.class_weights != "none":
        return []
    rarest = min(sizes, key=lambda name: sizes[name])
    return [
        Reason(
            f"{rarest} has {sizes[rarest]:,} rows, the largest class {max(sizes.values()):,}: "
            "classification.class_weights=balanced raised macro-F1 by 0.13 at 1:20.",
            MEASURED,
        )
    ]


def situation_of(
    recipe: Recipe, rows: Rows, tokenizer: Any, parameters: int, on_gpu: bool
) -> Situation:
    """Return the facts that the rules need.

    Args:
        recipe: the recipe.
        rows: rows of `data.train`.
        tokenizer: tokenizer of the backbone.
        parameters: parameters of the backbone.
        on_gpu: true if the training runs on a GPU.
    """
    is_classes = recipe.training.objective == "classification"
    counted = Counter(str(row.label) for row in rows) if is_classes else {}
    texts = [text_of(row) for row in rows[:SAMPLED]]
    return Situation(
        recipe.training.objective,
        len(rows),
        dict(counted),
        parameters,
        on_gpu,
        tokens_per_word(texts, tokenizer),
    )


def runs_on_the_same_rows(
    folder: Path, rows: Rows, objective: Objective
) -> list[tuple[str, str, str]]:
    """Return directory, method and decision of judged runs of the same rows, the best first.

    Args:
        folder: folder of run directories; runs that cannot be read are left out.
        rows: rows of `data.train`.
        objective: objective that they share.
    """
    paths = sorted(folder.glob("*/run.json")) if folder.is_dir() else []
    digest = rows.digest() if paths else ""
    found = []
    for path in paths:
        run = RunDirectory(path.parent)
        try:
            if run.load_record().get("data", {}).get("rows_digest") != digest:
                continue
            recipe = run.load_recipe()
            decision = read_verdict(run.evaluation).verdict.decision
        except LoraKitError:
            continue
        if recipe.training.objective == objective:
            found.append((str(path.parent), recipe.adapter.method, str(decision)))
    order = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2}
    return sorted(found, key=lambda one: order.get(one[2], 3))
