"""The recipe's `adapter` section: a PEFT method by name, what all have in common, its options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lora_kit.schema import Count, Fraction, Positive, Section

# PEFT's, by its names.
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
# Those that change no layer, but put tokens of their own before the text.
VIRTUAL = ("prefix_tuning", "prompt_tuning", "p_tuning")
# Of PEFT 0.21, what a recipe cannot name yet, and why.
REFUSED = {
    "multitask_prompt_tuning": "makes its tokens by the number of a task, which rows do not have "
    "here; use prompt_tuning",
    "cpt": "learns with a loss of its own, over the examples that its tokens begin as; use "
    "prompt_tuning with prompt_tuning_init: TEXT",
    "cartridge": "is distilled from a text that its keys and values stand for, not learned from "
    "rows; use prefix_tuning",
    "adaption_prompt": "puts an attention of its own into the layers of some architectures; use "
    "prefix_tuning",
    "poly": "routes by the number of a task, which rows do not have here",
    "xlora": "mixes adapters that were trained before; `lora-kit combine` makes one of several",
    "shadow": "runs a second, smaller model beside the backbone",
}  # fmt: skip
# Of PEFT 0.21, what reads the weights that it adapts as numbers, or trains nothing through layers
# that are quantized. In 8 bits some go on without an error, with the codes for weights.
NOT_QUANTIZED = frozenset(
    {
        *("adamss", "deft", "delora", "frod", "glora", "hra", "loha", "lokr", "osf", "peanut"),
        *("psoft", "supertuning", "tinylora", "unilora"),
    }
)
# What PEFT 0.21 cannot put into plain weights.
NOT_MERGED = {
    "beft": "it adds biases, which most layers have not",
    "lily": "PEFT has no merge for it",
    **dict.fromkeys(VIRTUAL, "it puts tokens before the text and changes no weight"),
}
# What PEFT 0.21 looks at data for when it attaches them, which a model of shapes has not.
NOT_SHAPED = frozenset(
    {"adamss", "boft", "frod", "loha", "lokr", "shira", "unilora", "vblora", "waveft"}
)
# LoRA's own defaults here; of the other methods PEFT's hold.
RANK, ALPHA = 16, 32.0
# Of virtual tokens PEFT has no default. Up to 20 a longer prompt helps, beyond it hardly (Lester et
# al. 2021, arXiv:2104.08691, section 3.2).
VIRTUAL_TOKENS = 20


class AdapterSpec(Section):
    """What is trained."""

    method: Method = "lora"
    """LoRA (Hu et al. 2021, arXiv:2106.09685) or another method of PEFT; `full`: every block's own
    weights; `last-K`: those of the last K blocks; `head`: a classifier's head alone, on what the
    frozen backbone makes of each text once."""
    rank: Count | None = None
    """Rank r of each update; by default 16 for LoRA, else PEFT's."""
    alpha: Positive | None = None
    """LoRA scales its update by alpha / rank; by default 32, else PEFT's."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """`all-linear` (each linear layer but the output head; what the method is made for, where that
    is something else), or a list of module names."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The method's own options, by PEFT's names: `{use_dora: true}`."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_lora(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        method = value.get("method", "lora")
        if isinstance(method, str) and method in REFUSED:
            raise ValueError(f"method: {method} {REFUSED[method]}")
        if method != "lora":
            return value
        given = {name: one for name, one in value.items() if one is not None}
        return {"rank": RANK, "alpha": ALPHA} | given

    @model_validator(mode="after")
    def _no_targets_of_tokens(self) -> AdapterSpec:
        if self.method in VIRTUAL and self.targets != "all-linear":
            raise ValueError(
                f"targets: {self.method} puts tokens before the text and changes no module; leave "
                "it out"
            )
        return self

    @field_validator("targets")
    @classmethod
    def _targets_named(cls, targets: str | list[str]) -> str | list[str]:
        if isinstance(targets, list) and (not targets or not all(targets)):
            raise ValueError("name at least one module, such as q_proj, or write all-linear")
        return targets

    @property
    def trains_weights(self) -> bool:
        """Whether weights of the backbone are trained themselves."""
        return self.method == "full" or self.method.startswith("last-")

    def why_not_on(self, quantization: str) -> str | None:
        """Why the method does not work on weights that are stored so; `None` if it does."""
        if quantization == "none":
            return None
        if self.trains_weights:
            return (
                "trains the weights themselves, which steps as small as an optimizer's do not move"
            )
        if self.method in NOT_QUANTIZED:
            return "computes with the numbers of the weights, which are stored packed"
        return None

    @property
    def virtual_tokens(self) -> int:
        """How many tokens of its own it puts before the text."""
        if self.method not in VIRTUAL:
            return 0
        return int(self.options.get("num_virtual_tokens", VIRTUAL_TOKENS))

    def described(self) -> str:
        """In words."""
        if self.virtual_tokens:
            return f"{self.method}, {self.virtual_tokens} virtual tokens"
        return f"{self.method}, rank {self.rank}" if self.rank else self.method
