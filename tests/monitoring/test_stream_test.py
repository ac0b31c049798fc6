"""Test of a stream: clusters count once, and repeated texts raise no alarm."""

import math

import numpy as np

from lora_kit.monitoring.reference import ReferenceText
from lora_kit.monitoring.scores import class_score, value_score
from lora_kit.monitoring.signals import normalized, split_reference
from lora_kit.monitoring.stream_test import Texts, check_stream
from lora_kit.monitoring.windows import Window

WINDOWS = [Window(start, start + 20) for start in range(0, 200, 20)]


def test_one_text_of_each_cluster_counts() -> None:
    texts = Texts.draw(["a", "a", "b"], ["b", "c", "c", "d"])
    units = texts.representatives(np.arange(7))
    assert len(units) == 4
    assert {texts.clusters[n] for n in units} == set(texts.clusters)
    for unit in units:
        same = np.flatnonzero(texts.clusters == texts.clusters[unit])
        assert texts.priorities[unit] == texts.priorities[same].min()


def test_equal_texts_are_equal_without_regard_to_case_and_space() -> None:
    assert normalized(" Who\n is  it?") == normalized("who is it?")


def test_halves_of_a_reference_share_no_cluster() -> None:
    texts = [ReferenceText(str(n), str(n // 7)) for n in range(100)]
    first, second = split_reference(texts)
    assert 40 <= len(first) <= 60
    assert len(first) + len(second) == 100
    assert {one.cluster for one in first}.isdisjoint(one.cluster for one in second)


def test_streams_of_repeated_values_alarm_as_often_as_they_may() -> None:
    """A few values that come again and again, as the texts of clients that try again do."""
    alarms, streams, level = 0, 60, 0.2
    for seed in range(streams):
        random = np.random.default_rng(seed)
        common = random.random(30)
        pick = random.random(260) < 0.7
        values = np.where(pick, random.choice(common, 260), random.random(260))
        names = [str(value) for value in values]
        texts = Texts.draw(names[:60], names[60:], seed)
        tested = check_stream(texts, WINDOWS, value_score(values), two_sided=True)
        alarms += any(one.evidence >= math.log(1 / level) for one in tested)
    assert alarms / streams <= level


def test_a_storm_of_one_text_is_one_text() -> None:
    values = np.random.default_rng(0).random(260)
    values[160::3] = 5.0
    names = [str(value) for value in values]
    texts = Texts.draw(names[:60], names[60:])
    tested = check_stream(texts, WINDOWS, value_score(values))
    assert all(13 <= one.units <= 14 for one in tested[6:])
    assert max(one.evidence for one in tested) < math.log(20)


def test_a_class_that_becomes_frequent_is_unusual() -> None:
    random = np.random.default_rng(1)
    usual = random.choice(3, 400, p=[0.6, 0.3, 0.1])
    changed = random.choice(3, 100, p=[0.3, 0.2, 0.5])
    classes = [*usual[200:], *changed]
    numbered = [str(n) for n in range(len(classes))]
    texts = Texts.draw(numbered[:100], numbered[100:])
    score = class_score(usual[:200].tolist(), [int(n) for n in classes], 3)
    tested = check_stream(texts, WINDOWS[:10], score)
    assert max(one.evidence for one in tested[:5]) < math.log(20) < tested[-1].evidence
