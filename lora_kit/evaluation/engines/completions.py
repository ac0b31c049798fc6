"""Requests to servers with the completions of OpenAI's interface, prompts as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_kit.evaluation.engine.scoring import generated, joined
from lora_kit.evaluation.engines.connection import Connection, RefusedError
from lora_kit.evaluation.engines.scored import (
    Likelihood,
    Scored,
    answered,
    read_tokens,
)
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import GenerationRequest, Request, SampledRequest
from lora_kit.runtime.errors import EvaluationError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PATH = "/v1/completions"
# Ways in which servers give the log-likelihoods of a prompt: vLLM's, and that of OpenAI's first
# models, which SGLang has as well.
Way = Literal["prompt_logprobs", "echo"]
FIELDS: Mapping[Way, Mapping[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 1},
    "echo": {"echo": True, "logprobs": 1},
}
# Reasons why an answer ended, and true if it was cut; another reason says neither.
CUT_BY_REASON = {"length": True, "stop": False}
# Tokens of the request by which it is found out which way a server has.
TRIED = 8


@dataclass(frozen=True)
class Completions:
    """A model of a server.

    Attributes:
        connection: connection to the server, whose address ends before `/v1`.
        model: name of the model.
        tokenizer: tokenizer of the backbone.
        stop_token_ids: tokens on which generation ends, for servers that take them; others end
            as they are set up to.
        way: way to log-likelihoods of a prompt; `None` if the server gives none.
    """

    connection: Connection
    model: str
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...] = ()
    way: Way | None = None

    @property
    def where(self) -> str:
        """Name of model and server, for messages."""
        return f"{self.connection.url}, model {self.model}"

    def find_way(self, request: Request) -> Way | None:
        """Return the way in which the server gives log-likelihoods of a prompt, by trying.

        Args:
            request: any request; its first tokens are asked.

        Raises:
            EvaluationError: if the server answers neither, or reads other tokens.
        """
        ids = read_tokens(request)[:TRIED]
        refusals = []
        for way in FIELDS:
            try:
                [given] = self._complete([ids], max_tokens=1, temperature=0, **FIELDS[way])
            except RefusedError as error:
                refusals.append(str(error))
                continue
            if _values(given, way) is not None:
                self._require_same_words(ids, given, way)
                return way
        if len(refusals) == len(FIELDS):
            # It may refuse the fields, or every prompt of token ids.
            try:
                self._complete([ids], max_tokens=1, temperature=0)
            except RefusedError as error:
                raise EvaluationError(
                    f"{self.where}: does not complete prompts of token ids (got {error}). Fix: use "
                    "a server that does, such as vLLM, llama.cpp or SGLang"
                ) from error
        return None

    def outcome(self, request: Request) -> Outcome:
        """Return the outcome of a request; one with `error` if the server refuses it.

        Raises:
            EvaluationError: if the server does not answer, or answers with other tokens.
        """
        return answered(request, self.model, self._generate, self._likelihoods)

    def _generate(self, request: GenerationRequest) -> Outcome:
        options: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": 0}
        if isinstance(request, SampledRequest):
            drawn = request.sampling
            options |= {"n": drawn.samples, "temperature": drawn.temperature}
            options |= {"top_p": drawn.top_p, "seed": drawn.seed}
        if request.stop:
            options["stop"] = list(request.stop)
        if self.stop_token_ids:
            options["stop_token_ids"] = list(self.stop_token_ids)
        answers = self._complete([request.prompt_ids], **options)
        return joined(request, [self._answer(request, given) for given in answers])

    def _answer(self, request: GenerationRequest, given: Mapping[str, Any]) -> Outcome:
        text = given.get("text")
        if not isinstance(text, str):
            raise EvaluationError(
                f"{self.where}: an answer without text (got {given!r:.80}). Fix: check the address"
            )
        new = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return generated(request, text, new, CUT_BY_REASON.get(str(given.get("finish_reason"))))

    def _likelihoods(self, asked: Sequence[Scored]) -> list[Likelihood]:
        assert self.way is not None  # such tasks are refused before
        rows = [(*one.context, *one.tokens) for one in asked]
        answers = self._complete(rows, max_tokens=1, temperature=0, **FIELDS[self.way])
        return [
            self._likelihood(one, row, given)
            for one, row, given in zip(asked, rows, answers, strict=True)
        ]

    def _likelihood(
        self, asked: Scored, row: tuple[int, ...], given: Mapping[str, Any]
    ) -> Likelihood:
        assert self.way is not None
        values = _values(given, self.way)
        total, greedy = 0.0, True
        for place in range(len(asked.context), len(row)):
            own, best = (None, None)
            if values is not None and place < len(values):
                own, best = values[place].of(row[place])
            if own is None:
                raise EvaluationError(
                    f"{self.where}: answers with other tokens (got none for token {row[place]}, "
                    f"{place + 1} of {len(row)}). Fix: serve a model with the backbone's tokenizer"
                )
            total += own
            greedy &= best is None or own >= best
        return total, greedy

    def _complete(
        self, prompts: Sequence[Sequence[int]], **options: Any
    ) -> list[Mapping[str, Any]]:
        """Return the server's answers to prompts, in their order."""
        body = {"model": self.model, "prompt": [list(ids) for ids in prompts], **options}
        answer = self.connection.post(PATH, body)
        try:
            choices = {int(one["index"]): one for one in answer["choices"]}
            ordered = [choices[n] for n in range(len(prompts) * options.get("n", 1))]
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{self.where}: answers to {len(prompts)} prompts are missing (got "
                f"{first_line(error)}). Fix: check the address, and the server's log"
            ) from error
        read = (answer.get("usage") or {}).get("prompt_tokens")
        sent = sum(map(len, prompts))
        if read not in (None, sent):
            raise EvaluationError(
                f"{self.where}: reads other tokens than were sent (got {read}, sent {sent}). Fix: "
                "use a server that takes token ids and adds none"
            )
        return ordered

    def _require_same_words(self, ids: Sequence[int], given: Mapping[str, Any], way: Way) -> None:
        """Check that the server reads tokens as the backbone's tokenizer does."""
        values = _values(given, way)
        assert values is not None
        for token, value in zip(ids, values, strict=False):
            here, there = str(self.tokenizer.decode([token])), value.word(token)
            # Parts of a character are shown in several ways.
            if there is None or not (here.isprintable() and there.isprintable() and here.strip()):
                continue
            if there.strip() != here.strip():
                raise EvaluationError(
                    f"{self.where}: has other tokens than the backbone (got {there!r:.40} where "
                    f"the backbone has {here!r:.40}). Fix: serve a model of this backbone"
                )


@dataclass(frozen=True)
class TokenValue:
    """Log-probability of a token of the prompt, and of the most likely token in its place.

    Attributes:
        by_id: answer of vLLM: log-probability and text by token id.
        own: otherwise the token's log-probability, in nats.
        best: log-probability of the most likely token; `None` if it is not given.
        text: text of the token; `None` if it is not given.
    """

    by_id: Mapping[str, Mapping[str, Any]] | None = None
    own: float | None = None
    best: float | None = None
    text: str | None = None

    def of(self, token: int) -> tuple[float | None, float | None]:
        """Return the log-probabilities of a token and of the most likely one."""
        if self.by_id is None:
            return self.own, self.best
        mine = self.by_id.get(str(token))
        best = max((float(one["logprob"]) for one in self.by_id.values()), default=None)
        return (None if mine is None else float(mine["logprob"])), best

    def word(self, token: int) -> str | None:
        """Return the text of a token; `None` if the server does not say it."""
        if self.by_id is None:
            return self.text
        return (self.by_id.get(str(token)) or {}).get("decoded_token")


def _values(given: Mapping[str, Any], way: Way) -> list[TokenValue] | None:
    """Return the values of a prompt's tokens; `None` if the answer has none."""
    if way == "prompt_logprobs":
        rows = given.get("prompt_logprobs")
        return [TokenValue(by_id=row or {}) for row in rows] if isinstance(rows, list) else None
    found = given.get("logprobs")
    if not isinstance(found, Mapping) or len(found.get("token_logprobs") or ()) < 2:
        return None
    own = found["token_logprobs"]
    words = found.get("tokens") or [None] * len(own)
    top = found.get("top_logprobs") or [None] * len(own)
    return [
        TokenValue(None, value, max(best.values()) if best else None, word)
        for value, best, word in zip(own, top, words, strict=True)
    ]
