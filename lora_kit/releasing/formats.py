"""Format checks: a release must load in transformers, PEFT and vLLM.

The checks read the files and build only the model's shapes, without weights. A defect of the merged
model at the root is a refusal, since the merged model is released. A feature that keeps a server
from loading the adapter next to it is a warning: PEFT loads the adapter, and the merged model can
be served instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.backbone.open_files import build_model, open_config, open_tokenizer, refusing
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.merging.tensors import stored_by_key
from lora_kit.runtime.errors import DataError, MergeError, ReleaseError
from lora_kit.runtime.files import read_json

# Files that can contain code, or could be loaded in place of the safetensors weights.
UNSAFE_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py", "*.h5", "*.msgpack")
# vLLM loads adapters up to rank 16 unless `--max-lora-rank` is set to a higher value of the list.
VLLM_DEFAULT_RANK = 16
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ADAPTER_KEY = re.compile(
    r"base_model\.model\.(.+)\.lora_(?:A|B|embedding_A|embedding_B)(?:\.weight)?"
)


@dataclass(frozen=True)
class FormatFindings:
    """Problems with the files of a merged model and its adapter.

    Attributes:
        refusals: reasons why the model would not load, or would load as another model.
        warnings: reasons why transformers, PEFT or vLLM would not load a part unchanged.
    """

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def check_formats(directory: Path, adapter: Path) -> FormatFindings:
    """Check the files of a merged model and its adapter.

    Args:
        directory: directory of the merged model.
        adapter: directory of the adapter.
    """
    refusals = [
        f"{path.name}: may contain code. Fix: remove the file"
        for pattern in UNSAFE_FILES
        for path in directory.glob(pattern)
    ]
    warnings: list[str] = []
    try:
        shapes = _stored_shapes(directory)
        refusals += _weight_problems(directory, shapes)
        refusals += _generation_problems(directory)
        is_seq2seq = read_json(directory / "config.json", ReleaseError).get("is_encoder_decoder")
        if not is_seq2seq and open_tokenizer(directory, ReleaseError).chat_template is None:
            warnings.append(
                "there is no chat template: vLLM serves completions only, unless started with "
                "--chat-template"
            )
        warnings += adapter_warnings(adapter, shapes)
    except (ReleaseError, MergeError, OSError) as error:
        refusals.append(str(error))
    return FormatFindings(tuple(refusals), tuple(warnings))


Shapes = dict[str, tuple[int, ...]]


def _stored_shapes(directory: Path) -> Shapes:
    """Return the shape of each stored tensor, from the indexed files or the single file.

    Raises:
        ReleaseError: if index and files disagree.
        MergeError: if a file cannot be read, or two files hold the same tensor.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ReleaseError(
            f"{directory.name}: no weights in safetensors (got no file). Fix: run `lora-kit merge` "
            "again"
        )
    stored = stored_by_key(files)
    index = directory / SAFETENSORS_INDEX_FILE
    if index.is_file():
        if read_json(index, ReleaseError).get("weight_map") != {
            key: tensor.path.name for key, tensor in stored.items()
        }:
            raise ReleaseError(
                f"{index.name}: weight_map differs from the tensors in the files. Fix: run "
                "`lora-kit merge` again"
            )
    elif [file.name for file in files] != ["model.safetensors"]:
        raise ReleaseError(
            f"{directory.name}: files other than model.safetensors need {index.name} (got "
            f"{', '.join(file.name for file in files)}). Fix: run `lora-kit merge` again"
        )
    return {key: tensor.shape for key, tensor in stored.items()}


def _weight_problems(directory: Path, stored: Shapes) -> Iterator[str]:
    """Yield differences between the stored weights and the model that config.json describes."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    config = read_json(directory / "config.json", ReleaseError)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        yield (
            "config.json: architectures is missing, so vLLM cannot find the model's class (got "
            f"{architectures!r}). Fix: set architectures to the model's class"
        )
        return
    if "quantization_config" in config:
        return  # a quantized model's tensors do not follow from its class
    model = _meta_model(directory)
    if type(model).__name__ not in architectures:
        built = type(model).__name__
        yield (
            f"config.json: architectures differs from the class that transformers builds, {built} "
            f"(got {', '.join(map(str, architectures))}). Fix: set architectures to {built}"
        )
    if get_model_conversion_mapping(model, add_legacy=False):
        # The files hold other tensors than the model, such as single experts of a fused module.
        # The verification after the merge has shown that the files load.
        return
    groups, shapes = _model_tensors(model)
    missing = [names[0] for names in groups if not set(names) & set(stored)]
    unknown = sorted(set(stored) - set(shapes))
    reshaped = [key for key in sorted(set(stored) & set(shapes)) if stored[key] != shapes[key]]
    for problem, keys in (
        ("weights are missing", missing),
        ("the model does not have the stored weights", unknown),
        ("weights have another shape", reshaped),
    ):
        if keys:
            got = keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            yield f"{directory.name}: {problem} (got {got}). Fix: run `lora-kit merge` again"


def _meta_model(directory: Path) -> Any:
    """Build the model of config.json on the meta device, without weights."""
    import torch

    config = open_config(directory, ReleaseError)
    with (
        refusing(
            "config.json: transformers cannot build the model",
            "restore config.json from the merge",
            ReleaseError,
        ),
        torch.device("meta"),
    ):
        return build_model(language_model_class(config), config)


def _model_tensors(model: Any) -> tuple[list[list[str]], Shapes]:
    """Return groups of the names of a model's tensors, and the shape of each tensor.

    Tied tensors form a group, since the files store only one of them.
    """
    state = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return list(groups.values()), shapes


def _generation_problems(directory: Path) -> Iterator[str]:
    """Yield reasons why generation would not stop at the end of a turn."""
    path = directory / "generation_config.json"
    if not path.is_file():
        yield (
            "generation_config.json: missing, so that generation stops at config.json's "
            "eos_token_id (got no file). Fix: run `lora-kit merge` again"
        )
        return
    value = read_json(path, ReleaseError).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(one) is int and one >= 0 for one in ids):
        yield (
            "generation_config.json: eos_token_id is not a token id or a list of token ids (got "
            f"{value!r}). Fix: set it to the end-of-turn token"
        )
        return
    tokenizer = open_tokenizer(directory, ReleaseError)
    if tokenizer.chat_template is None:
        return
    try:
        end = end_of_turn_id(tokenizer)
    except DataError as error:
        yield f"chat_template: the template cannot be used: {error}"
        return
    if end not in ids:
        name = tokenizer.convert_ids_to_tokens(end)
        yield (
            f"generation_config.json: eos_token_id lacks the end-of-turn token (got {value}). Fix: "
            f"add {end} ({name})"
        )


def adapter_warnings(adapter: Path, model: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield features of an adapter that vLLM refuses, or ignores and so scales differently.

    vLLM reads r, lora_alpha, use_rslora and the tensors, refuses modules_to_save, bias and DoRA,
    and ignores the patterns silently (vllm/lora/peft_helper.py).

    Args:
        adapter: directory of the adapter.
        model: shapes of the merged model's tensors, by name.
    """
    config = read_json(adapter / ADAPTER_CONFIG, ReleaseError)
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        yield f"vLLM loads only LoRA adapters (got {kind or 'no type'}); serve the merged model"
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
            yield (
                f"vLLM ignores {name} and would scale the adapter differently than in training; "
                "serve the merged model"
            )
    rank = int(config.get("r", 0))
    if rank > VLLM_RANKS[-1]:
        yield (
            f"vLLM loads adapters up to rank {VLLM_RANKS[-1]} (got {rank}); serve the merged model"
        )
    elif rank > VLLM_DEFAULT_RANK:
        sufficient = next(step for step in VLLM_RANKS if step >= rank)
        yield f"vLLM needs --max-lora-rank {sufficient} for the adapter (rank {rank})"
    modules = {key.removesuffix(".weight") for key in model}
    keys = stored_by_key([adapter / ADAPTER_WEIGHTS])
    matches = {key: ADAPTER_KEY.fullmatch(key) for key in keys}
    unmatched = [key for key, match in matches.items() if match is None or match[1] not in modules]
    if unmatched:
        yield (
            f"vLLM has no module for {len(unmatched)} tensors of the adapter, such as "
            f"{unmatched[0]}; serve the merged model"
        )
