"""What became of the rows as tokens: lengths, cuts, and characters that are broken into bytes."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.audit.findings import EXAMPLES, Lengths, Pieces, Tokens
from lora_kit.data.rows import Row
from lora_kit.data.tokenization import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bytes of a character of several, as sentencepiece writes them.
_BYTE_PIECE = re.compile(r"<0x[89A-Fa-f][0-9A-Fa-f]>")
_REPLACEMENT = "\ufffd"
_SHORTEST_BUCKET = 32


class PieceCount:
    """Counts supervised tokens that are no text by themselves, with the script they are of.

    A token is one where its bytes are no valid UTF-8: the tokenizer decodes it to U+FFFD, or has it
    as a byte such as `<0xE4>`. Such a character costs two to four tokens, and the model can write
    the half of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._broken: dict[int, bool] = {}
        self._scripts: Counter[str] = Counter()
        self._origins: list[str] = []
        self._supervised = 0

    def look(self, supervised: NDArray[np.int64], origin: str) -> None:
        """Take in the supervised tokens of one example, in their order."""
        self._supervised += len(supervised)
        before = self._scripts.total()
        for broken, run in groupby(supervised.tolist(), self._is_broken):
            if broken:
                self._count(list(run))
        if self._scripts.total() > before and len(self._origins) < EXAMPLES:
            self._origins.append(origin)

    def _is_broken(self, token: int) -> bool:
        if token not in self._broken:
            name = str(self._tokenizer.convert_ids_to_tokens(token))
            decoded = str(self._tokenizer.decode([token]))
            self._broken[token] = bool(_BYTE_PIECE.fullmatch(name)) or _REPLACEMENT in decoded
        return self._broken[token]

    def _count(self, run: list[int]) -> None:
        """The tokens of one run go to the script of its first character that is not ASCII."""
        text = str(self._tokenizer.decode(run))
        whole = [c for c in text if ord(c) > 127 and c != _REPLACEMENT]
        self._scripts[script_of(whole[0]) if whole else "unknown"] += len(run)

    def result(self) -> Pieces:
        """The count, the most frequent scripts first."""
        return Pieces(
            supervised=self._supervised,
            broken=self._scripts.total(),
            scripts=dict(self._scripts.most_common()),
            examples=tuple(self._origins),
        )


def script_of(character: str) -> str:
    """The first word of a letter's name, such as `CJK`; of anything else, `symbols`."""
    if unicodedata.category(character)[0] not in "LMN":
        return "symbols"
    return unicodedata.name(character, "unknown").split()[0]


def tokens_of(
    rows: Sequence[Row],
    origins: Sequence[int],
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
) -> Tokens:
    """Go over the examples once.

    Args:
        rows: what the examples were made of; only asked where the dropped ones stand.
        origins: the hash of each row's origin.
        examples: of the rows; those of which nothing is learned may be among them or be missing.
        tokenizer: that made the examples.
    """
    pieces = PieceCount(tokenizer)
    lengths, kept = array("q"), array("q")
    truncated = masked = 0
    cut: list[str] = []
    for example in examples:
        labels = np.array(example.labels, np.int64)
        supervised = labels[labels != IGNORED]
        if not len(supervised):
            masked += 1
            continue
        lengths.append(len(example.input_ids))
        kept.append(hash(example.origin))
        pieces.look(supervised, example.origin)
        if example.truncated:
            truncated += 1
            cut += [example.origin] * (len(cut) < EXAMPLES)
    missing = np.flatnonzero(~np.isin(np.array(origins, np.int64), np.array(kept, np.int64)))
    return Tokens(
        rows=len(rows),
        examples=len(lengths),
        truncated=truncated,
        dropped=max(len(rows) - len(lengths), masked),
        lengths=_lengths(np.array(lengths, np.int64)),
        pieces=pieces.result(),
        truncated_examples=tuple(cut),
        dropped_examples=tuple(rows[int(n)].origin for n in missing[:EXAMPLES]),
    )


def _lengths(lengths: NDArray[np.int64]) -> Lengths:
    """Percentiles, and a histogram in buckets of which each is twice as wide as the one before."""
    if not len(lengths):
        return Lengths(0, 0, 0, 0, ())
    # A length that occurs, not one between two.
    p50, p90, p99 = (int(n) for n in np.percentile(lengths, (50, 90, 99), method="inverted_cdf"))
    histogram = []
    shorter, bucket = 0, _SHORTEST_BUCKET
    while shorter < len(lengths):
        within = int((lengths <= bucket).sum())
        histogram.append((bucket, within - shorter))
        shorter, bucket = within, 2 * bucket
    return Lengths(p50, p90, p99, int(lengths.max()), tuple(histogram))
