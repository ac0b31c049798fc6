"""Trained classifier and unlabelled texts -> texts to label next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.labelled import classification_text, encode_texts
from lora_kit.data.rows import Row
from lora_kit.data.sources import open_source
from lora_kit.data.training_data import TrainingData
from lora_kit.modeling.class_outputs import adapted_features, class_probabilities
from lora_kit.recipe.data import SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session, open_run
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.runtime.files import write_text
from lora_kit.selection.next_labels import STRATEGIES, Choice, Strategy, choose_texts
from lora_kit.training.rows_of_run import rows_of_run

# Texts named in an error message.
_NAMED = 3


@dataclass(frozen=True)
class ChosenText:
    """Text to be labelled, as a row of the output.

    Attributes:
        text: the text.
        label: `None`, to be filled in.
        id: origin of the text.
        predicted: most probable class.
        probability: probability of that class.
        second: second most probable class.
        margin: difference of the two probabilities.
        distance: cosine distance to the nearest row that is labelled or was chosen before.
        reason: why the text was chosen, in words.
    """

    text: str
    label: None
    id: str
    predicted: str
    probability: float
    second: str
    margin: float
    distance: float | None
    reason: str


@dataclass(frozen=True)
class ChosenTexts:
    """Texts to be labelled.

    Attributes:
        output: file with a row per text.
        texts: number of texts that could be chosen.
        strategy: way of choosing.
        rows: the chosen texts, in the order in which they were chosen.
    """

    output: Path
    texts: int
    strategy: Strategy
    rows: tuple[ChosenText, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return {
            "output": str(self.output),
            "texts": self.texts,
            "strategy": self.strategy,
            "rows": [asdict(row) for row in self.rows],
        }


def select_texts(
    directory: Path,
    unlabeled: Path,
    count: int,
    strategy: str = "both",
    output: Path | None = None,
    text_column: str = "text",
) -> ChosenTexts:
    """Choose the texts of a file that a trained classifier should be given labels for.

    Args:
        directory: run of a classification.
        unlabeled: file or folder of rows with a text.
        count: number of texts to choose.
        strategy: one of `STRATEGIES`.
        output: JSON Lines file of the chosen texts; by default `to_label.jsonl` in the run.
        text_column: column of the text.

    Raises:
        LoraKitError: if the run is no classifier, the file cannot be read, has fewer texts than
            asked for or texts of the training rows, or the output exists.
    """
    run = RunDirectory(directory)
    target = output or run.to_label
    _refuse_wrong_request(run.load_recipe(), run, strategy, target)
    texts = _read_texts(unlabeled, text_column, count)
    session = open_run(directory)
    data = rows_of_run(session)
    _refuse_known_texts(texts, data)
    probabilities, features, known = _measured(session, texts, data)
    chosen = choose_texts(probabilities, features, known, count, _strategy(strategy))
    assert session.backbone.head is not None  # the recipe is a classification
    classes = session.backbone.head.outputs.names
    rows = tuple(_described(texts[one.index], one, probabilities, classes) for one in chosen)
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    write_text(target, "".join(f"{line}\n" for line in lines))
    return ChosenTexts(target, len(texts), _strategy(strategy), rows)


def _refuse_wrong_request(recipe: Recipe, run: RunDirectory, strategy: str, target: Path) -> None:
    _strategy(strategy)
    if recipe.training.objective != "classification":
        raise RecipeError(
            f"{run.root}: only a classifier chooses texts to label (got training.objective "
            f"{recipe.training.objective}). Fix: name a run of training.objective: classification"
        )
    if target.exists():
        raise RecipeError(
            f"{target}: exists, and may have labels already. Fix: name another --output, or move it"
        )


def _strategy(name: str) -> Strategy:
    for strategy in STRATEGIES:
        if strategy == name:
            return strategy  # type: ignore[return-value]
    raise RecipeError(f"--by: unknown (got {name!r}). Fix: use {', '.join(STRATEGIES)}")


def _read_texts(path: Path, column: str, count: int) -> list[Row]:
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder (got no texts to choose from). Fix: name a file of "
            '{"text": "..."} rows'
        )
    columns = {} if column == "text" else {"text": column}
    spec = SourceSpec(source=str(path), format="text", columns=columns)
    rows = list(open_source(spec, 0, str(path)))
    if len(rows) < count:
        raise DataError(
            f"--n: more texts than {path} has (got {count:,}, it has {len(rows):,}). Fix: lower "
            "it, or give more texts"
        )
    return rows


def _refuse_known_texts(texts: Sequence[Row], data: TrainingData) -> None:
    """Refuse texts that are in the training rows, regardless of case and white space."""
    trained = {_folded(classification_text(row)): row.origin for row in data.rows}
    known = [
        f"{row.origin} is {trained[folded]}"
        for row in texts
        if (folded := _folded(row.text or "")) in trained
    ]
    if known:
        raise DataError(
            f"texts that are labelled already (got {len(known):,} of {len(texts):,}, such as "
            f"{'; '.join(known[:_NAMED])}). Fix: remove them from the unlabelled texts"
        )


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _measured(
    session: Session, texts: Sequence[Row], data: TrainingData
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """Return probabilities and features of the texts, and features of the training rows."""
    backbone, model, spec = session.backbone, session.model, session.recipe.data
    encoded = encode_texts([row.text or "" for row in texts], backbone.tokenizer, spec.max_length)
    ids = [row for row, _ in encoded]
    known = [example.input_ids for example in data.prepared.examples]
    return (
        class_probabilities(backbone, model, ids),
        adapted_features(backbone, model, ids),
        adapted_features(backbone, model, known),
    )


def _described(
    row: Row, choice: Choice, probabilities: NDArray[np.float64], classes: Sequence[str]
) -> ChosenText:
    own = probabilities[choice.index]
    second, first = np.argsort(own, kind="stable")[-2:].tolist()
    margin = float(own[first] - own[second])
    far = None if choice.distance is None else round(choice.distance, 4)
    apart = "" if far is None else f"; {far:.2f} from the nearest labelled or chosen text"
    return ChosenText(
        text=row.text or "",
        label=None,
        id=row.origin,
        predicted=classes[first],
        probability=round(float(own[first]), 4),
        second=classes[second],
        margin=round(margin, 4),
        distance=far,
        reason=f"{classes[first]} {own[first]:.0%}, {classes[second]} {own[second]:.0%}{apart}",
    )
