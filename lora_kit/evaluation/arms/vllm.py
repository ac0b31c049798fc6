"""Arms that vLLM answers: base and adapter by one server, a merged model by another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_sha256
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.evaluation.arms.files import require_one_process
from lora_kit.evaluation.arms.models import base_identity, merged_files
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.engines.applied import probe_requests
from lora_kit.evaluation.engines.vllm import (
    ADAPTER,
    BASE,
    ServedAdapter,
    VllmEngine,
    VllmModel,
    answered_by,
)
from lora_kit.merging.in_memory import merge_adapter
from lora_kit.merging.plan import MergePlan
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.recipe.sections import FEWSHOT, MERGED_ARMS, RETRIEVAL
from lora_kit.runs.session import Subject
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.vllm import vllm_version

# Arms that need no other model than those that vLLM serves.
ANSWERED = ("base", "adapter", FEWSHOT, RETRIEVAL, *MERGED_ARMS)


@dataclass(frozen=True)
class Vllm:
    """vLLM on this machine.

    Attributes:
        python: interpreter of its environment.
        version: name and version of vLLM, on which results depend.
    """

    python: Path
    version: str

    @classmethod
    def of(cls, python: Path) -> Vllm:
        """Return the vLLM of an environment.

        Raises:
            EvaluationError: if there is none.
        """
        return cls(python, vllm_version(python, EvaluationError))


def answered_by_vllm(names: Sequence[str]) -> list[str]:
    """Return the arms of a recipe that vLLM can answer, and say which are left out."""
    if left := [name for name in names if name not in ANSWERED]:
        say(f"vLLM answers no {' or '.join(left)}: left out of this evaluation")
    return [name for name in names if name in ANSWERED]


def loaded_vllm_arms(
    subject: Subject, names: Sequence[str], work: Sequence[Work], vllm: Vllm
) -> list[LoadedArms]:
    """Return the arms that vLLM answers, grouped by server.

    Args:
        subject: adapter and backbone.
        names: names of the arms.
        work: tasks that are asked.
        vllm: vLLM on this machine.

    Raises:
        EvaluationError: if vLLM cannot apply the adapter, or an arm is no model that it serves.
    """
    require_one_process("--engine vllm", "server")
    backbone = subject.backbone
    if other := [name for name in names if name not in ANSWERED]:
        raise EvaluationError(
            f"arm {other[0]}: vLLM answers no such arm (got --engine vllm). Fix: evaluate it "
            f"without --engine, or use {', '.join(ANSWERED)}"
        )
    if backbone.head is not None or is_encoder_decoder(backbone.model):
        raise EvaluationError(
            "--engine: vLLM answers for decoders that answer with text (got a classifier, a reward "
            "model or an encoder-decoder). Fix: evaluate without --engine"
        )
    adapter = served_adapter(subject.adapter)
    requests = [item.request for one in work for item in one.task_for(FEWSHOT).items]
    requests += [item.request for one in work for item in one.task.items]
    shared = VllmModel(
        python=vllm.python,
        weights=partial(base_weights, subject),
        dtype=str(backbone.spec.dtype),
        # One token more: the servers' shortest answer.
        context=max(request.length for request in requests) + 1,
        tokenizer=backbone.tokenizer,
        stop_token_ids=stop_token_ids(backbone),
        adapter=adapter,
        probes=probe_requests(work),
    )
    identity = json_sha256([base_identity(backbone), vllm.version])
    adapted = json_sha256([identity, adapter_sha256(subject.adapter)])
    arms = (
        Arm("base", identity, answered_by(BASE)),
        Arm("adapter", adapted, answered_by(ADAPTER)),
        Arm(FEWSHOT, identity, answered_by(BASE), roles=("gain",)),
    )
    models = [LoadedArms(lambda: VllmEngine(shared), tuple(a for a in arms if a.name in names))]
    session = subject.session
    for name in MERGED_ARMS:
        if session is None or name not in names:
            continue
        merged = merged_files(session, name)
        served = replace(shared, weights=merged.opened, adapter=None, probes=())
        arm = Arm(
            name,
            json_sha256([merged.identity, vllm.version]),
            answered_by(BASE),
            files=merged.identity,
        )
        models.append(LoadedArms(partial(VllmEngine, served), (arm,)))
    return models


@contextmanager
def base_weights(subject: Subject) -> Iterator[Path]:
    """Yield a directory with the weights of the base as it was trained on.

    Those of a quantized backbone are dequantized into a temporary directory. The backbone's own
    memory is freed: the two need not fit together.
    """
    backbone = subject.backbone
    directory, quantization = backbone.files.directory, backbone.spec.quantization
    plan = MergePlan(
        base=directory,
        adapter=None,
        quantization=quantization,
        dtype=str(backbone.spec.dtype),
        quantized_modules=backbone.quantized_modules,
        into="dequantized",
        stored_dtype=str(backbone.spec.dtype),
        shard_bytes=2_000_000_000,
        stop_token_ids=stop_token_ids(backbone),
    )
    del backbone
    subject.close()
    if quantization == "none":
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="lora_kit-") as temporary:
        output = Path(temporary) / "base"
        merge_adapter(plan, output)
        yield output


def served_adapter(directory: Path) -> ServedAdapter:
    """Return an adapter as vLLM is told of it.

    Raises:
        EvaluationError: if vLLM cannot apply it, or its log-likelihoods would be wrong.
    """
    config: dict[str, Any] = read_json(directory / ADAPTER_CONFIG, EvaluationError)
    with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
        keys = sorted(file.keys())
        ranks = [file.get_slice(key).get_shape()[0] for key in keys if ".lora_A." in key]
    modules = {key.split(".lora_")[0].rpartition(".")[2] for key in keys if ".lora_" in key}
    other = [key for key in keys if ".lora_A." not in key and ".lora_B." not in key]
    refused = {
        f"peft_type {config.get('peft_type')}": config.get("peft_type") != "LORA",
        "use_dora": bool(config.get("use_dora")),
        f"a tensor {other[0]}" if other else "": bool(other),
        "target_parameters": bool(config.get("target_parameters")),
        # vLLM leaves them out of the log-likelihoods of prompts: issues 16668 and 51594.
        "changes of the head or the embedding": bool(modules & {"lm_head", "embed_tokens"}),
    }
    if found := [reason for reason, is_given in refused.items() if is_given]:
        raise EvaluationError(
            f"{directory}: vLLM applies LoRA to linear layers alone (got {found[0]}). Fix: merge "
            "the adapter and evaluate the merged model, or evaluate without --engine"
        )
    return ServedAdapter(directory.resolve(), max(ranks), tuple(sorted(modules)))
