"""Choice of texts to label: uncertain, far from each other, and from what is known."""

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import entropy

from lora_kit.selection.next_labels import (
    CANDIDATES,
    choose_texts,
    entropies,
    k_centre,
    margins,
)


def _random(rows: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(4), size=rows)
    features = random.normal(size=(rows, 8)).astype(np.float32)
    return probabilities, features, random.normal(size=(5, 8)).astype(np.float32)


def test_uncertainty_is_that_of_scipy_and_of_the_two_best_classes() -> None:
    probabilities, _, _ = _random()
    assert np.allclose(entropies(probabilities), entropy(probabilities, axis=1))
    two_best = margins(np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]))
    assert np.allclose(two_best, [0.2, 0.7])
    assert entropies(np.array([[1.0, 0.0]])).tolist() == [0.0]


def test_the_most_uncertain_texts_come_first() -> None:
    probabilities, features, known = _random()
    by_margin = choose_texts(probabilities, features, known, 10, "margin")
    assert [one.index for one in by_margin] == np.argsort(margins(probabilities))[:10].tolist()
    by_entropy = choose_texts(probabilities, features, known, 10, "entropy")
    assert [one.index for one in by_entropy] == np.argsort(-entropies(probabilities))[:10].tolist()


def test_each_text_is_the_farthest_from_known_and_chosen_ones() -> None:
    _, features, known = _random()
    centres = known
    for place, distance in k_centre(features, known, 12):
        nearest = cdist(features, centres, "cosine").min(axis=1)
        assert place == int(nearest.argmax())
        assert np.isclose(distance, nearest.max(), atol=1e-5)
        centres = np.concatenate([centres, features[place : place + 1]])


def test_copies_are_chosen_last_and_only_once() -> None:
    _, features, known = _random(3)
    copies = np.concatenate([features, features])
    places = [place for place, _ in k_centre(copies, known, 6)]
    assert sorted(places) == list(range(6))
    assert {place % 3 for place in places[:3]} == {0, 1, 2}


def test_both_chooses_far_texts_among_uncertain_ones() -> None:
    probabilities, features, known = _random()
    chosen = choose_texts(probabilities, features, known, 4, "both")
    uncertain = set(np.argsort(margins(probabilities))[: CANDIDATES * 4].tolist())
    assert len({one.index for one in chosen} & uncertain) == 4
    places = sorted(uncertain)
    expected = [places[place] for place, _ in k_centre(features[places], known, 4)]
    assert [one.index for one in chosen] == expected
    everywhere = choose_texts(probabilities, features, known, 60, "both")
    assert sorted(one.index for one in everywhere) == list(range(60))
