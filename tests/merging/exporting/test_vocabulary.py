"""Adapters that hold embeddings of another size, heads or biases: merged and compared in full."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PsoftConfig, get_peft_model

from lora_kit.adapter.attach import attach_saved
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.evaluation.arms.models import base_identity
from lora_kit.merging.exporting.comparison import load_gguf
from lora_kit.merging.exporting.export import export
from lora_kit.merging.exporting.quantized import load_quantized
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline.merging import merge
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import AdapterError
from tests.merging.exporting.small_model import TEXTS, random_model
from tests.merging.in_process import in_this_process

ADDED = ["<colour>", "<shape>", "<size>"]


@pytest.fixture(autouse=True)
def reloading_here() -> Iterator[None]:
    with in_this_process():
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return random models with biases, tied and untied, of 400 tokens and 401 rows."""
    root = tmp_path_factory.mktemp("bases")
    options = {"attention_bias": True, "initializer_range": 0.02}
    return {
        name: random_model(root / name, tie_word_embeddings=name == "tied", **options)
        for name in ("tied", "untied")
    }


def saved(
    base: Path,
    directory: Path,
    rows: int = 0,
    multiple: int | None = None,
    method: Any = LoraConfig,
    **options: Any,
) -> Any:
    """Save a random adapter with plain PEFT; return the model with the adapter."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if rows:
        tokenizer.add_tokens(ADDED)
        size = len(tokenizer) if rows > 0 else model.config.vocab_size + rows
        model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
    config = method(
        **({"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options)
    )
    attached = get_peft_model(model, config)
    for parameter in attached.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    attached.save_pretrained(directory)
    if rows > 0:
        tokenizer.save_pretrained(directory)
    return attached.eval()


BOTH = ["embed_tokens", "lm_head"]
CASES = {
    "grown, both saved": {"rows": 3, "modules_to_save": BOTH},
    "grown, neither trained": {"rows": 3},
    "grown, the head saved": {"rows": 3, "modules_to_save": ["lm_head"]},
    "shrunk": {"rows": -1, "modules_to_save": BOTH},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "its biases": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "grown with biases": {"rows": 3, "modules_to_save": BOTH, "bias": "all"},
    "grown, trained tokens": {"rows": 3, "trainable_token_indices": [401, 402]},
    "grown, factors of both": {"rows": 3, "target_modules": ["q_proj", *BOTH]},
    "padded": {"rows": 3, "multiple": 64, "modules_to_save": BOTH},
    "merged in memory": {"rows": 3, "modules_to_save": BOTH, "method": PsoftConfig},
    "trained tokens": {"trainable_token_indices": [101, 390], "ensure_weight_tying": True},
    "an embedding saved, tied": {"modules_to_save": BOTH[:1], "ensure_weight_tying": True},
    "DoRA with biases": {"use_dora": True, "bias": "all"},
    "factors of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}
# Untied, PEFT saves only the embedding that has factors.
ONLY_TIED = {
    "grown, factors of the embedding": {"rows": 3, "target_modules": ["q_proj", "embed_tokens"]},
    "shrunk, factors of the head": {"rows": -1, "target_modules": ["q_proj", "lm_head"]},
}
KINDS = [
    *(pytest.param("tied", one, id=f"tied-{name}") for name, one in (CASES | ONLY_TIED).items()),
    *(pytest.param("untied", one, id=f"untied-{name}") for name, one in CASES.items()),
]


@pytest.mark.parametrize(("base", "options"), KINDS)
def test_a_merge_equals_that_of_peft(
    bases: dict[str, Path], base: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = saved(bases[base], tmp_path / "adapter", **options)
    spec = BackboneSpec(model=str(bases[base]), quantization="none", dtype="float32")
    (merged,) = merge(tmp_path / "adapter", tmp_path / "merged", backbone=spec)
    assert merged.verification.passed, merged.verification.reasons
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert model.config.vocab_size == expected.config.vocab_size
    ids = torch.arange(expected.config.vocab_size - 20, expected.config.vocab_size)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, expected(ids).logits, atol=1e-5)
    if options.get("rows", 0) > 0:
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
        assert tokenizer.convert_tokens_to_ids(ADDED) == [400, 401, 402]


@pytest.mark.parametrize(("base", "options"), KINDS)
def test_without_the_adapter_the_backbone_is_itself(
    bases: dict[str, Path], base: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    saved(bases[base], tmp_path / "adapter", **options)
    spec = BackboneSpec(model=str(bases[base]), quantization="none", dtype="float32")
    backbone = load(resolve(spec), spec)
    identity = base_identity(backbone)
    ids = torch.arange(100, 120)[None]
    with torch.no_grad():
        before = backbone.model(ids).logits
        attached = attach_saved(backbone, tmp_path / "adapter")
        adapted = attached(ids).logits
        with adapter_disabled(attached):
            disabled = attached(ids).logits
        again = attached(ids).logits
    rows = min(before.shape[-1], disabled.shape[-1])
    # A cached score of the base applies exactly where its probabilities are the same.
    assert (base_identity(backbone) == identity) == ("rows" not in options)
    assert "rows" in options or torch.equal(disabled, before)
    assert torch.allclose(disabled[..., :rows], before[..., :rows], atol=1e-6)
    assert not torch.allclose(adapted[..., :rows], before[..., :rows], atol=1e-3)
    assert torch.equal(again, adapted)


@pytest.mark.parametrize("options", ONLY_TIED.values(), ids=ONLY_TIED)
def test_rows_that_peft_did_not_save_are_refused(
    bases: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    saved(bases["untied"], tmp_path / "adapter", **options)
    spec = BackboneSpec(model=str(bases["untied"]), quantization="none", dtype="float32")
    message = r"adapter_model\.safetensors: .*\.weight missing.*the backbone has 401\)\. Fix:"
    with pytest.raises(AdapterError, match=message):
        merge(tmp_path / "adapter", tmp_path / "merged", backbone=spec)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "options",
    [{"modules_to_save": BOTH}, {"multiple": 64}, {"target_modules": ["q_proj", *BOTH]}],
    ids=["saved", "padded", "factors"],
)
def test_an_export_of_grown_embeddings_predicts_as_peft_does(
    tmp_path: Path, tied: bool, options: dict[str, Any]
) -> None:
    from gguf import GGUFReader

    model = random_model(tmp_path / "model", tie_word_embeddings=tied)
    expected = saved(model, tmp_path / "adapter", rows=3, **options)
    spec = BackboneSpec(model=str(model), quantization="none", dtype="float32")
    merge(tmp_path / "adapter", tmp_path / "merged", backbone=spec)
    path = tmp_path / "model.gguf"
    result = export(tmp_path / "merged", "gguf", path, "f32", TEXTS)
    assert result.passed
    reader = GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert set(ADDED) < set(tokens)
    assert len(tokens) == expected.config.vocab_size
    ids = torch.arange(len(tokens) - 20, len(tokens))[None]
    with torch.no_grad():
        found = load_gguf(path, reader)(ids).logits
        assert torch.allclose(found, expected(ids).logits, atol=1e-3)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_export_of_grown_embeddings_has_all_rows(tmp_path: Path, kind: Any) -> None:
    model = random_model(tmp_path / "model")
    expected = saved(model, tmp_path / "adapter", rows=3, modules_to_save=BOTH)
    spec = BackboneSpec(model=str(model), quantization="none", dtype="float32")
    merge(tmp_path / "adapter", tmp_path / "merged", backbone=spec)
    result = export(tmp_path / "merged", kind, tmp_path / kind, texts=TEXTS)
    assert result.comparison.mean_kl <= result.limits.most_mean_kl
    rows = load_quantized(tmp_path / kind).get_input_embeddings().weight.shape[0]
    assert rows == expected.config.vocab_size


def test_a_vocabulary_cut_below_the_tokenizer_is_refused(tmp_path: Path) -> None:
    model = random_model(tmp_path / "model")
    saved(model, tmp_path / "adapter", rows=-10, modules_to_save=BOTH)
    spec = BackboneSpec(model=str(model), quantization="none", dtype="float32")
    message = (
        r"adapter: 9 tokens have no row in its embeddings \(first: .* has id 391; 391 rows.*Fix:"
    )
    with pytest.raises(AdapterError, match=message):
        merge(tmp_path / "adapter", tmp_path / "merged", backbone=spec)
