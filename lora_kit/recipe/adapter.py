"""The recipe's `adapter` section: a PEFT method, its common fields and its own options."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, field_validator, model_validator

from lora_kit.recipe.section import Count, Fraction, Positive, Section

# PEFT's names.
PeftMethod = Literal[
    "lora",
    "adalora",
    "adamss",
    "beft",
    "boft",
    "c3a",
    "deft",
    "delora",
    "fourierft",
    "frod",
    "glora",
    "gralora",
    "hira",
    "hra",
    "ia3",
    "lily",
    "ln_tuning",
    "loha",
    "lokr",
    "miss",
    "oft",
    "osf",
    "p_tuning",
    "peanut",
    "prefix_tuning",
    "prompt_tuning",
    "psoft",
    "pvera",
    "randlora",
    "road",
    "shira",
    "supertuning",
    "tinylora",
    "trainable_tokens",
    "unilora",
    "vblora",
    "vera",
    "waveft",
]
Method = PeftMethod | Literal["full", "head"] | Annotated[str, Field(pattern=r"^last-[1-9][0-9]*$")]
METHODS = (*get_args(PeftMethod), "full", "head")
# Methods that change no layer, but prepend virtual tokens to the text.
VIRTUAL = ("prefix_tuning", "prompt_tuning", "p_tuning")
# Methods of PEFT 0.21 that a recipe cannot name, and why.
REFUSED = {
    "multitask_prompt_tuning": ("selects its tokens by a task id, which rows do not have",
                                "use prompt_tuning"),
    "cpt": ("has a loss of its own, over the examples that its tokens are initialised from",
            "use prompt_tuning with prompt_tuning_init: TEXT"),
    "cartridge": ("is distilled from a text, not trained on rows", "use prefix_tuning"),
    "adaption_prompt": ("adds an attention of its own to the layers of a few architectures",
                        "use prefix_tuning"),
    "poly": ("routes by a task id, which rows do not have", "use lora"),
    "xlora": ("mixes adapters that were trained before", "use `lora-kit combine`"),
    "shadow": ("runs a second, smaller model beside the backbone", "use lora"),
}  # fmt: skip
# Methods of PEFT 0.21 that compute with the values of the weights, or train nothing through
# quantized layers. In 8 bits some of them train without an error, on the codes instead of weights.
NOT_QUANTIZED = frozenset(
    {
        *("adamss", "deft", "delora", "frod", "glora", "hra", "loha", "lokr", "osf", "peanut"),
        *("psoft", "supertuning", "tinylora", "unilora"),
    }
)
# Methods that PEFT 0.21 cannot merge into plain weights.
NOT_MERGED = {
    "beft": "it adds biases, which most layers lack",
    "lily": "PEFT has no merge for it",
    **dict.fromkeys(VIRTUAL, "it prepends virtual tokens and changes no weight"),
}
# Methods that read weights when PEFT 0.21 attaches them, which a model on the meta device lacks.
NOT_SHAPED = frozenset(
    {"adamss", "boft", "frod", "loha", "lokr", "shira", "unilora", "vblora", "waveft"}
)
# Defaults of LoRA; the other methods have PEFT's.
RANK, ALPHA = 16, 32.0
# PEFT has no default number of virtual tokens. More than 20 hardly help (Lester et al. 2021,
# arXiv:2104.08691, section 3.2).
VIRTUAL_TOKENS = 20


class AdapterSpec(Section):
    """The PEFT method that is trained, and its options."""

    method: Method = "lora"
    """`lora` (Hu et al. 2021, arXiv:2106.09685) or another method of PEFT; `full`: the weights of
    every block; `last-K`: the weights of the last K blocks; `head`: a classifier's head alone, on
    cached features of the frozen backbone."""
    rank: Count | None = None
    """Rank r of each update. Default: 16 for LoRA, PEFT's for other methods."""
    alpha: Positive | None = None
    """LoRA scales its update by alpha / rank. Default: 32 for LoRA, PEFT's for other methods."""
    dropout: Fraction = 0.0
    """Dropout probability on the adapter's input."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the modules to adapt, or `all-linear`: every linear layer but the output head (for
    methods that adapt other modules: those)."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """The method's own options, by PEFT's names, such as `{use_dora: true}`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_lora_defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("method", "lora") != "lora":
            return value
        given = {name: one for name, one in value.items() if one is not None}
        return {"rank": RANK, "alpha": ALPHA} | given

    @field_validator("method", mode="before")
    @classmethod
    def _explain_unsupported_methods(cls, method: Any) -> Any:
        if isinstance(method, str) and method in REFUSED:
            reason, remedy = REFUSED[method]
            raise ValueError(f"{method} {reason}. Fix: {remedy}")
        if isinstance(method, str) and method not in METHODS and not method.startswith("last-"):
            near = difflib.get_close_matches(method, METHODS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(METHODS)
            raise ValueError(f"unknown method{hint}. Fix: use one of {known} or last-K")
        return method

    @field_validator("target_modules")
    @classmethod
    def _require_names(cls, names: str | list[str]) -> str | list[str]:
        if isinstance(names, list) and (not names or not all(names)):
            raise ValueError(
                "names no module. Fix: name at least one, such as q_proj, or write all-linear"
            )
        return names

    @property
    def trains_weights(self) -> bool:
        """True if the method trains weights of the backbone themselves."""
        return self.method == "full" or self.method.startswith("last-")

    def why_not_on(self, quantization: str) -> str | None:
        """Return why the method does not work on quantized weights; `None` if it works."""
        if quantization == "none":
            return None
        if self.trains_weights:
            return "trains the weights themselves, which quantization rounds"
        return "needs unquantized weights" if self.method in NOT_QUANTIZED else None

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens before the text; 0 for methods without them."""
        if self.method not in VIRTUAL:
            return 0
        count = self.options.get("num_virtual_tokens")
        return count if isinstance(count, int) else VIRTUAL_TOKENS

    def describe(self) -> str:
        """Return the method with its rank or number of virtual tokens."""
        return describe_method(self.method, self.rank, self.virtual_tokens)


def describe_method(method: str, rank: int | None, virtual_tokens: int) -> str:
    """Return a method with its rank or number of virtual tokens, if it has either."""
    if virtual_tokens:
        return f"{method}, {virtual_tokens} virtual tokens"
    return f"{method}, rank {rank}" if rank else method
