"""Items: the request to a model, its outcome, and the grade of the outcome.

An outcome holds everything that the model returns. Neither it nor the request depends on the
grading, so that cached outcomes can be graded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_kit.evaluation.requests import Request
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.metrics.instruction_checks import InstructionCheck
from lora_kit.recipe.embedding import Pooling


@dataclass(frozen=True)
class Outcome:
    """Result of one arm on one request.

    Attributes:
        log_likelihoods: nats, one for each branch or class; for a loss request one value, the sum
            over the supervised tokens; for a reward request the rewards of the answers; for a
            number request the numbers; for a label request a value for each label; for a tag
            request one for each tag of each word with a token, word by word; for a query the
            ranks of the right documents, from 1; for a similarity the cosine.
        greedy: for each branch, true if every scored token was the most likely one; for each
            label, true if it is predicted.
        text: generated text, of several samples the first one; for a query the first document.
        samples: texts of a sampled request; empty for the others.
        tokens: number of tokens processed.
        error: reason why an engine has no answer; then the item has no score.
        cut_off: for each generated answer, true if it was cut at `max_new_tokens`, and did not end
            by a token or a stop text; empty if the engine does not say.
    """

    log_likelihoods: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    text: str = ""
    tokens: int = 0
    error: str = ""
    samples: tuple[str, ...] = ()
    cut_off: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Item:
    """One question to a model.

    Attributes:
        id: identifier, the same in every run.
        cluster: label shared by items that are not independent.
        prompt: prompt as shown in reports.
        reference: correct answer as shown in reports.
        request: input of the model.
        slices: values by which results are broken down, such as `field`: `geography`.
        choices: texts of the branches of a choice request.
        answer: index of the correct choice.
        targets: correct number of each output of a head by its name; 1 or 0 for a label.
        tags: correct tag of each word.
        references: correct answers, any of which a metric accepts.
        checks: checks that a response has to pass.
        texts: texts that a similarity is taken of.
        scored_bytes: UTF-8 bytes of the text whose likelihood is taken.
        document: lm-evaluation-harness instances from which the item was made.
        opens_thought: true if the prompt ends inside of a thought, which the answer goes on with.
    """

    id: str
    cluster: str
    prompt: str
    reference: str
    request: Request
    slices: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    answer: int | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    checks: tuple[InstructionCheck, ...] = ()
    texts: tuple[str, ...] = ()
    scored_bytes: int = 0
    document: Any = None
    opens_thought: bool = False


@dataclass(frozen=True)
class Graded:
    """Grade of an outcome.

    Attributes:
        score: score that the verdict is based on; `None` if it cannot be computed.
        output: generated text or chosen answer; empty for a loss.
        measures: secondary metrics by name.
    """

    score: float | None
    output: str
    measures: Mapping[str, float] = field(default_factory=dict)


GradeFunction = Callable[[Item, Outcome], Graded]


@dataclass(frozen=True)
class Corpus:
    """Documents of a retrieval task.

    Attributes:
        texts: each document once.
        rows: token ids of each document.
        pooling: hidden states that become the vector of a document.
    """

    texts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    pooling: Pooling


@dataclass(frozen=True)
class Task:
    """Task with its items and the function that grades them.

    Attributes:
        corpus: documents of a retrieval task; `None` for others.
        unused: items with a column that is not used, by its name.
    """

    spec: TaskSpec
    items: Sequence[Item]
    grade: GradeFunction
    unused: Mapping[str, int] = field(default_factory=dict)
    corpus: Corpus | None = None
