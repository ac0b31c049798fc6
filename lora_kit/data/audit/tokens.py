"""Token statistics of training rows: lengths, truncation, and characters broken into bytes."""

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

from lora_kit.data.audit.findings import EXAMPLES, BrokenTokens, LengthStatistics, TokenStatistics
from lora_kit.data.rows import Row
from lora_kit.data.supervision import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bytes of a multi-byte character in the notation of sentencepiece.
_BYTE_PIECE = re.compile(r"<0x[89A-Fa-f][0-9A-Fa-f]>")
_REPLACEMENT = "\ufffd"
_SHORTEST_BUCKET = 32


class BrokenTokenCounter:
    """Counter of supervised tokens that hold only some bytes of a character, by script.

    A token is broken if its bytes are not valid UTF-8: the tokenizer decodes it to U+FFFD, or its
    name is a byte such as `<0xE4>`. Such a character costs two to four tokens, and the model can
    generate an incomplete one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._broken: dict[int, bool] = {}
        self._scripts: Counter[str] = Counter()
        self._origins: list[str] = []
        self._supervised = 0

    def update(self, supervised: NDArray[np.int64], origin: str) -> None:
        """Add the supervised tokens of one example.

        Args:
            supervised: (tokens,) int64, token ids in order.
            origin: origin of the example.
        """
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
        """Count consecutive broken tokens for the script of their first non-ASCII character."""
        text = str(self._tokenizer.decode(run))
        characters = [c for c in text if ord(c) > 127 and c != _REPLACEMENT]
        self._scripts[script_of(characters[0]) if characters else "unknown"] += len(run)

    def result(self) -> BrokenTokens:
        """Return the counts, the most frequent scripts first."""
        return BrokenTokens(
            supervised=self._supervised,
            broken=self._scripts.total(),
            scripts=dict(self._scripts.most_common()),
            examples=tuple(self._origins),
        )


def script_of(character: str) -> str:
    """Return the first word of a letter's Unicode name, such as `CJK`; otherwise `symbols`."""
    if unicodedata.category(character)[0] not in "LMN":
        return "symbols"
    return unicodedata.name(character, "unknown").split()[0]


def token_statistics(
    rows: Sequence[Row],
    origins: Sequence[int],
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
) -> TokenStatistics:
    """Compute token statistics in one pass over the examples.

    Args:
        rows: rows of the examples; only the origins of dropped rows are read.
        origins: hash of each row's origin.
        examples: examples of the rows; those without a supervised token may be present or missing.
        tokenizer: tokenizer that made the examples.
    """
    pieces = BrokenTokenCounter(tokenizer)
    lengths, used_origins = array("q"), array("q")
    truncated = 0
    truncated_examples: list[str] = []
    for example in examples:
        labels = np.array(example.labels, np.int64)
        supervised = labels[labels != IGNORE_INDEX]
        if not len(supervised):
            continue
        lengths.append(len(example.input_ids))
        used_origins.append(hash(example.origin))
        pieces.update(supervised, example.origin)
        if example.truncated:
            truncated += 1
            if len(truncated_examples) < EXAMPLES:
                truncated_examples.append(example.origin)
    used = np.isin(np.array(origins, np.int64), np.array(used_origins, np.int64))
    missing = np.flatnonzero(~used)
    return TokenStatistics(
        rows=len(rows),
        examples=len(lengths),
        truncated=truncated,
        dropped=len(missing),
        lengths=_lengths(np.array(lengths, np.int64)),
        pieces=pieces.result(),
        truncated_examples=tuple(truncated_examples),
        dropped_examples=tuple(rows[int(n)].origin for n in missing[:EXAMPLES]),
    )


def _lengths(lengths: NDArray[np.int64]) -> LengthStatistics:
    """Compute percentiles and a histogram whose buckets double in width."""
    if not len(lengths):
        return LengthStatistics(0, 0, 0, 0, ())
    # `inverted_cdf` returns a length that occurs, without interpolation.
    p50, p90, p99 = (int(n) for n in np.percentile(lengths, (50, 90, 99), method="inverted_cdf"))
    histogram = []
    shorter, bucket = 0, _SHORTEST_BUCKET
    while shorter < len(lengths):
        within = int((lengths <= bucket).sum())
        histogram.append((bucket, within - shorter))
        shorter, bucket = within, 2 * bucket
    return LengthStatistics(p50, p90, p99, int(lengths.max()), tuple(histogram))
