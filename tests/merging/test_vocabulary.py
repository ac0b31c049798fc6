"""Adapters that hold embeddings of another size, heads or biases: merged and compared in full."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_kit.adapter.attach import attach_saved
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.evaluation.arms.models import base_identity
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline.merging import merge
from lora_kit.recipe.backbone import BackboneSpec
from tests.merging.in_process import in_this_process

ADDED = ["<colour>", "<shape>", "<size>"]


@pytest.fixture(autouse=True)
def reloading_here() -> Iterator[None]:
    with in_this_process():
        yield


@pytest.fixture(scope="module")
def bases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return tiny models with biases, tied and untied."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("bases")
    stored = json.loads((tiny / "config.json").read_text())
    for name in ("tied", "untied"):
        torch.manual_seed(0)
        config = LlamaConfig(
            **(stored | {"tie_word_embeddings": name == "tied", "attention_bias": True})
        )
        LlamaForCausalLM(config).save_pretrained(root / name)
        AutoTokenizer.from_pretrained(tiny).save_pretrained(root / name)
    return {name: root / name for name in ("tied", "untied")}


def saved(base: Path, directory: Path, rows: int = 0, **options: Any) -> Any:
    """Save a random adapter with plain PEFT; return the model that PEFT merges itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if rows:
        tokenizer.add_tokens(ADDED)
        size = len(tokenizer) if rows > 0 else model.config.vocab_size + rows
        model.resize_token_embeddings(size)
    config = LoraConfig(
        **({"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options)
    )
    attached = get_peft_model(model, config)
    for parameter in attached.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    attached.save_pretrained(directory)
    if rows > 0:
        tokenizer.save_pretrained(directory)
    return attached.merge_and_unload().eval()


BOTH = ["embed_tokens", "lm_head"]
CASES = {
    "grown, both saved": {"rows": 3, "modules_to_save": BOTH},
    "grown, neither trained": {"rows": 3},
    "grown, the head saved": {"rows": 3, "modules_to_save": ["lm_head"]},
    "shrunk": {"rows": -1000, "modules_to_save": BOTH},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "its biases": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "grown with biases": {"rows": 3, "modules_to_save": BOTH, "bias": "all"},
}
# Kinds that a fast run tries on the tied base alone; the weights of a tied head have a path of
# their own, those of biases do not.
TIED = {"grown, neither trained", "shrunk", "its biases", "all biases", "grown with biases"}
KINDS = [
    pytest.param(base, options, id=f"{base}-{name}", marks=[pytest.mark.slow] if slow else [])
    for name, options in CASES.items()
    for base in ("tied", "untied")
    if [slow := base == "untied" and name in TIED]
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
        assert tokenizer.convert_tokens_to_ids(ADDED) == list(range(49152, 49155))


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
