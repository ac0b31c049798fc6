"""A release is monitored by its own files: rows that it was trained on, items, and its model."""

from pathlib import Path

from lora_kit.pipeline.monitoring import MonitorRequest, monitor
from tests.releasing.conftest import chat


def test_a_release_is_monitored_and_judged_on_answers(released: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(chat(number) for number in range(200, 220)))
    before = sorted(path for path in released.rglob("*"))
    found = monitor(MonitorRequest(released, texts, 10, model=True, output=tmp_path / "monitor"))
    # The evaluation had decided after a half of the items.
    assert found.reference == ("40 of 40 training rows", "15 items of sums")
    assert found.notes == (
        "The losses are not compared: the gain suites have too few items for it (15 of at least "
        "40).",
    )
    assert found.verdict is not None
    assert (found.verdict.items, found.verdict.decision) == (20, "PASS")
    assert sorted(path for path in released.rglob("*")) == before
