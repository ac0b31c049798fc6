"""Judges: a model of this process, or one of a server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from lora_kit.backbone.files import BackboneFiles, errors_of_field, resolve
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.backbone.load import Backbone, load
from lora_kit.backbone.positions import PositionLimits
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.rows import Message
from lora_kit.data.tokenization import tokenize_prompt
from lora_kit.evaluation.engine.batching import BATCH_TOKENS, batches_by_length
from lora_kit.evaluation.engine.layout_search import find_layout
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engines.connection import Connection, RefusedError
from lora_kit.evaluation.engines.served import Endpoint
from lora_kit.evaluation.judge_spec import JudgeSpec
from lora_kit.evaluation.llm_judge.prompts import (
    FIRST,
    IN_LETTERS,
    IN_WORDS,
    SECOND,
    AnswerPair,
    judge_prompt,
    read_choice,
)
from lora_kit.evaluation.requests import Branch, ChoiceRequest
from lora_kit.modeling.held_weights import held_weights
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import EvaluationError, MissingBackboneError
from lora_kit.runtime.processes import process_state

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """Choice of a judge between two answers.

    Attributes:
        lean: above 0 if the first answer is better, below 0 if the second one is: nats of a local
            judge, else 1 and -1. `None` if the judge does not say.
        text: text of the judge, or the reason why it was not asked.
    """

    lean: float | None
    text: str = ""


class LlmJudge(AbstractContextManager[Any], Protocol):
    """Model that compares answers; it is entered before the first comparison."""

    def replies(self, pairs: Sequence[AnswerPair]) -> Iterator[list[tuple[AnswerPair, Reply]]]:
        """Yield the replies to all pairs, a few at a time, in any order.

        Raises:
            EvaluationError: if the judge does not answer.
        """
        ...


@dataclass(frozen=True)
class OpenedJudge:
    """Judge that is not loaded yet.

    Attributes:
        identity: values that its replies depend on.
        load: function that returns it.
    """

    identity: tuple[str, ...]
    load: Callable[[], LlmJudge]


def find_judge(spec: JudgeSpec, free: Callable[[], None]) -> OpenedJudge:
    """Find a judge's files, or its server's key, before anything is computed.

    Args:
        spec: the judge.
        free: function that frees the evaluated model, called before a local judge is loaded.

    Raises:
        LoraKitError: if it cannot be found.
    """
    if spec.url is not None:
        endpoint = Endpoint.of(spec.url, spec.api_key_env or "", "judge.url")
        endpoint.connect().close()
        asked = (endpoint.url, str(spec.served_model), str(spec.max_new_tokens))
        return OpenedJudge((*asked, spec.question), lambda: ServerJudge(endpoint, spec))
    backbone = _local(spec)
    files = _files(backbone, allow_network=True)

    def load_judge() -> LocalJudge:
        # The two need not fit into memory together.
        free()
        with errors_of_field("judge"):
            return LocalJudge(load(files, backbone), spec.question)

    weights = [(file.name, file.stat()) for file in weight_files(files.directory)]
    stored = [f"{name} {found.st_size} {found.st_mtime_ns}" for name, found in weights]
    return OpenedJudge((files.reference, spec.quantization, *stored, spec.question), load_judge)


def check_judge(spec: JudgeSpec) -> None:
    """Look for a judge's files, or its server's key, without a network.

    Raises:
        LoraKitError: if it cannot be found; not for a hub id, which may be downloaded later.
    """
    if spec.url is not None:
        find_judge(spec, lambda: None)
        return
    try:
        _files(_local(spec), allow_network=False)
    except MissingBackboneError:
        if not is_hub_id(str(spec.model)):
            raise


def _local(spec: JudgeSpec) -> BackboneSpec:
    assert spec.model is not None  # the suite is validated
    return BackboneSpec(model=spec.model, quantization=spec.quantization)


def _files(backbone: BackboneSpec, allow_network: bool) -> BackboneFiles:
    with errors_of_field("judge"):
        return resolve(backbone, allow_network)


class LocalJudge:
    """Model of this process; its choice is the likelier of two letters."""

    def __init__(self, backbone: Backbone, question: str):
        self._backbone = backbone
        self._question = question
        tokenizer = backbone.tokenizer
        ids = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in (FIRST, SECOND)]
        self._letters = tuple(Branch(tuple(one), len(one)) for one in ids)
        self._open = ExitStack()

    def __enter__(self) -> LocalJudge:
        """Set the model to evaluation."""
        self._open.enter_context(eval_mode(self._backbone.model))
        self._open.enter_context(held_weights(self._backbone.model))
        return self

    def __exit__(self, *raised: object) -> None:
        """Set the model back."""
        self._open.close()

    def replies(self, pairs: Sequence[AnswerPair]) -> Iterator[list[tuple[AnswerPair, Reply]]]:
        """Yield the replies to all pairs, batch by batch; none to one that is too long."""
        backbone = self._backbone
        scorer = Scorer(backbone.model, backbone.tokenizer, ())
        positions, requests = PositionLimits.of(backbone.model), {}
        for pair in pairs:
            text = judge_prompt(pair, self._question, IN_LETTERS)
            ids = tuple(tokenize_prompt([Message("user", text)], backbone.tokenizer))
            if overflow := positions.overflow(ids, 1):
                yield [(pair, Reply(None, f"[not asked: the comparison {overflow}]"))]
            else:
                requests[pair] = ChoiceRequest(ids, self._letters)
        ordered = sorted(requests, key=lambda pair: -requests[pair].length)
        lengths = [requests[pair].length for pair in ordered]
        device = process_state().device.type
        budget = BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])
        layout = find_layout(scorer, list(requests.values()), ()) if requests else BatchLayout()
        for batch in batches_by_length(range(len(ordered)), lengths.__getitem__, budget):
            asked = [ordered[n] for n in batch]
            outcomes = compute_outcomes(scorer, [requests[pair] for pair in asked], layout)
            leans = [o.log_likelihoods[0] - o.log_likelihoods[1] for o in outcomes]
            yield [
                (pair, Reply(lean if math.isfinite(lean) else None))
                for pair, lean in zip(asked, leans, strict=True)
            ]


class ServerJudge:
    """Model of a server with OpenAI's chat completions; its choice is the last word it writes."""

    def __init__(self, endpoint: Endpoint, spec: JudgeSpec):
        self._endpoint = endpoint
        self._spec = spec
        self._connection: Connection | None = None

    def __enter__(self) -> ServerJudge:
        """Connect."""
        self._connection = self._endpoint.connect()
        return self

    def __exit__(self, *raised: object) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def replies(self, pairs: Sequence[AnswerPair]) -> Iterator[list[tuple[AnswerPair, Reply]]]:
        """Yield the replies to all pairs, a few at a time.

        Raises:
            EvaluationError: if the server does not answer, or answers without a text.
        """
        assert self._connection is not None  # entered
        at_once = 4 * self._connection.slots
        for start in range(0, len(pairs), at_once):
            asked = pairs[start : start + at_once]
            replies = self._connection.each(lambda pair, _: self._reply(pair), asked)
            yield list(zip(asked, replies, strict=True))

    def _reply(self, pair: AnswerPair) -> Reply:
        assert self._connection is not None
        body = {
            "model": self._spec.served_model,
            "messages": [
                {"role": "user", "content": judge_prompt(pair, self._spec.question, IN_WORDS)}
            ],
            "temperature": 0,
            "max_tokens": self._spec.max_new_tokens,
        }
        try:
            answer = self._connection.post(CHAT, body)
        except RefusedError as error:
            return Reply(None, f"[no answer: {error}]")
        try:
            [choice, *_] = answer["choices"]
            text = choice["message"].get("content")
        except (KeyError, ValueError, TypeError, AttributeError):
            choice, text = {}, 0
        if text is None:
            return Reply(None, "[no text]")  # thoughts took all tokens
        if not isinstance(text, str):
            raise EvaluationError(
                f"{self._endpoint.url}{CHAT}: an answer without text (got {answer!r:.80}). Fix: "
                "check the address of the judge"
            )
        is_cut = choice.get("finish_reason") == "length"
        return Reply(None if is_cut else read_choice(text), text)
