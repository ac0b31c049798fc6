"""llama.cpp's server on this machine, for a GGUF file: started, asked, and ended again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.evaluation.engine.scoring import generated, joined
from lora_kit.evaluation.engines.connection import Connection, RefusedError
from lora_kit.evaluation.engines.opened import OpenedEngine
from lora_kit.evaluation.engines.scored import (
    Likelihood,
    Scored,
    answered,
    read_tokens,
)
from lora_kit.evaluation.engines.server import LocalServer, ServerCommand, local_server
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import GenerationRequest, Request, SampledRequest
from lora_kit.runtime.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM = "llama-server"
# Requests at a time; each has a part of the context.
SLOTS = 4
# Weights are repacked for AMX where the processor says that it has it, and the program crashes in
# virtual machines that do not allow it.
SAFER = ("--no-repack",)
# The most likely token. Without any sampler, the server draws one.
GREEDY = {"samplers": ["top_k"], "top_k": 1}
# Logits are at most some hundreds: with this bias, a token is the most likely one.
FORCED = 1e4


class LlamaCppEngine(OpenedEngine):
    """A GGUF file, answered by llama.cpp's server on the loopback interface.

    Log-likelihoods are those of the model: each token is forced by a bias, and the server says its
    probability before the bias, one request a token; what was read before it stays in the slot.
    """

    def __init__(
        self,
        path: Path,
        program: Path,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        context: int,
        threads: int,
    ):
        """Prepare the engine; the server is started when it is entered.

        Args:
            path: GGUF file.
            program: llama.cpp's server.
            tokenizer: tokenizer of the backbone, whose tokens the file has to share.
            stop_token_ids: tokens on which generation ends.
            context: tokens of the longest request, its answer included.
            threads: threads of the server.
        """
        super().__init__()
        self.path = path
        self._tokenizer = tokenizer
        self._stops = frozenset(stop_token_ids)
        arguments = [str(program), "--model", str(path), "--parallel", str(SLOTS)]
        arguments += ["--ctx-size", str(SLOTS * context), "--threads", str(threads)]
        arguments += ["--host", "127.0.0.1", "--no-webui", "--offline"]
        fix = "export it again, or use a llama.cpp that knows its architecture"
        self._command = ServerCommand("llama.cpp", path, arguments, SLOTS, fix, safer=SAFER)
        self._server: LocalServer | None = None

    def __enter__(self) -> LlamaCppEngine:
        """Start the server and wait until the model is loaded.

        Raises:
            EvaluationError: with the end of its log, if it ends or does not load.
        """
        self._server = self._open.enter_context(local_server(self._command))
        return self

    @property
    def has_ended(self) -> bool:
        """True if no server runs any more, or none was started."""
        return self._server is None or self._server.has_ended

    @property
    def _connection(self) -> Connection:
        assert self._server is not None  # entered
        return self._server.connection

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return the outcomes of requests of one task.

        Raises:
            EvaluationError: if the server ends, or the file has other tokens than the backbone.
        """
        self._require_same_tokens(requests[0])
        return self._connection.each(self._outcome, requests)

    def _outcome(self, request: Request, slot: int) -> Outcome:
        return answered(
            request,
            "llama.cpp",
            lambda one: self._generate(one, slot),
            lambda asked: [self._score(one, slot) for one in asked],
        )

    def _score(self, asked: Scored, slot: int) -> Likelihood:
        """Return the log-likelihood of tokens in nats, and true if each was the most likely."""
        total, greedy = 0.0, True
        for place, token in enumerate(asked.tokens):
            body = {
                "prompt": [*asked.context, *asked.tokens[:place]],
                "n_predict": 1,
                "logit_bias": [[token, FORCED]],
                "n_probs": 1,
                **GREEDY,
                "id_slot": slot,
                "cache_prompt": True,
            }
            answer = self._connection.post("/completion", body)
            given = (answer.get("completion_probabilities") or [{}])[0]
            if given.get("id") != token:
                raise EvaluationError(
                    f"{self.path}: llama.cpp answers with another token (got {given.get('id')}, "
                    f"asked for {token}). Fix: use a llama.cpp of 2025 or later"
                )
            total += float(given["logprob"])
            greedy &= given["top_logprobs"][0]["id"] == token
        return total, greedy

    def _generate(self, request: GenerationRequest, slot: int) -> Outcome:
        if not isinstance(request, SampledRequest):
            return self._complete(request, slot, GREEDY)
        drawn = request.sampling
        options = {
            "samplers": ["top_p", "temperature"],
            "top_p": drawn.top_p,
            "temperature": drawn.temperature,
        }
        answers = [
            self._complete(request, slot, {**options, "seed": drawn.seed * drawn.samples + n})
            for n in range(drawn.samples)
        ]
        return joined(request, answers)

    def _complete(
        self, request: GenerationRequest, slot: int, options: Mapping[str, Any]
    ) -> Outcome:
        body = {
            "prompt": list(request.prompt_ids),
            "n_predict": request.max_new_tokens,
            **options,
            "stop": list(request.stop),
            "return_tokens": True,
            "id_slot": slot,
            "cache_prompt": True,
        }
        answer = self._connection.post("/completion", body)
        tokens = [int(token) for token in answer["tokens"]]
        ends = [place for place, token in enumerate(tokens) if token in self._stops]
        tokens = tokens[: min(ends, default=len(tokens))]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        reason = answer.get("stop_type")
        is_cut = None if reason is None else reason == "limit" and not ends
        return generated(request, text, len(tokens), is_cut)

    def _require_same_tokens(self, request: Request) -> None:
        """Check that the server reads the tokens of a request as the backbone's tokenizer does."""
        ids = read_tokens(request)
        here = self._tokenizer.decode(ids)
        try:
            there = self._connection.post("/detokenize", {"tokens": list(ids)}).get("content")
        except RefusedError as error:
            there = f"no text: {error}"
        if there != here:
            raise EvaluationError(
                f"{self.path}: has other tokens than the backbone (got {there!r:.80} where the "
                f"backbone has {here!r:.80}). Fix: export the file from this backbone"
            )
