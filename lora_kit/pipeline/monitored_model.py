"""Adapter loaded to measure the texts of a stream: losses or a head's answers, and a verdict."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.ledger import Entry, Ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.row_tasks import ROW_TASKS
from lora_kit.monitoring.heads import HEADS, Answers, ClassHead, MonitoredHead, monitored_head
from lora_kit.monitoring.reference import LEAST_REFERENCE, ReferenceText
from lora_kit.monitoring.result import LabelledVerdict
from lora_kit.monitoring.signals import Signal, stream_clusters, value_signal
from lora_kit.monitoring.stream_test import Texts
from lora_kit.monitoring.target import MonitoredAdapter
from lora_kit.monitoring.texts import StreamText
from lora_kit.monitoring.windows import Window
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.recipe.objective import HEADED
from lora_kit.runs.session import Session, open_run
from lora_kit.runtime.errors import EvaluationError

SUITE, TASK = "monitored-texts", "texts"


@dataclass(frozen=True)
class MonitoredModel:
    """Backbone with the monitored adapter.

    Attributes:
        session: run with its base and adapter as the only arms.
        head: head of a text; `None` for a language model, masked or not.
    """

    session: Session
    head: MonitoredHead | None

    @classmethod
    def open(cls, target: MonitoredAdapter) -> MonitoredModel:
        """Load the backbone and the adapter.

        Raises:
            EvaluationError: for a head of pairs or vectors.
            LoraKitError: if the backbone is gone, or not the one of the training.
        """
        objective = target.recipe.training.objective
        if objective in HEADED and objective not in (*HEADS, "mlm"):
            raise EvaluationError(
                f"{target.root}: --model: such a head gives a text neither a loss, a class, labels,"
                f" tags nor numbers (got training.objective {objective}). Fix: drop --model"
            )
        session = open_run(target.root)
        spec = session.recipe.evaluation.model_copy(
            update={"arms": ["base", ADAPTER_ARM], "engine": "transformers", "thinking": 0}
        )
        recipe = session.recipe.model_copy(update={"evaluation": spec})
        head = session.backbone.head
        monitored = monitored_head(head.outputs if head else None)
        return cls(dataclasses.replace(session, recipe=recipe), monitored)

    def signals(
        self,
        stream: Sequence[StreamText],
        windows: Sequence[Window],
        judged: Mapping[str, Sequence[Entry]],
        items: Mapping[str, Sequence[ReferenceText]],
    ) -> tuple[list[Signal], list[str]]:
        """Test what the model makes of the texts against what it made of the judged items.

        The training rows are left out: the adapter has seen them.

        Args:
            stream: texts in the order of their times.
            windows: windows of the stream.
            judged: the adapter's recorded results on the items of each gain suite.
            items: texts of these items.

        Returns:
            The signals, and reasons for those that are left out.
        """
        count = sum(map(len, judged.values() if self.head else items.values()))
        if count < LEAST_REFERENCE:
            kind = self.head.answers if self.head else "losses"
            return [], [
                f"The {kind} are not compared: the gain suites have too few items for it ({count} "
                f"of at least {LEAST_REFERENCE})."
            ]
        if self.head is not None:
            recorded = [one for entries in judged.values() for one in entries if one.output]
            measured = self._measured([one.text for one in stream])
            answers = Answers(recorded, measured, stream_clusters(stream), windows)
            return self.head.signals(answers), []
        texts = [one for of_suite in items.values() for one in of_suite]
        measured = self._measured([*(one.text for one in texts), *(one.text for one in stream)])
        losses = np.array([np.inf if one.score is None else one.score for one in measured])
        clusters = [one.cluster for one in texts]
        bag = Texts.draw(clusters, stream_clusters(stream))
        named = "loss", "Loss of the texts", "median, nats per token"
        return [value_signal(named, bag, windows, losses, np.median)], []

    def _measured(self, texts: Sequence[str]) -> list[Entry]:
        """Return the adapter's results on texts, in their order."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = [
                {"id": str(n), **(self.head.item(n, text) if self.head else {"text": text})}
                for n, text in enumerate(texts)
            ]
            suite = self._suite(rows, folder, SUITE, {})
            evaluate(self.session, [str(suite)], output=folder / "results", stopping="none")
            ledger = Ledger(folder / "results" / LEDGER)
            found = ledger.arms(SUITE, TASK, ("output",))[ADAPTER_ARM]
        return [found[str(number)] for number in range(len(texts))]

    def judge(self, stream: Sequence[StreamText], output: Path) -> LabelledVerdict | None:
        """Judge the adapter against its base on the texts that have answers; `None` without any.

        A head by the score of its task, a language model by the loss of the answers; a masked one
        is not judged.

        Args:
            stream: texts.
            output: directory of ledger, verdict and report.

        Raises:
            DataError: if a target is none of the head's outputs.
        """
        labelled = [one for one in stream if one.has_answer]
        is_masked = self.head is None and self.session.backbone.head is not None
        if not labelled or is_masked:
            return None
        fields = {"cluster": "cluster"} if labelled[0].cluster else {}
        rows = [self._labelled(one) | dict.fromkeys(fields, one.cluster) for one in labelled]
        output.mkdir(parents=True, exist_ok=True)
        suite = self._suite(rows, output, "texts-with-answers", fields)
        found = evaluate(self.session, [str(suite)], output=output)
        return LabelledVerdict(found.verdict.decision, len(labelled), str(output / "report.html"))

    def _labelled(self, one: StreamText) -> dict[str, Any]:
        if self.head is not None:
            return {"id": one.origin, **ROW_TASKS[self.head.objective].item(one.text, one.row)}
        turns = [
            {"role": turn.role, "content": turn.content, **dict(turn.extra)}
            | ({"tool_calls": list(turn.tool_calls)} if turn.tool_calls else {})
            for turn in one.row.messages
        ]
        tools = {"tools": list(one.row.tools)} if one.row.tools else {}
        return {"id": one.origin, "messages": turns, **tools}

    def _suite(
        self, rows: Sequence[Mapping[str, Any]], folder: Path, name: str, fields: Mapping[str, Any]
    ) -> Path:
        """Write rows and a gain suite of one task over them; return the path of the suite."""
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        kind: dict[str, Any] = {"kind": "loss"}
        if self.head is not None:
            kind = {"kind": ROW_TASKS[self.head.objective].kind}
        if isinstance(self.head, ClassHead):
            kind |= {"labels": list(self.head.names)}
        length = self.session.recipe.data.max_length
        task = {"name": TASK, "source": str(source), "max_length": length, **kind, **fields}
        path = folder / "suite.yaml"
        # JSON is YAML.
        path.write_text(json.dumps({"name": name, "role": "gain", "tasks": [task]}))
        return path
