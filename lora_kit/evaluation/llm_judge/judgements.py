"""Judgements on disk: what a judge replied to each comparison, so that none is asked twice."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_kit.evaluation.engine.journal import drop_broken_end
from lora_kit.evaluation.llm_judge.judges import OpenedJudge, Reply
from lora_kit.evaluation.llm_judge.prompts import AnswerPair
from lora_kit.runtime.console import meter
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.processes import process_state

PREFIX = "judgements-"


@dataclass(frozen=True)
class Judgement:
    """Both replies to two answers, one for each order in which the judge read them.

    Attributes:
        score: 1 if the second answer is better, 0 if the first one is, 0.5 for a tie.
        agrees: 1 if both orders have the same result, else 0; a preference for a place, not for an
            answer, does not.
        unread: share of the two replies that say nothing.
    """

    score: float
    agrees: float
    unread: float

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> Judgement:
        """Combine the replies to (first, second) and to (second, first).

        What a judge leans to because of the place is in both, with opposite signs.
        """
        straight, swapped = (reply.lean or 0.0 for reply in replies)
        lean = swapped - straight
        score = 0.5 if lean == 0 else float(lean > 0)
        unread = sum(reply.lean is None for reply in replies) / 2
        agrees = (straight > 0) == (swapped < 0) and (straight < 0) == (swapped > 0)
        return cls(score, float(agrees and not unread), unread)


# Equal answers, which no judge is asked about.
EQUAL = Judgement(0.5, 1.0, 0.0)


class Judgements:
    """Replies in a directory: each process appends to a file of its own, and reads all of them."""

    def __init__(self, directory: Path):
        """Prepare the replies of a directory; nothing is read yet."""
        self._directory = directory
        self._own = directory / f"{PREFIX}{process_state().process_index}.jsonl"

    def discard(self) -> None:
        """Remove all replies."""
        for path in self._directory.glob(f"{PREFIX}*.jsonl"):
            path.unlink(missing_ok=True)

    def ask(self, judge: OpenedJudge, pairs: Collection[AnswerPair], what: str) -> None:
        """Ask a judge about pairs in both orders, each process about its share of those left.

        Args:
            judge: the judge, which is loaded only if something is left to ask.
            pairs: pairs of different answers.
            what: name of the task, for the progress.

        Raises:
            LoraKitError: if the judge cannot be loaded, or does not answer.
        """
        state = process_state()
        known = self._read()
        # Every process has to see the same replies before one appends.
        state.wait_for_everyone()
        both = [one for pair in dict.fromkeys(pairs) for one in (pair, pair.swapped)]
        left = [one for one in dict.fromkeys(both) if _key(judge, one) not in known]
        left = left[state.process_index :: state.num_processes]
        if left:
            drop_broken_end(self._own)
            with judge.load() as asked, meter(f"judging {what}", len(left)) as progress:
                for replies in asked.replies(left):
                    self._append([(_key(judge, pair), reply) for pair, reply in replies])
                    progress.advance(len(replies))
        state.wait_for_everyone()

    def read(
        self, judge: OpenedJudge, pairs: Collection[AnswerPair]
    ) -> dict[AnswerPair, Judgement]:
        """Return the judgement of each pair; those of equal answers are ties."""
        known = self._read()
        found = {}
        for pair in pairs:
            if pair.first.strip() == pair.second.strip():
                found[pair] = EQUAL
            else:
                found[pair] = Judgement.of(
                    [known[_key(judge, one)] for one in (pair, pair.swapped)]
                )
        return found

    def _append(self, replies: Sequence[tuple[str, Reply]]) -> None:
        lines = [
            json.dumps({"key": key, "lean": reply.lean, "reply": reply.text}) + "\n"
            for key, reply in replies
        ]
        with self._own.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self) -> dict[str, Reply]:
        replies = {}
        for path in sorted(self._directory.glob(f"{PREFIX}*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    replies[row["key"]] = Reply(row["lean"], row["reply"])
                except (ValueError, KeyError, TypeError):
                    continue  # an incomplete last line, left by a killed process
        return replies


def _key(judge: OpenedJudge, pair: AnswerPair) -> str:
    return json_sha256([*judge.identity, pair.request, pair.first, pair.second])
