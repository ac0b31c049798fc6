"""Section `judge` of a task: which model compares the answers of two arms, and how it is asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from lora_kit.recipe.backbone import Quantization
from lora_kit.recipe.section import Count, Section
from lora_kit.statistics.judged_preference import JudgeAccuracy

Text = Annotated[str, Field(min_length=1)]


class JudgeSpec(Section):
    """Judge: a local model, or a model of a server with OpenAI's chat completions."""

    model: Text | None = None
    """Local judge: a bundled alias, a hub id, a directory or a `.gguf` file. It says by the
    likelihood of two letters which answer is better."""
    quantization: Quantization = "none"
    """Local judge: storage of its weights."""
    url: Text | None = None
    """Judge of a server: address, such as `http://127.0.0.1:8000/v1`. It says in words which
    answer is better, or that neither is."""
    served_model: Text | None = None
    """Judge of a server: name of the model there."""
    api_key_env: Text | None = None
    """Judge of a server: environment variable that holds the key."""
    max_new_tokens: Count = 1024
    """Judge of a server: largest number of tokens of its reply, thoughts included."""
    question: Text = "Which answer is more correct and more helpful?"
    """Question to the judge, beside the request and the two answers."""
    calibration: Text | None = None
    """File of labelled pairs by which the judge's sensitivity and specificity are measured, with
    the fields `prompt`, `chosen` and `rejected`, or `prompt`, `first`, `second` and `preferred`
    (`first`, `second` or `tie`). An evaluation writes `pairs_to_label-SUITE-TASK.jsonl` for it."""
    accuracy: SkipJsonSchema[JudgeAccuracy | None] = None
    """Agreement with the labelled pairs, which an evaluation writes."""

    @model_validator(mode="after")
    def _model_or_server(self) -> JudgeSpec:
        if (self.model is None) == (self.url is None):
            raise ValueError(
                "a judge is one model. Fix: name a `model`, or a server's `url` and `served_model`"
            )
        own: tuple[str, ...]
        if self.url is None:
            own = ("served_model", "api_key_env", "max_new_tokens")
        else:
            own = ("quantization",)
            if self.served_model is None:
                raise ValueError("a server's judge has a name. Fix: add `served_model`")
        for name in own:
            if getattr(self, name) != JudgeSpec.model_fields[name].default:
                other = "url" if self.url is None else "model"
                raise ValueError(f"`{name}` has no effect without `{other}`. Fix: remove it")
        return self

    @property
    def name(self) -> str:
        """Name of the judge in reports."""
        return str(self.served_model or self.model)

    @property
    def measured(self) -> JudgeSpec:
        """The judge without what evaluations write."""
        return self.model_copy(update={"accuracy": None})
