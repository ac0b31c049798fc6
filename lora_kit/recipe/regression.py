"""The recipe's `regression` section: a head that predicts one or several numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_kit.recipe.section import Distinct, Positive, Section


class RegressionSpec(Section):
    """A regression head on top of the backbone.

    Numbers are standardised by mean and standard deviation of the training rows, so that the loss
    does not depend on their unit. A saved head gives numbers in the unit of the rows.
    """

    outputs: Annotated[Distinct[str], Field(min_length=1)] | None = None
    """Names of the numbers in the order of the head's outputs. Default: those of the training rows,
    sorted; `score` for rows of a single number."""
    loss: Literal["mse", "huber"] = "mse"
    """Loss of a standardised number. `mse`: half of the squared error; `huber`: squared up to
    `huber_delta` and linear beyond, so that outliers count less (Huber 1964, Annals of Mathematical
    Statistics 35:73)."""
    huber_delta: Positive = 1.0
    """`huber`: error from which on the loss is linear, in standard deviations."""

    @model_validator(mode="after")
    def _require_a_loss_with_delta(self) -> RegressionSpec:
        default = RegressionSpec.model_fields["huber_delta"].default
        if self.loss != "huber" and self.huber_delta != default:
            raise ValueError(
                f"`huber_delta` has no effect on the loss {self.loss}. Fix: set `loss: huber`, or "
                "remove it"
            )
        return self
