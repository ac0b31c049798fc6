"""Does a release load where people will load it: in transformers, PEFT and vLLM?

The rules are read off the files; only the model's shapes are built, without weights. What breaks
the model at the root is a refusal, since that is what ships. What keeps a server from taking the
adapter beside it is a warning: the adapter is what it is, PEFT loads it, and the merged model
serves everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_kit.adapter.attach import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.data.tokenization import end_of_turn
from lora_kit.runtime.errors import DataError, ReleaseError
from lora_kit.runtime.files import read_json

INDEX = "model.safetensors.index.json"
# What can carry code, or be taken for the weights instead of them.
NOT_DATA = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py", "*.h5", "*.msgpack")
# vLLM: `max_lora_rank` is 16 unless `--max-lora-rank` says another one of these.
VLLM_RANK = 16
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ADAPTER_KEY = re.compile(
    r"base_model\.model\.(.+)\.lora_(?:A|B|embedding_A|embedding_B)(?:\.weight)?"
)


@dataclass(frozen=True)
class FormatFindings:
    """What is wrong with a directory's form.

    Attributes:
        refusals: it would not load, or not as what was measured.
        warnings: a program of those above would not take a part of it as it is.
    """

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def check_formats(directory: Path, adapter: Path) -> FormatFindings:
    """Check a merged model and its adapter.

    Args:
        directory: of the merged model.
        adapter: of the adapter.
    """
    refusals = [f"{path.name}: is no data" for kind in NOT_DATA for path in directory.glob(kind)]
    warnings: list[str] = []
    try:
        shapes = _stored(directory)
        refusals += _wrong_weights(directory, shapes)
        refusals += _wrong_generation(directory)
        if not read_json(directory / "config.json", ReleaseError).get("is_encoder_decoder"):
            warnings += _no_template(directory)
        warnings += adapter_warnings(adapter, shapes)
    except (ReleaseError, OSError, SafetensorError) as error:
        refusals.append(str(error))
    return FormatFindings(tuple(refusals), tuple(warnings))


Shapes = dict[str, tuple[int, ...]]


def _stored(directory: Path) -> Shapes:
    """The shape of each tensor at the root, as the index or the one file has them.

    Raises:
        ReleaseError: if index and files do not say the same.
    """
    files = {path.name: _shapes(path) for path in sorted(directory.glob("*.safetensors"))}
    if not files:
        raise ReleaseError(f"{directory.name}: has no weights in safetensors")
    stored = {key: name for name, shapes in files.items() for key in shapes}
    if len(stored) < sum(len(shapes) for shapes in files.values()):
        raise ReleaseError("a tensor lies in two files")
    if (directory / INDEX).is_file():
        if read_json(directory / INDEX, ReleaseError).get("weight_map") != stored:
            raise ReleaseError(f"{INDEX}: does not say which tensor lies in which file")
    elif list(files) != ["model.safetensors"]:
        raise ReleaseError(f"{', '.join(files)}: several files need {INDEX}")
    return {key: shape for shapes in files.values() for key, shape in shapes.items()}


def _shapes(path: Path) -> Shapes:
    with safe_open(path, framework="pt") as stream:
        return {key: tuple(stream.get_slice(key).get_shape()) for key in stream.keys()}  # noqa: SIM118


def _wrong_weights(directory: Path, stored: Shapes) -> Iterator[str]:
    """Yield what differs from the model that config.json describes."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    config = read_json(directory / "config.json", ReleaseError)
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        yield "config.json: names no architectures, by which vLLM finds the model's class"
        return
    if "quantization_config" in config:
        return  # its tensors are the quantization's own, which the class alone does not tell
    model = _built(directory)
    if type(model).__name__ not in named:
        built = type(model).__name__
        yield f"config.json: architectures {named}, but transformers builds {built}"
    if get_model_conversion_mapping(model, add_legacy=False):
        # The files hold other tensors than the model, such as single experts of one that is fused.
        # That they load is then what the comparison after the merge has shown.
        return
    groups, shapes = _tensors(model)
    missing = [names[0] for names in groups if not set(names) & set(stored)]
    unknown = sorted(set(stored) - set(shapes))
    other = [key for key in sorted(set(stored) & set(shapes)) if stored[key] != shapes[key]]
    for what, keys in (
        ("has no weights for", missing),
        ("has weights that the model has no place for:", unknown),
        ("has weights of another shape for", other),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            yield f"the directory {what} {keys[0]}{more}"


def _built(directory: Path) -> Any:
    """The model that transformers makes of config.json, without weights."""
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            return language_model_class(config).from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ReleaseError(f"config.json: transformers makes no model of it: {error}") from error


def _tensors(model: Any) -> tuple[list[list[str]], Shapes]:
    """The names of a model's tensors, and their shapes.

    Tied tensors are one group: the files hold one of them.
    """
    state = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return list(groups.values()), shapes


def _wrong_generation(directory: Path) -> Iterator[str]:
    """Yield what would keep generation from ending with the turn."""
    path = directory / "generation_config.json"
    if not path.is_file():
        yield "generation_config.json: is missing, so generation ends where config.json says"
        return
    value = read_json(path, ReleaseError).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(one) is int and one >= 0 for one in ids):
        yield f"generation_config.json: eos_token_id {value!r} is no token id and no list of them"
        return
    tokenizer = _tokenizer(directory)
    if tokenizer.chat_template is None:
        return
    try:
        end = end_of_turn(tokenizer)
    except DataError as error:
        yield f"the chat template cannot be used: {error}"
        return
    if end not in ids:
        name = tokenizer.convert_ids_to_tokens(end)
        yield f"generation_config.json: eos_token_id {value} lacks {end} ({name}), a turn's end"


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ReleaseError(f"{directory.name}: transformers reads no tokenizer: {error}") from error


def _no_template(directory: Path) -> Iterator[str]:
    if _tokenizer(directory).chat_template is None:
        yield (
            "there is no chat template: vLLM answers completions, and chats only with "
            "--chat-template"
        )


def adapter_warnings(adapter: Path, model: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield what vLLM would not take of an adapter, or would read otherwise.

    Its reader knows r, lora_alpha, use_rslora and the tensors, refuses modules_to_save, bias and
    DoRA, and passes over the patterns without a word (vllm/lora/peft_helper.py).

    Args:
        adapter: its directory.
        model: the tensors of the merged model, to whose modules the adapter's belong.
    """
    config = read_json(adapter / ADAPTER_CONFIG, ReleaseError)
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        yield f"vLLM loads LoRA adapters only, this one is {kind or 'of no type'}"
        return
    refused = {
        "modules_to_save": bool(config.get("modules_to_save")),
        "bias": config.get("bias", "none") != "none",
        "use_dora": bool(config.get("use_dora")),
    }
    for name in (name for name, is_set in refused.items() if is_set):
        yield f"vLLM refuses an adapter with {name}; serve the merged model"
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            yield f"vLLM passes over {name} and would scale the adapter otherwise than training did"
    rank = int(config.get("r", 0))
    if rank > VLLM_RANKS[-1]:
        yield f"vLLM loads adapters up to rank {VLLM_RANKS[-1]}, this one has {rank}"
    elif rank > VLLM_RANK:
        enough = next(step for step in VLLM_RANKS if step >= rank)
        yield f"vLLM needs --max-lora-rank {enough} for the adapter (rank {rank})"
    modules = {key.removesuffix(".weight") for key in model}
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as stream:
        found = {key: ADAPTER_KEY.fullmatch(key) for key in stream.keys()}  # noqa: SIM118
    strange = [key for key, match in found.items() if match is None or match[1] not in modules]
    if strange:
        yield f"vLLM finds no place for {len(strange)} tensors of the adapter, such as {strange[0]}"
