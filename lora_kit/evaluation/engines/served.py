"""A model of a server that somebody else runs, with the completions of OpenAI's interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_kit.evaluation.engines.applied import ProbeAnswers, require_adapter
from lora_kit.evaluation.engines.completions import Completions
from lora_kit.evaluation.engines.connection import Connection, RefusedError
from lora_kit.evaluation.engines.opened import OpenedEngine
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import GenerationRequest, Request
from lora_kit.runtime.errors import EvaluationError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOTS = 8
# Some minutes, in which a server may be started again.
TRIES = 8


@dataclass(frozen=True)
class Endpoint:
    """Address of a server, and how it is asked.

    Attributes:
        url: address before `/v1`.
        key_variable: environment variable that holds the key; empty for none. The key itself is
            stored nowhere.
    """

    url: str
    key_variable: str = ""

    @classmethod
    def of(cls, url: str, key_variable: str, where: str) -> Endpoint:
        """Return the endpoint of an address with or without `/v1`.

        Args:
            url: the address.
            key_variable: environment variable that holds the key; empty for none.
            where: option or field that gives the address, for messages.

        Raises:
            RecipeError: if it is no address.
        """
        if not url.startswith(("http://", "https://")):
            raise RecipeError(
                f"{where}: not the address of a server (got {url}). Fix: write it as "
                "http://127.0.0.1:8000/v1"
            )
        return cls(url.rstrip("/").removesuffix("/v1").rstrip("/"), key_variable)

    def connect(self) -> Connection:
        """Return a connection.

        Raises:
            EvaluationError: if the variable of the key is not set.
        """
        key = os.environ.get(self.key_variable, "") if self.key_variable else ""
        if self.key_variable and not key:
            raise EvaluationError(
                f"{self.url}: its key is to be in an environment variable that is not set (got "
                f"{self.key_variable}). Fix: set it to the server's key"
            )
        return Connection(self.url, SLOTS, TRIES, key)

    def models(self) -> list[str]:
        """Return the names of the server's models.

        Raises:
            EvaluationError: if the server does not list them.
        """
        connection = self.connect()
        try:
            listed = connection.get("/v1/models").get("data")
        except RefusedError as error:
            raise EvaluationError(
                f"{self.url}/v1/models: {error}. Fix: name the model with --served-model"
            ) from error
        finally:
            connection.close()
        return [str(one.get("id")) for one in listed or [] if isinstance(one, dict)]


class ServedEngine(OpenedEngine):
    """Answers of one model of a server."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[tuple[str, Request]],
        known: ProbeAnswers,
    ):
        """Prepare the engine; nothing is sent before it is entered.

        Args:
            endpoint: the server.
            model: name of the model there.
            tokenizer: tokenizer of the backbone.
            tasks: name and a request of each task.
            known: answers of base and adapter in this process.
        """
        super().__init__()
        self._endpoint = endpoint
        self._model = model
        self._tokenizer = tokenizer
        self._tasks = tasks
        self._known = known
        self._completions: Completions | None = None

    def __enter__(self) -> ServedEngine:
        """Connect, and check that the server can answer all tasks and applies the adapter.

        Raises:
            EvaluationError: if it does not answer, gives no log-likelihoods where a task needs
                them, has other tokens than the backbone, or ignores the adapter.
        """
        connection = self._endpoint.connect()
        self._open.callback(connection.close)
        asked = Completions(connection, self._model, self._tokenizer)
        try:
            asked = replace(asked, way=asked.find_way(self._tasks[0][1]))
            self._completions = asked
            self._refuse_unanswered(asked)
            require_adapter(asked.where, self._known, self.answer(self._known.requests))
        except BaseException:
            self._open.close()
            raise
        return self

    def _refuse_unanswered(self, asked: Completions) -> None:
        """Refuse tasks that need log-likelihoods of given texts, if the server gives none."""
        if asked.way is not None:
            return
        names = [
            name for name, request in self._tasks if not isinstance(request, GenerationRequest)
        ]
        if names:
            raise EvaluationError(
                f"{asked.where}: gives no log-likelihoods of given texts, which {', '.join(names)} "
                "need (got no prompt_logprobs, and no logprobs with echo). Fix: use a server that "
                "gives them (vLLM, SGLang), or name suites of generated answers with --suite"
            )

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return the outcomes of requests.

        Raises:
            EvaluationError: if the server does not answer, or answers with other tokens.
        """
        asked = self._completions
        assert asked is not None
        return asked.connection.each(lambda one, _: asked.outcome(one), requests)
