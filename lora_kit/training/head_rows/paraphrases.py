"""`data.augmentation.paraphrase`: texts that a language model writes in other words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.files import errors_of_field, resolve
from lora_kit.backbone.fingerprint import fingerprint, weight_files
from lora_kit.backbone.load import compute_dtype, load
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Message, Row
from lora_kit.metrics.load import load_metric
from lora_kit.modeling.generation import Generator, stop_token_ids
from lora_kit.modeling.modes import eval_mode
from lora_kit.modeling.rewriting import Request, Rewritten, rewrite
from lora_kit.recipe.augmentation import AugmentationSpec, ParaphraseSpec
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError, MissingBackboneError
from lora_kit.runtime.hashes import json_sha256
from lora_kit.training.generated_records import Records, cached_records

FIELD = "data.augmentation.paraphrase"
WRITER = f"{FIELD}.writer"
# A model of 135M parameters follows this, and hardly anything longer.
PROMPT = "Rewrite this text in other words:\n\n{text}"
TAKEN = "taken"
# Reasons why a text is left out.
REASONS = TOO_LONG, UNENDED, UNLIKE, OTHER_NUMBERS, SAME = (
    "too long for the prompt",
    "not ended",
    "unlike the row",
    "with other numbers or control tokens",
    "in the words of the row or of another copy",
)
# Turn of a row: its origin and its text.
Turn = tuple[str, str]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Paraphrase:
    """Turn of a row in other words.

    Attributes:
        copy: number of the copy, from 1 on.
        origin: origin of the row.
        text: text of the turn.
        written: text in other words; `None` if there is none.
        similarity: chrF of the two, 0 to 100.
        found: `taken`, or why it is left out.
    """

    copy: int
    origin: str
    text: str
    written: str | None
    similarity: float
    found: str

    @classmethod
    def of(
        cls, copy: int, turn: Turn, rewritten: Rewritten | None, earlier: Sequence[str] = ()
    ) -> Paraphrase:
        """Create from what the writer returned.

        Args:
            copy: number of the copy.
            turn: origin and text of the turn.
            rewritten: text that was written; `None` for a prompt that was too long.
            earlier: texts of earlier copies.
        """
        if rewritten is None:
            return cls(copy, *turn, None, 0.0, TOO_LONG)
        if rewritten.text is None:
            found = UNENDED
        elif any(_words(rewritten.text) == _words(one) for one in (turn[1], *earlier)):
            found = SAME
        elif not rewritten.is_similar:
            found = UNLIKE
        else:
            found = TAKEN if rewritten.keeps_numbers else OTHER_NUMBERS
        return cls(copy, *turn, rewritten.text, round(rewritten.similarity, 3), found)


def require_writer(spec: ParaphraseSpec) -> None:
    """Look for the writer's files, without a network.

    Raises:
        LoraKitError: if they are not found; not for a hub id, which may be downloaded later.
    """
    try:
        with errors_of_field(WRITER):
            resolve(spec.writer, allow_network=False)
    except MissingBackboneError:
        if not is_hub_id(spec.writer.model):
            raise


def find_paraphrases(
    rows: Rows, spec: AugmentationSpec, seed: int, max_length: int
) -> list[Paraphrase]:
    """Write the users' turns in other words, once for each copy; for one process alone.

    The first copy has the most likely tokens, and the others are sampled. The texts are kept in the
    cache.

    Args:
        rows: training rows of a head that reads a text.
        spec: the recipe's `data.augmentation`, with a writer.
        seed: the recipe's seed.
        max_length: largest number of tokens of a prompt.

    Raises:
        BackboneError: if the writer cannot be loaded.
        DataError: if no text was written in other words.
    """
    assert spec.paraphrase is not None
    writer, least = spec.paraphrase.writer, spec.paraphrase.similarity
    turns = list(dict.fromkeys(turn for row in rows for turn in _turns(row)))
    with errors_of_field(WRITER):
        files = resolve(writer)
        weights = weight_files(files.directory)
        identity = fingerprint(files.directory, weights, writer, compute_dtype(writer)).digest

    def generate() -> Records:
        say(
            f"{FIELD}: {writer.model} writes {len(turns):,} texts in other words, {spec.copies} "
            "times; this takes a while on a CPU"
        )
        with errors_of_field(WRITER):
            backbone = load(files, writer)
        generator = Generator(backbone, stop_token_ids(backbone))
        requests = [_request(text) for _, text in turns]
        similarity = load_metric("chrf")
        with eval_mode(backbone.model):
            copies = [
                rewrite(generator, requests, least, similarity, max_length, sampled=copy > 0)
                for copy in range(spec.copies)
            ]
        return [asdict(one) for one in _told_apart(turns, copies)]

    parts = ["paraphrases", PROMPT, identity, turns, spec.copies, least, max_length]
    parts += [seed] if spec.copies > 1 else []  # nothing is sampled for the first copy
    found = read_paraphrases(cached_records(parts, seed, generate))
    _refuse_none(found, writer.model)
    return found


def read_paraphrases(records: Records) -> list[Paraphrase]:
    """Restore paraphrases from their records.

    Raises:
        DataError: if a record is not one of them.
    """
    try:
        return [Paraphrase(**one) for one in records]
    except TypeError as error:
        raise DataError(
            f"{FIELD}: the run's generated_rows.json or the cache holds no paraphrases of this "
            f"version (got {str(records)!r:.60}). Fix: restore the run's file, or clear the cache"
        ) from error


def paraphrased_rows(rows: Rows, found: Sequence[Paraphrase], copy: int) -> tuple[Rows, Indices]:
    """Return the rows of which a turn was written in other words, with that turn replaced.

    Args:
        rows: training rows.
        found: paraphrases of all copies.
        copy: number of the copy.

    Returns:
        The rows, and for each its index in `rows`, (copies,) int64.

    Raises:
        DataError: if a text that was trained on is gone.
    """
    taken = {(o.origin, o.text): o.written for o in found if o.copy == copy and o.found == TAKEN}
    known = [[turn in taken for turn in _turns(row)] for row in rows]
    chosen = np.array([any(one) for one in known], bool)
    gone = set(taken) - {turn for row in rows for turn in _turns(row)}
    if gone:
        raise DataError(
            f"{FIELD}: a text that was trained on in other words is gone (got {min(gone)[0]}). "
            "Fix: restore the rows"
        )

    def in_other_words(row: Row) -> Row:
        turns = tuple(
            replace(turn, content=taken.get((row.origin, turn.content)) or turn.content)
            if turn.role == "user"
            else turn
            for turn in row.messages[:-1]
        )
        return replace(row, messages=(*turns, row.messages[-1]))

    digest = json_sha256(sorted((*turn, str(text)) for turn, text in taken.items()))
    changed = rows.select(chosen).map_rows(lambda _: True, in_other_words, digest)
    return changed, np.flatnonzero(chosen)


def _told_apart(
    turns: Sequence[Turn], copies: Sequence[Sequence[Rewritten | None]]
) -> list[Paraphrase]:
    """Return the paraphrases of all copies, each of a turn in words of its own."""
    found: list[Paraphrase] = []
    earlier: dict[Turn, list[str]] = {turn: [] for turn in turns}
    for copy, written in enumerate(copies, start=1):
        for turn, one in zip(turns, written, strict=True):
            found.append(Paraphrase.of(copy, turn, one, earlier[turn]))
            earlier[turn] += [one.text] if one and one.text else []
    return found


def _turns(row: Row) -> list[Turn]:
    return [(row.origin, one.content) for one in row.messages[:-1] if one.role == "user"]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _request(text: str) -> Request:
    return Request((Message("user", PROMPT.format(text=text)),), text)


def _refuse_none(found: Sequence[Paraphrase], writer: str) -> None:
    """Say how many texts were written in other words.

    Raises:
        DataError: if there is none.
    """
    counts = Counter(one.found for one in found)
    left_out = ", ".join(f"{counts[why]:,} {why}" for why in REASONS if counts[why])
    if not counts[TAKEN]:
        raise DataError(
            f"{FIELD}: {writer} wrote no text in other words (got {left_out}). Fix: name a larger "
            "writer that follows instructions, lower `similarity`, or remove the section"
        )
    say(
        f"{FIELD}: {counts[TAKEN]:,} of {len(found):,} texts were written in other words"
        + (f"; left out: {left_out}" if left_out else "")
    )
