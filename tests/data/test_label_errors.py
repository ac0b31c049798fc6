"""Suspected label errors: the confident joint, and which rows stay in one fold."""

import sys

import numpy as np
import pytest

from lora_kit.data.audit.duplicates import DuplicateSearch
from lora_kit.data.audit.label_errors import (
    LabelErrors,
    describe_suspects,
    require_cleanlab,
    suspected_rows,
)
from lora_kit.data.audit.words import hash_words
from lora_kit.runtime.errors import DataError


def _noisy(rows: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a good probe, labels of which a tenth is wrong, and the wrong rows."""
    random = np.random.default_rng(0)
    true = random.integers(0, 4, rows)
    logits = random.normal(size=(rows, 4)) + 3 * np.eye(4)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = random.choice(rows, rows // 10, replace=False)
    labels = true.copy()
    labels[wrong] = (true[wrong] + random.integers(1, 4, len(wrong))) % 4
    return probabilities, labels, wrong


def test_as_many_rows_are_suspected_as_the_confident_joint_says() -> None:
    """Northcutt et al. 2021, equations 1 and 2."""
    probabilities, labels, wrong = _noisy()
    thresholds = np.array([probabilities[labels == c, c].mean() for c in range(4)])
    joint = np.zeros((4, 4), int)
    for row, label in zip(probabilities, labels, strict=True):
        confident = np.flatnonzero(row >= thresholds)
        if len(confident):
            joint[label, confident[row[confident].argmax()]] += 1
    count = joint.sum() - np.trace(joint)
    own = probabilities[np.arange(400), labels]
    found = suspected_rows(probabilities, labels)
    assert found.tolist() == np.argsort(own, kind="stable")[:count].tolist()
    assert np.isin(found, wrong).mean() > 0.8
    assert np.isin(wrong, found).mean() > 0.7


def test_clean_labels_give_hardly_any_suspect() -> None:
    probabilities, _, _ = _noisy()
    assert len(suspected_rows(probabilities, probabilities.argmax(axis=1))) == 0


def test_suspects_are_described_weighed_and_dropped() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    labels, origins = np.array([0, 1, 1]), ["a:1", "a:2", "a:3"]
    suspects = describe_suspects(np.array([1]), probabilities, labels, ["x", "y"], origins)
    assert [(s.row, s.origin, s.label, s.probability, s.suggestion) for s in suspects] == [
        (1, "a:2", "y", 0.2, "x")
    ]
    drop = LabelErrors("drop", 3, 0, 0.5, suspects)
    assert drop.kept().tolist() == [True, False, True]
    assert (drop.weights, drop.dropped) == ({}, 1)
    weigh = LabelErrors("weigh_down", 3, 0, 0.5, suspects)
    assert weigh.kept().all()
    assert weigh.weights == {1: 0.2}
    assert LabelErrors.from_dict(weigh.to_dict()) == weigh


def test_duplicates_are_in_one_group() -> None:
    text = "the quick brown fox jumps over the lazy dog and then it sleeps for a whole day"
    texts = ["Red  apple", text, "pear", "red apple", f"{text} long", "plum"]
    search = DuplicateSearch()
    for block in (texts[:2], texts[2:]):
        parts = [(one,) for one in block]
        search.update(parts, [hash_words(one) for one in parts])
    groups = search.groups().tolist()
    assert groups[0] == groups[3]
    assert groups[1] == groups[4]
    assert len(set(groups)) == 4


def test_without_cleanlab_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(DataError, match=r"pip install 'lora-kit\[labels\]'"):
        require_cleanlab()
