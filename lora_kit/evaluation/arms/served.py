"""Arm that a server answers, which somebody else runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.evaluation.arm_names import FILE_SEPARATOR, SERVED
from lora_kit.evaluation.arms.files import require_one_process
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.scoring import Scorer
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.engines.applied import answer_probes, probe_requests
from lora_kit.evaluation.engines.served import Endpoint, ServedEngine
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.runtime.hashes import json_sha256


@dataclass(frozen=True)
class ServedArm:
    """Model of a server that is an arm.

    Attributes:
        endpoint: the server.
        model: name of the model there.
    """

    endpoint: Endpoint
    model: str

    @property
    def name(self) -> str:
        """Name of the arm, without the server's address."""
        return f"{SERVED}{FILE_SEPARATOR}{self.model}"

    @classmethod
    def parse(cls, text: str, model: str | None, key_variable: str | None) -> ServedArm:
        """Return the arm that `served=URL` names.

        Args:
            text: the arm.
            model: name of the model; `None` if the server has only one.
            key_variable: environment variable that holds the server's key.

        Raises:
            RecipeError: if it is no address, or names none of several models.
            EvaluationError: if the server does not answer.
        """
        endpoint = Endpoint.of(text.partition(FILE_SEPARATOR)[2], key_variable or "", f"arm {text}")
        if model is None:
            names = endpoint.models()
            if len(names) != 1:
                raise RecipeError(
                    f"arm {text}: the server does not have one model (got "
                    f"{', '.join(names) or 'none'}). Fix: name one with --served-model"
                )
            [model] = names
        return cls(endpoint, model)


def parse_served(
    texts: Sequence[str], model: str | None, key_variable: str | None
) -> ServedArm | None:
    """Return the served model among the arms; `None` without one.

    Raises:
        RecipeError: if there are two, or a model or a key is named without one.
    """
    if not texts:
        given = {"--served-model": model, "--api-key-env": key_variable}
        if unused := [name for name, value in given.items() if value]:
            raise RecipeError(
                f"{unused[0]}: has no effect without a served model (got {given[unused[0]]}). Fix: "
                "add --arm served=URL"
            )
        return None
    if len(texts) > 1:
        raise RecipeError(
            f"arm {texts[1]}: one served model at a time (got {len(texts)}). Fix: evaluate the "
            "second one with another command; the results of the others are reused"
        )
    return ServedArm.parse(texts[0], model, key_variable)


def loaded_served(subject: Subject, served: ServedArm, work: Sequence[Work]) -> LoadedArms:
    """Return the arm of a served model.

    Raises:
        EvaluationError: if the backbone is not a decoder that answers with text, or under several
            processes.
    """
    require_one_process(f"arm {served.name}", "server")
    if subject.backbone.head is not None or is_encoder_decoder(subject.backbone.model):
        raise EvaluationError(
            f"arm {served.name}: only decoders that answer with text are asked from servers (got "
            "a classifier, a reward model or an encoder-decoder). Fix: remove the arm"
        )
    tasks = [(one.name, one.task.items[0].request) for one in work]
    tokenizer = subject.backbone.tokenizer

    def open_engine() -> ServedEngine:
        scorer = Scorer(subject.model, tokenizer, stop_token_ids(subject.backbone))
        known = answer_probes(scorer, probe_requests(work))
        del scorer
        # A server on this machine may need the memory.
        subject.close()
        return ServedEngine(served.endpoint, served.model, tokenizer, tasks, known)

    identity = json_sha256(
        # The server does not say which weights it has.
        [served.endpoint.url, served.model, adapter_sha256(subject.adapter)]
    )
    return LoadedArms(open_engine, (Arm(served.name, identity, nullcontext),))


def served_facts(served: ServedArm | None) -> dict[str, str]:
    """Return the report's fact on the served model among the arms."""
    if served is None:
        return {}
    return {
        f"Arm {served.name}": f"answered by the server {served.endpoint.url}, base and adapter by "
        "another engine: their arithmetic differs in the last digits"
    }
