"""Open the files of a model with transformers: never their code, and never with a traceback.

No other module calls the `from_pretrained` and `from_config` of transformers' classes. Without
`trust_remote_code=False`, transformers asks on the terminal for permission to run a model's code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.blocks import BLOCK_NUMBER, block_number
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.backbone.model_folder import require_sound_folder
from lora_kit.runtime.errors import BackboneError, LoraKitError, first_line
from lora_kit.runtime.files import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LOCAL: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# Names of a configuration's numbers of modules, and of other numbers that it makes lists of.
MODULE_COUNT = re.compile(r"(^|_)(layers?|blocks|depth|stages)$|^num_.*(layer|block)")
LIST_LENGTH = re.compile(r"(^|_)(labels|experts|heads|groups)$")
# Numbers of modules and lengths of lists up to which a configuration is tried without a look at
# the weights: some of its numbers are no counts.
TRIED = 1000
RESTORE = "restore the file from the model's source"
# Longest reason in a message, in characters.
REASON = 400


def open_config(directory: Path, error: type[LoraKitError] = BackboneError) -> PretrainedConfig:
    """Read the configuration of a model.

    Args:
        directory: model directory.
        error: class of the errors.

    Raises:
        error: if a file is not the model's own, or transformers cannot read config.json.
    """
    from transformers import AutoConfig
    from transformers.quantizers import AutoHfQuantizer

    require_sound_folder(directory, error)
    path = directory / "config.json"
    require_plausible_counts(read_json(path, error), directory, error)
    with refusing(
        f"{path}: transformers cannot read it",
        f"{RESTORE}, or choose a model that transformers supports",
        error,
    ):
        config = AutoConfig.from_pretrained(directory, **LOCAL)
        text = config.get_text_config()
        layers = getattr(text, "num_hidden_layers", None)
        # transformers loads weights of an unknown quantization as if they were not quantized.
        packed = getattr(text, "quantization_config", None)
        is_known = packed is None or AutoHfQuantizer.supports_quant_method(packed)
    if layers is not None and layers < 1:
        raise error(
            f"{path}: num_hidden_layers: a model has one layer at least (got {layers}). Fix: "
            f"{RESTORE}"
        )
    if packed is not None and not is_known:
        raise error(
            f"{path}: quantization_config: unknown to this transformers (got "
            f"{packed.get('quant_method')!r:.80}). Fix: choose weights that are not quantized"
        )
    return config


def open_tokenizer(
    directory: Path, error: type[LoraKitError] = BackboneError
) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model.

    Args:
        directory: model directory.
        error: class of the errors.

    Raises:
        error: if a file is not the model's own, or transformers cannot read the tokenizer.
    """
    from transformers import AutoTokenizer

    require_sound_folder(directory, error)
    with refusing(
        f"{directory}: transformers cannot read the tokenizer (tokenizer.json, "
        "tokenizer_config.json)",
        "restore the files from the model's source",
        error,
    ):
        return AutoTokenizer.from_pretrained(directory, **LOCAL)


def open_model(
    kind: Any,
    directory: Path,
    problem: str,
    remedy: str,
    error: type[LoraKitError] = BackboneError,
    **options: Any,
) -> Any:
    """Load a model with its weights.

    Args:
        kind: class of transformers, such as `AutoModelForCausalLM`.
        directory: model directory, checked by `open_config`.
        problem: field or file with the problem, for errors of no known file.
        remedy: action for the user in such an error, in the imperative.
        error: class of the errors.
        options: further options of `from_pretrained`.

    Raises:
        error: if transformers cannot load the model.
    """
    with refusing(problem, remedy, error):
        try:
            return kind.from_pretrained(directory, use_safetensors=True, **LOCAL, **options)
        except Exception:
            _require_fitting_config(kind, directory, error)
            raise


def _require_fitting_config(kind: Any, directory: Path, error: type[LoraKitError]) -> None:
    """Refuse a configuration of no model, or of other sizes than those of the weights."""
    path = directory / "config.json"
    with (
        refusing(f"{path}: transformers cannot build the model", RESTORE, error),
        torch.device("meta"),
    ):
        config = open_config(directory, error)
        if hasattr(config, "quantization_config") or not hasattr(kind, "from_config"):
            return  # quantized weights have other shapes
        model = build_model(kind, config)
    sizes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, stored in _stored_shapes(directory, error).items():
        full = name if name in sizes else f"{model.base_model_prefix}.{name}"
        if sizes.get(full, stored) != stored:
            raise error(
                f"{path}: other sizes than those of the weights: {full} (got {sizes[full]}, the "
                f"weights have {stored}). Fix: {RESTORE}"
            )


def require_all_blocks(model: torch.nn.Module, unexpected: Iterable[str], directory: Path) -> None:
    """Refuse weights with more blocks than the configuration; transformers drops the others.

    Args:
        model: the loaded model.
        unexpected: names of weights without a place in the model.
        directory: model directory.

    Raises:
        BackboneError: naming both numbers of blocks.
    """
    names = list(model.state_dict())
    used = {BLOCK_NUMBER.sub(".N.", name, 1) for name in names}
    more = [name for name in unexpected if BLOCK_NUMBER.sub(".N.", name, 1) in used]
    if more:
        built, stored = (1 + max(block_number(n) or 0 for n in some) for some in (names, more))
        raise BackboneError(
            f"{directory / 'config.json'}: fewer layers than the weights have (got {built} layers, "
            f"the weights have {stored}, such as {min(more)}). Fix: {RESTORE}"
        )


def open_gguf(kind: Any, path: Path, **options: Any) -> Any:
    """Load a model or a tokenizer from a GGUF file; callers attribute errors with `refusing`.

    Args:
        kind: class of transformers, such as `AutoTokenizer`.
        path: GGUF file.
        options: further options of `from_pretrained`.
    """
    return kind.from_pretrained(str(path.parent), gguf_file=path.name, **LOCAL, **options)


def build_model(kind: Any, config: PretrainedConfig, **options: Any) -> Any:
    """Build a model without weights; callers attribute errors with `refusing`.

    Args:
        kind: auto class of transformers.
        config: configuration, as returned by `open_config`.
        options: further options of `from_config`.
    """
    return kind.from_config(config, trust_remote_code=False, **options)


def build_quantizer(config: Any, is_quantized: bool) -> Any:
    """Return transformers' quantizer, which replaces layers of a model; it reads no file.

    Args:
        config: configuration of the quantization.
        is_quantized: true if the replaced layers have the dtype of quantized weights at once.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    return AutoHfQuantizer.from_config(config, pre_quantized=is_quantized)


@contextmanager
def refusing(
    problem: str, remedy: str, error: type[LoraKitError] = BackboneError
) -> Iterator[None]:
    """Turn any error of a library that reads files into a refusal.

    Args:
        problem: file and problem, without the reason.
        remedy: action for the user, in the imperative.
        error: class of the refusal.

    Raises:
        error: with the library's reason; errors of lora-kit and short memory stay as they are.
    """
    from lora_kit.runtime.out_of_memory import is_out_of_memory_error

    try:
        yield
    except LoraKitError:
        raise
    # Wrong files raise errors of any class, `Exception` itself in tokenizers.
    except Exception as found:
        if is_out_of_memory_error(found):
            raise
        raise error(f"{problem} ({_reason(found)}). Fix: {remedy}") from found


def _reason(error: Exception) -> str:
    # The first line of a validation error names only the field.
    text = first_line(error, 2 if str(error).split("\n", 1)[0].endswith(":") else 1)
    kind = "" if isinstance(error, OSError | ValueError | ImportError) else type(error).__name__
    reason = f"{kind}: {text}" if kind and kind != text else text
    return reason if len(reason) <= REASON else f"{reason[:REASON]}..."


def require_plausible_counts(
    values: Mapping[str, Any], directory: Path, error: type[LoraKitError] = BackboneError
) -> None:
    """Refuse numbers of modules that the weights cannot have; building so many takes for ever.

    Args:
        values: contents of config.json.
        directory: model directory; the headers of its weights are read only for large numbers.
        error: class of the errors.

    Raises:
        error: naming the field, its number and that of the weights.
    """
    modules = {n: v for n, v in _numbers(values) if MODULE_COUNT.search(n) and v > TRIED}
    lengths = {n: v for n, v in _numbers(values) if LIST_LENGTH.search(n) and v > TRIED}
    if not modules and not lengths:
        return
    shapes = _stored_shapes(directory, error).values()
    tensors, longest = len(shapes), max((max(shape, default=1) for shape in shapes), default=0)
    for numbers, most, unit in (
        (modules, tensors, "tensors"),
        (lengths, max(tensors, longest), "tensors or rows"),
    ):
        for name, value in numbers.items():
            if value > most:
                raise error(
                    f"{directory / 'config.json'}: {name}: the weights are of a smaller model (got "
                    f"{value:,}, they have {most:,} {unit}). Fix: {RESTORE}"
                )


def _numbers(values: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a JSON value with the last key on their path."""
    left: list[tuple[str, Any]] = [("", values)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += ((name, one) for one in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _stored_shapes(directory: Path, error: type[LoraKitError]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the stored tensors by name."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        with (
            refusing(f"{path}: cannot be read as safetensors", "fetch the file again", error),
            safe_open(path, framework="np") as file,
        ):
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return shapes
