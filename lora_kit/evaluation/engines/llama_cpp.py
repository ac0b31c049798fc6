"""llama.cpp's server on this machine, for a GGUF file: started, asked, and ended again."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.evaluation.engine.scoring import until_stop_text
from lora_kit.evaluation.engines.connection import Connection, RefusedError
from lora_kit.evaluation.item import (
    ChoiceRequest,
    GenerationRequest,
    LossRequest,
    Outcome,
    Request,
)
from lora_kit.runtime.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM = "llama-server"
# Ends the program when its input ends: also if this process is killed, which then cannot end it.
SUPERVISED = (
    "sh",
    "-c",
    """exec 3<&0
    "$0" "$@" </dev/null & child=$!
    (
        cat <&3 >/dev/null
        for second in 1 2 3 4 5 6 7 8 9 10; do kill $child && sleep 1 || exit; done
        kill -9 $child
    ) 2>/dev/null &
    wait $child""",
)
# Requests at a time; each has a part of the context.
SLOTS = 4
# The most likely token. Without any sampler, the server draws one.
GREEDY = {"samplers": ["top_k"], "top_k": 1}
# Logits are at most some hundreds: with this bias, a token is the most likely one.
FORCED = 1e4
# Seconds until the model is loaded.
LOADING = 600
LOG_LINES = 5


@dataclass(frozen=True)
class Scored:
    """Tokens whose likelihood is asked for, after a context."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


class LlamaCppEngine:
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
        self.path = path
        self._tokenizer = tokenizer
        self._stops = frozenset(stop_token_ids)
        self._command = [str(program), "--model", str(path), "--parallel", str(SLOTS)]
        self._command += ["--ctx-size", str(SLOTS * context), "--threads", str(threads)]
        self._command += ["--host", "127.0.0.1", "--no-webui", "--offline"]
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> LlamaCppEngine:
        """Start the server and wait until the model is loaded.

        Raises:
            EvaluationError: with the end of its log, if it ends or does not load.
        """
        port = _free_port()
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*SUPERVISED, *self._command, "--port", str(port)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
        )
        # On this machine, what does not answer for seconds is gone.
        self._connection = Connection(f"http://127.0.0.1:{port}", SLOTS, tries=4)
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
        if self._log is not None:
            self._log.close()

    @property
    def has_ended(self) -> bool:
        """True if no server runs any more, or none was started."""
        return self._process is None or self._process.poll() is not None

    def _wait(self) -> None:
        end = time.monotonic() + LOADING
        assert self._process is not None
        assert self._connection is not None
        while not self._connection.is_ready("/health"):
            if self.has_ended:
                raise EvaluationError(
                    f"{self.path}: llama.cpp does not load this file (got status "
                    f"{self._process.returncode}): {self._last_lines()}. Fix: export it again, or "
                    "use a llama.cpp that knows its architecture"
                )
            if time.monotonic() > end:
                raise EvaluationError(
                    f"{self.path}: llama.cpp has not loaded this file in {LOADING} s (got "
                    f"{self._last_lines()}). Fix: use a smaller file, or another machine"
                )
            time.sleep(0.1)

    def _last_lines(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return "; ".join([line.strip() for line in lines if line.strip()][-LOG_LINES:])

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return the outcomes of requests of one task.

        Raises:
            EvaluationError: if the server ends, or the file has other tokens than the backbone.
        """
        assert self._connection is not None
        self._require_same_tokens(requests[0])
        return self._connection.each(self._outcome, requests)

    def _outcome(self, request: Request, slot: int) -> Outcome:
        try:
            if isinstance(request, GenerationRequest):
                return self._generate(request, slot)
            if isinstance(request, ChoiceRequest):
                scores = [self._score(one, slot) for one in _scored(request)]
                likelihoods, greedy = zip(*scores, strict=True)
                return Outcome(likelihoods, greedy, "", request.length)
            if isinstance(request, LossRequest):
                runs = [self._score(one, slot) for one in _supervised(request)]
                total, is_greedy = sum(nats for nats, _ in runs), all(best for _, best in runs)
                return Outcome((total,), (is_greedy,), "", request.length)
        except RefusedError as error:
            return Outcome(error=f"llama.cpp: {error}")
        raise EvaluationError(
            f"{self.path}: llama.cpp answers no such request (got {type(request).__name__}). Fix: "
            "remove the arm, or the task"
        )

    def _score(self, asked: Scored, slot: int) -> tuple[float, bool]:
        """Return the log-likelihood of tokens in nats, and true if each was the most likely."""
        assert self._connection is not None
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
        assert self._connection is not None
        body = {
            "prompt": list(request.prompt_ids),
            "n_predict": request.max_new_tokens,
            **GREEDY,
            "stop": list(request.stop),
            "return_tokens": True,
            "id_slot": slot,
            "cache_prompt": True,
        }
        tokens = [int(token) for token in self._connection.post("/completion", body)["tokens"]]
        ends = [place for place, token in enumerate(tokens) if token in self._stops]
        tokens = tokens[: min(ends, default=len(tokens))]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Outcome(
            text=until_stop_text(text, request.stop),
            tokens=len(request.prompt_ids) + len(tokens),
        )

    def _require_same_tokens(self, request: Request) -> None:
        """Check that the server reads the tokens of a request as the backbone's tokenizer does."""
        assert self._connection is not None
        ids = _context(request)
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


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _context(request: Request) -> tuple[int, ...]:
    if isinstance(request, LossRequest):
        return tuple(request.example.input_ids)
    if isinstance(request, ChoiceRequest | GenerationRequest):
        return request.prompt_ids
    return ()


def _scored(request: ChoiceRequest) -> list[Scored]:
    """Return the tokens of each branch that are scored, after all before them."""
    rows = [((*request.prompt_ids, *one.input_ids), one.scored) for one in request.branches]
    return [Scored(ids[:-scored], ids[-scored:]) for ids, scored in rows]


def _supervised(request: LossRequest) -> list[Scored]:
    """Return the runs of an example's supervised tokens, each after all tokens before it."""
    ids, labels = request.example.input_ids, request.example.labels
    # The first token of a text is predicted from nothing.
    supervised = [n > 0 and label != IGNORE_INDEX for n, label in enumerate(labels)]
    runs = [
        [n for n, _ in group]
        for is_one, group in groupby(enumerate(supervised), itemgetter(1))
        if is_one
    ]
    return [Scored(tuple(ids[: run[0]]), tuple(ids[run[0] : run[-1] + 1])) for run in runs]
