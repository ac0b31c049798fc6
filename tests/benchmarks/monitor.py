"""False alarms and detections of `monitor` on streams of real texts.

    python -m tests.benchmarks.monitor [--quick] [--streams N]

Own domain: the first lines of docstrings of the standard library. Reference and stream are drawn
from them at random, without replacement: 1,000 texts of reference and 20 windows. `alarmed` is the
share of streams with an alarm in any of them, which may be 5%; `repeated` is the same for streams
in which a third of the texts repeat an earlier one of the last 20, as clients that try again do.

Other domains, mixed in at 30% from window 6 on: sentences of Python's language reference, which is
of the same language and subject, and questions of BIG-bench's social_iqa, which is not. `within 3`
is the share of streams that alarm in window 6, 7 or 8, and not before.

Evidence: mean log10 of the e-value of a window with 30% of another domain, of the classifier that
`monitor` has, and of the audit's logistic regression learned in the same way.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_kit.data.audit.shift import count_words
from lora_kit.data.builtin.docstrings import docstring_rows
from lora_kit.data.builtin.reference import reference_rows
from lora_kit.data.rows import Row
from lora_kit.monitoring.reference import ReferenceText
from lora_kit.monitoring.scores import word_score
from lora_kit.monitoring.signals import alarm_limit, text_signals
from lora_kit.monitoring.stream_test import Indices, Score, Texts, check_stream
from lora_kit.monitoring.texts import StreamText
from lora_kit.monitoring.windows import Window, windows_of_texts
from lora_kit.runtime.machine import machine, versions
from tests.bigbench import bigbench_rows

ALPHA, WINDOWS, CHANGE, SHARE, REFERENCE = 0.05, 20, 6, 0.3, 1000
NEAR, FAR = "language reference", "social_iqa"
Random = np.random.Generator


def main() -> None:
    """Draw streams, test them, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="20 streams of each kind")
    parser.add_argument("--streams", type=int, help="streams of each kind; default 200")
    arguments = parser.parse_args()
    streams = arguments.streams or (20 if arguments.quick else 200)
    sizes = (100,) if arguments.quick else (50, 100, 150)
    own = [row.messages[-1].content for row in docstring_rows()]
    others = {NEAR: _sentences(), FAR: [row["question"] for row in bigbench_rows(FAR)]}
    figures: dict[str, Any] = {"streams": streams, "alpha": ALPHA}
    print(f"{streams} streams each; share with an alarm, ± 1.96 standard errors")
    print(f"{'window':>6} {'stream':<28} {'alarmed':>14} {'words':>7} {'length':>7}  seconds each")
    for size in sizes:
        figures[f"window_{size}"] = of_size = {}
        kinds = ["unchanged", *(["repeated"] if size == 100 else []), *others]
        for kind in kinds:
            started = time.perf_counter()
            found = [_alarms(own, others.get(kind), size, kind, n) for n in range(streams)]
            seconds = (time.perf_counter() - started) / streams
            of_size[kind] = _shares(found, kind in others)
            _print(size, kind, of_size[kind], streams, seconds)
    figures["evidence"] = _evidence(own, others, 4 if arguments.quick else 20)
    print(json.dumps(figures | {"machine": machine(), "versions": versions()}))


def _sentences() -> list[str]:
    """Return the first sentence of each paragraph, of the length of a docstring's first line."""
    texts = (" ".join((row.text or "").split()).split(". ")[0] for row in reference_rows())
    return [text for text in texts if 15 <= len(text) <= 120]


def _alarms(
    own: Sequence[str], other: Sequence[str] | None, size: int, kind: str, seed: int
) -> dict[str, int | None]:
    """Return the window of each signal's alarm in one stream."""
    random = np.random.default_rng([seed, size])
    # Of a change, only the windows up to the third one behind it matter.
    windows = WINDOWS if other is None else CHANGE + 2
    texts = [own[n] for n in random.permutation(len(own))[: REFERENCE + windows * size]]
    reference, stream = texts[:REFERENCE], texts[REFERENCE:]
    if kind == "repeated":
        for place in range(20, len(stream)):
            if random.random() < 1 / 3:
                stream[place] = stream[place - int(random.integers(1, 20))]
    if other is not None:
        stream = _mixed(stream, other, (CHANGE - 1) * size, random)
    rows = [_text(n, text) for n, text in enumerate(stream)]
    known = [ReferenceText(text, str(n)) for n, text in enumerate(reference)]
    signals = text_signals(known, rows, windows_of_texts(rows, size))
    limit = alarm_limit(ALPHA, len(signals))
    return {one.name: one.alarm(limit) for one in signals}


def _mixed(stream: list[str], other: Sequence[str], start: int, random: Random) -> list[str]:
    """Return a stream with texts of another domain from a text on, each once while they last."""
    order = random.permutation(len(other))
    mixed, taken = list(stream), 0
    for place in range(start, len(stream)):
        if random.random() < SHARE:
            mixed[place] = other[order[taken % len(order)]]
            taken += 1
    return mixed


def _text(number: int, text: str) -> StreamText:
    return StreamText(f"stream:{number}", text, "", Row("", "", text=text), False)


def _shares(found: Sequence[dict[str, int | None]], changed: bool) -> dict[str, float]:
    """Return the share of streams with an alarm: of any signal, and of each."""
    first = CHANGE if changed else 1
    names = list(found[0])
    earliest = [min((n for n in one.values() if n is not None), default=None) for one in found]
    return {
        "alarmed": float(np.mean([n is not None and n >= first for n in earliest])),
        **{name: float(np.mean([one[name] is not None for one in found])) for name in names},
    }


def _print(size: int, kind: str, shares: dict[str, float], streams: int, seconds: float) -> None:
    share = shares["alarmed"]
    # Wilson's interval is not symmetric; at 0 and 1, the rule of three.
    error = 1.96 * math.sqrt(share * (1 - share) / streams) or 3 / streams
    changed = kind in (NEAR, FAR)
    name = f"30% {kind}, within 3" if changed else kind
    print(
        f"{size:>6} {name:<28} {share:>7.1%} ± {error:>4.1%} {shares['words']:>7.1%} "
        f"{shares['length']:>7.1%}  {seconds:.2f}",
        flush=True,
    )


def _evidence(
    own: Sequence[str], others: dict[str, list[str]], streams: int
) -> dict[str, dict[str, float]]:
    """Return the mean log10 e-value of the second window, of which 30% is foreign."""
    figures: dict[str, dict[str, float]] = {}
    for kind, other in others.items():
        values: dict[str, list[float]] = {"naive Bayes": [], "logistic regression": []}
        for seed in range(streams):
            random = np.random.default_rng([seed, 7])
            texts = [own[n] for n in random.permutation(len(own))[: REFERENCE + 200]]
            half = REFERENCE // 2
            training, bag = (
                texts[:half],
                _mixed(texts[half:], other, REFERENCE - half + 100, random),
            )
            numbered = [str(n) for n in range(len(bag))]
            drawn = Texts.draw(numbered[:half], numbered[half:])
            for name, score in (
                ("naive Bayes", word_score(training, bag)),
                ("logistic regression", _logistic(training, bag)),
            ):
                tested = check_stream(drawn, [Window(0, 100), Window(100, 200)], score)
                values[name].append(tested[1].log_e / math.log(10))
        figures[kind] = {name: float(np.mean(one)) for name, one in values.items()}
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures[kind].items())
        print(f"mean log10 e-value of a window of 100 with 30% {kind}: {shown}", flush=True)
    return figures


def _logistic(training: Sequence[str], texts: Sequence[str]) -> Score:
    """Return the score of the audit's classifier, learned from a bag as `word_score` is."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    features = TfidfTransformer(sublinear_tf=True).fit_transform(count_words([*training, *texts]))

    def score(units: Indices) -> Any:
        rows = np.concatenate([np.arange(len(training)), len(training) + units])
        labels = np.repeat([0, 1], [len(training), len(units)])
        classifier = LogisticRegression(class_weight="balanced", max_iter=200)
        classifier.fit(features[rows], labels)
        return classifier.decision_function(features[len(training) + units])

    return score


if __name__ == "__main__":
    main()
