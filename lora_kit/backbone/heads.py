"""A head in the place of the output head: what it tells, and which modules begin at random."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.encoder_decoder import SEQUENCE_TO_SEQUENCE, is_divided
from lora_kit.backbone.positions import learned_positions
from lora_kit.runtime.errors import AdapterError, BackboneError
from lora_kit.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What transformers calls heads, and PEFT saves with an adapter by itself.
HEAD_NAMES = ("score", "classifier")
# The one output of a reward model; classes are two at least.
REWARD = ("reward",)
# Beside an adapter: transformers' configuration with the names of the outputs, for others; and what
# an evaluation of ours compares with.
CONFIG = "config.json"
CLASSES = "classes.json"
PAIRS = "reward.json"


@dataclass(frozen=True)
class Head:
    """What turns a text's representation into classes, or into a reward.

    Attributes:
        classes: in the order of the outputs; `REWARD` of a reward model.
        module: the head's name in the model.
        fresh: modules whose weights the checkpoint does not have; the head's is one of them, unless
            the checkpoint is a classifier of as many classes.
    """

    classes: tuple[str, ...]
    module: str
    no_cache: tuple[str, ...]

    @property
    def is_reward(self) -> bool:
        """Whether it gives one number, and chooses from nothing."""
        return self.classes == REWARD

    @property
    def beside(self) -> tuple[str, ...]:
        """Fresh modules that are not the head itself and that PEFT would not save by itself."""
        return tuple(name for name in self.no_cache if name != self.module)


@dataclass(frozen=True)
class SavedClasses:
    """What a directory says of the classes of its adapter.

    Attributes:
        rows: how many training rows each class had, in the order of the outputs.
    """

    rows: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return tuple(self.rows)

    @property
    def most_frequent(self) -> str:
        """The class of most training rows, of several the first in the order of the outputs."""
        return max(self.rows, key=self.rows.__getitem__)


@dataclass(frozen=True)
class SavedReward:
    """What a directory says of the pairs that its reward model was trained on.

    Attributes:
        pairs: how many.
        per_token: log-odds that an answer is the chosen one for each token that it is longer: all
            that length alone tells in those pairs.
    """

    pairs: int
    per_token: float

    @property
    def names(self) -> tuple[str, ...]:
        """Of its output."""
        return REWARD


def labelled(classes: Sequence[str]) -> dict[str, Any]:
    """What transformers is told of the outputs; nothing where there are none."""
    if not classes:
        return {}
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
    }


def head_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
    missing: Collection[str],
) -> Head:
    """The head of a model that was just loaded, made ready to be trained and computed in float32.

    Args:
        model: a classifier of transformers.
        tokenizer: of the model.
        classes: in the order of its outputs.
        missing: parameters that the checkpoint does not have.

    Raises:
        BackboneError: if the model's head has a name that PEFT does not know, texts cannot be
            padded, or a module without weights in the checkpoint would be quantized.
    """
    module = next((name for name in HEAD_NAMES if hasattr(model, name)), None)
    if module is None:
        raise BackboneError(
            f"backbone.model: the head of {type(model).__name__} is not called "
            f"{' or '.join(HEAD_NAMES)}, which is what PEFT saves; choose another backbone"
        )
    if tokenizer.pad_token_id is None:
        raise BackboneError("backbone.model: its tokenizer has neither a padding nor an end token")
    # Which position a decoder's head reads, it tells by the padding.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    # An encoder has no more places than it was trained with; what is longer is cut.
    written = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    places = learned_positions(model) or written
    tokenizer.model_max_length = min(tokenizer.model_max_length, places or math.inf)
    owners = {name.rpartition(".")[0] for name in missing}
    no_cache = {module if _is_inside(owner, module) else owner for owner in owners}
    for name in sorted({module, *no_cache}):
        _in_float32(model, name)
    return Head(tuple(classes), module, tuple(sorted(no_cache)))


def _is_inside(owner: str, module: str) -> bool:
    return owner == module or owner.startswith(f"{module}.")


def _in_float32(model: torch.nn.Module, name: str) -> None:
    """Let what is trained be float32 before PEFT copies it, whatever comes in."""
    part = model.get_submodule(name)
    # The quantized linear layers of bitsandbytes inherit from it.
    if any(
        isinstance(m, torch.nn.Linear) and type(m) is not torch.nn.Linear for m in part.modules()
    ):
        raise BackboneError(
            f"backbone.quantization: the checkpoint has no weights for {name}, which would be "
            "quantized at random and never trained; set quantization: none"
        )
    part.float()
    for module in part.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_cast)


def _cast(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].to(module.weight.dtype), *inputs[1:])  # type: ignore[arg-type]


def begin_anew(model: torch.nn.Module, head: Head) -> None:
    """Draw the weights of what is fresh once more, so that they are those of the seed that is set.

    Normal with the model's own deviation, biases 0, as transformers begins linear layers.
    """
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    for name in head.no_cache:
        for module in model.get_submodule(name).modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=deviation)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Texts as one batch for a classifier: an encoder's head reads the first place of a row.

    Args:
        rows: token ids, none empty.
        pad_token_id: fills shorter rows.

    Returns:
        `input_ids` and `attention_mask`, each (batch, length) int64.
    """
    length = max(map(len, rows))
    ids = [[*row, *[pad_token_id] * (length - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def task_type_of(model: torch.nn.Module) -> str:
    """What PEFT calls a model's task."""
    if is_classifier(model):
        return "SEQ_CLS"
    return SEQUENCE_TO_SEQUENCE if is_divided(model) else "CAUSAL_LM"


def is_classifier(model: torch.nn.Module) -> bool:
    """Whether a model of transformers has a head for classes, be it loaded or only its shapes."""
    return type(model).__name__.endswith("ForSequenceClassification")


def save_head(config: Any, saved: SavedClasses | SavedReward, directory: Path) -> None:
    """Write what another program needs to load the head, and what ours compares it with."""
    # Where the backbone lay, and how it was stored, is a matter of this machine.
    kept = {n: v for n, v in config.to_dict().items() if n not in ("quantization_config",)}
    kept.pop("_name_or_path", None)
    write_json(directory / CONFIG, kept)
    if isinstance(saved, SavedReward):
        write_json(directory / PAIRS, asdict(saved))
    else:
        write_json(directory / CLASSES, {"training_rows": saved.rows})


def saved_head(adapter: Path) -> SavedClasses | SavedReward | None:
    """What an adapter's head tells, and of what training rows; `None` for a language model's.

    Raises:
        AdapterError: if it has a head that does not say what its outputs are.
    """
    config = read_json(adapter / "adapter_config.json", AdapterError)
    if config.get("task_type") != "SEQ_CLS":
        return None
    if (adapter / PAIRS).is_file():
        return _saved_reward(adapter / PAIRS)
    path = adapter / CLASSES
    if not path.is_file():
        raise AdapterError(
            f"{adapter}: an adapter with a head (SEQ_CLS) without {CLASSES} or {PAIRS}, so that "
            "what its outputs mean is not known; only those that were trained here can be evaluated"
        )
    rows = read_json(path, AdapterError).get("training_rows")
    if not isinstance(rows, dict) or not rows or not all(isinstance(n, int) for n in rows.values()):
        raise AdapterError(f"{path}: training_rows has to be a number of rows for each class")
    return SavedClasses(rows)


def _saved_reward(path: Path) -> SavedReward:
    found = read_json(path, AdapterError)
    pairs, per_token = found.get("pairs"), found.get("per_token")
    if not isinstance(pairs, int) or not isinstance(per_token, float | int):
        raise AdapterError(f"{path}: pairs has to be a whole number, and per_token a number")
    return SavedReward(pairs, float(per_token))
