"""A model and its adapter, answered by vLLM's server on the loopback interface.

vLLM may have an environment of its own, with other versions of torch and transformers: it is
started as a program. Base and adapter are answered by one server, which applies the adapter to the
requests that name it (vLLM's `LoRARequest`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.evaluation.engines.applied import ProbeAnswers, require_difference
from lora_kit.evaluation.engines.completions import Completions
from lora_kit.evaluation.engines.opened import OpenedEngine
from lora_kit.evaluation.engines.server import ServerCommand, local_server
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import Request
from lora_kit.runtime.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE, ADAPTER = "base", "adapter"
SLOTS = 16
# Largest ranks that vLLM offers.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
SERVER = "vllm.entrypoints.openai.api_server"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# On a CPU, vLLM takes nearly all memory for keys and values, in GiB, unless it is told how much.
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
CPU_CACHE_SPACE = "2"


@dataclass(frozen=True)
class ServedAdapter:
    """Adapter as vLLM is told of it.

    Attributes:
        path: adapter directory.
        rank: largest rank of its layers.
        modules: last parts of the names of the modules that it changes. vLLM wraps no others; its
            head with an adapter gives wrong log-likelihoods of prompts, or fails (vLLM issues
            16668 and 51594).
    """

    path: Path
    rank: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class VllmModel:
    """Model that vLLM serves.

    Attributes:
        python: interpreter of an environment with vLLM.
        weights: function to a context that gives the directory of the weights, entered while the
            server runs.
        dtype: dtype of the computation.
        context: tokens of the longest request, its answer included.
        tokenizer: tokenizer of the backbone.
        stop_token_ids: tokens on which generation ends.
        adapter: adapter that is served beside the model; `None` for none.
        probes: requests by which the answers of base and adapter are compared.
    """

    python: Path
    weights: Callable[[], AbstractContextManager[Path]]
    dtype: str
    context: int
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    adapter: ServedAdapter | None = None
    probes: tuple[Request, ...] = ()

    def command(self, path: Path) -> ServerCommand:
        """Return the command that serves the weights in a directory."""
        arguments = [str(self.python), "-m", SERVER, "--model", str(path)]
        arguments += ["--served-model-name", BASE, "--dtype", self.dtype, "--host", "127.0.0.1"]
        arguments += ["--max-model-len", str(self.context), "--max-num-seqs", str(SLOTS)]
        # Compiling takes longer than the evaluation of a small model.
        arguments += ["--enforce-eager"]
        if self.adapter is not None:
            arguments += ["--enable-lora", "--max-lora-rank", str(_offered(self.adapter.rank))]
            arguments += ["--lora-modules", f"{ADAPTER}={self.adapter.path}"]
            arguments += ["--lora-target-modules", *self.adapter.modules]
        fix = "look at what vLLM supports, or evaluate without --engine"
        variables = ENVIRONMENT | {CPU_CACHE: os.environ.get(CPU_CACHE, CPU_CACHE_SPACE)}
        return ServerCommand("vLLM", path, arguments, SLOTS, fix, variables)


class VllmEngine(OpenedEngine):
    """Answers of a model, and of its adapter, by vLLM.

    Attributes:
        model: name of the model that is asked; `answered_by` sets it.
    """

    def __init__(self, served: VllmModel):
        """Prepare the engine; the server is started when it is entered."""
        super().__init__()
        self._served = served
        self.model = BASE
        self._completions: Completions | None = None

    def __enter__(self) -> VllmEngine:
        """Start the server, and check that the adapter changes its answers.

        Raises:
            EvaluationError: if the server does not load the model, or ignores the adapter.
        """
        served = self._served
        try:
            path = self._open.enter_context(served.weights())
            server = self._open.enter_context(local_server(served.command(path)))
            self._completions = Completions(
                server.connection, BASE, served.tokenizer, served.stop_token_ids, "prompt_logprobs"
            )
            if served.probes:
                self._completions.find_way(served.probes[0])
            if served.adapter is not None:
                base = self.answer(served.probes)
                with answered_by(ADAPTER)(self):
                    adapted = self.answer(served.probes)
                answers = ProbeAnswers(served.probes, tuple(base), tuple(adapted))
                require_difference(f"vLLM, {served.adapter.path}", answers)
        except BaseException:
            self._open.close()
            raise
        return self

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return the outcomes of requests, by the model that `answered_by` names.

        Raises:
            EvaluationError: if the server ends, or answers with other tokens.
        """
        assert self._completions is not None
        asked = replace(self._completions, model=self.model)
        return asked.connection.each(lambda one, _: asked.outcome(one), requests)


def answered_by(model: str) -> Callable[[VllmEngine], AbstractContextManager[None]]:
    """Return a function to a context in which an engine asks one of its models.

    Args:
        model: `BASE` or `ADAPTER`.
    """

    @contextmanager
    def active(engine: VllmEngine) -> Iterator[None]:
        before = engine.model
        engine.model = model
        try:
            yield
        finally:
            engine.model = before

    return active


def _offered(rank: int) -> int:
    """Return the smallest of the largest ranks that vLLM offers.

    Raises:
        EvaluationError: if the adapter's rank is above all of them.
    """
    found = [offered for offered in RANKS if offered >= rank]
    if not found:
        raise EvaluationError(
            f"--engine: vLLM applies adapters of a rank up to {RANKS[-1]} (got {rank}). Fix: merge "
            "the adapter, and evaluate the merged model"
        )
    return found[0]
