"""Every method of PEFT that is merged, against PEFT's own merge in float32, bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_kit.merging.in_memory import merge_adapter
from lora_kit.merging.methods import STREAMED
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.runtime.errors import MergeError

SOME = ["q_proj", "v_proj", "down_proj"]
IDS = torch.arange(100, 140)[None]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": SOME} | options)


LORA = {
    "plain": lora(),
    "rslora, patterns": lora(
        use_rslora=True, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3}
    ),
    "all linear": lora(target_modules="all-linear"),
    "dora": lora(use_dora=True),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "gaussian": lora(init_lora_weights="gaussian"),
    "orthogonal": lora(init_lora_weights="orthogonal"),
    "eva": lora(init_lora_weights="eva"),
    "embedding and head": lora(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "saved head": lora(modules_to_save=["lm_head"]),
    "saved embedding": lora(modules_to_save=["embed_tokens"]),
    "tokens": lora(trainable_token_indices=[5, 7]),
}
EXPERTS = {
    "mixtral": ["experts.gate_up_proj", "experts.down_proj"],
    "qwen3-moe": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
BIASED = {
    "lora, all biases": lora(bias="all"),
    "lora, its biases": lora(bias="lora_only"),
    "lora with a bias of its own": lora(lora_bias=True, target_modules=["q_proj", "v_proj"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"]),
}
OTHERS = {
    "ADALORA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=SOME),
    "IA3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "LOHA": peft.LoHaConfig(r=4, target_modules=SOME),
    "LOKR": peft.LoKrConfig(r=4, target_modules=SOME),
    "OFT": peft.OFTConfig(r=0, oft_block_size=8, target_modules=SOME),
    "BOFT": peft.BOFTConfig(boft_block_size=4, target_modules=SOME),
    "VERA": peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "PVERA": peft.PveraConfig(r=4, target_modules=["q_proj"]),
    "HRA": peft.HRAConfig(r=4, target_modules=SOME),
    "FOURIERFT": peft.FourierFTConfig(n_frequency=20, target_modules=SOME),
    "LN_TUNING": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "SHIRA": peft.ShiraConfig(r=4, target_modules=SOME),
    "MISS": peft.MissConfig(r=4, target_modules=SOME),
    "RANDLORA": peft.RandLoraConfig(r=4, target_modules=SOME),
    "TRAINABLE_TOKENS": peft.TrainableTokensConfig(
        token_indices=[3, 4], target_modules=["embed_tokens"]
    ),
    "VBLORA": peft.VBLoRAConfig(r=2, target_modules=["q_proj"], vector_length=16, num_vectors=20),
    "C3A": peft.C3AConfig(block_size=8, target_modules=["q_proj"]),
    "ROAD": peft.RoadConfig(target_modules=SOME, group_size=8),
    "WAVEFT": peft.WaveFTConfig(n_frequency=20, target_modules=SOME),
    "DELORA": peft.DeloraConfig(r=4, target_modules=SOME),
    "HIRA": peft.HiraConfig(r=4, target_modules=SOME),
    "GRALORA": peft.GraloraConfig(r=4, target_modules=SOME, gralora_k=2),
    "TINYLORA": peft.TinyLoraConfig(target_modules=SOME),
    "UNILORA": peft.UniLoraConfig(r=4, target_modules=SOME),
    "DEFT": peft.DeftConfig(target_modules=SOME),
}
IN_MEMORY = {
    "OSF": peft.OSFConfig(target_modules=SOME),
    "PSOFT": peft.PsoftConfig(r=4, target_modules=SOME),
}


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def trained(base: Path, config: Any, directory: Path) -> None:
    """An adapter that does something, saved."""
    torch.manual_seed(1)
    model = get_peft_model(load(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.02 * torch.randn_like(parameter)
    model.save_pretrained(directory)


def plan_of(base: Path, adapter: Path, **changes: Any) -> MergePlan:
    fields: dict[str, Any] = {
        "base": base,
        "adapter": adapter,
        "quantization": "none",
        "dtype": "float32",
        "quantized_modules": (),
        "into": "original",
        "stored_dtype": "float32",
        "shard_bytes": 10**9,
        "stop_token_ids": (2,),
    }
    return MergePlan(**(fields | changes))


def merged_and_reference(
    base: Path, config: Any, folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any, MergeResult]:
    """Our merge reloaded, PEFT's adapter on the base, and our result."""
    trained(base, config, folder / "adapter")
    stored = str(dtype).removeprefix("torch.")
    plan = plan_of(base, folder / "adapter", stored_dtype=stored)
    result = merge_adapter(plan, folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=dtype).eval()
    return merged, PeftModel.from_pretrained(load(base), folder / "adapter").eval(), result


def require_same(merged: Any, attached: Any, dtype: torch.dtype) -> None:
    """Every parameter is PEFT's float32 merge, rounded once."""
    found, expected = merged.state_dict(), attached.merge_and_unload().state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LORA)
def test_lora_and_its_kin(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    base = checkpoints["untied"]
    merged, attached, result = merged_and_reference(base, LORA[name], tmp_path, dtype)
    assert result.merged
    assert not result.in_memory
    require_same(merged, attached, dtype)


@pytest.mark.parametrize("name", BIASED)
def test_what_changes_biases(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    base = checkpoints["biased"]
    merged, attached, result = merged_and_reference(base, BIASED[name], tmp_path)
    assert not result.in_memory
    require_same(merged, attached, torch.float32)


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    base = checkpoints["untied"]
    merged, attached, result = merged_and_reference(base, OTHERS[name], tmp_path, torch.bfloat16)
    assert not result.in_memory
    require_same(merged, attached, torch.bfloat16)


def test_all_streamed_methods_are_covered_here() -> None:
    assert set(OTHERS) | {"LORA"} == STREAMED


@pytest.mark.parametrize("name", IN_MEMORY)
def test_what_reads_the_weights_when_it_is_attached_goes_through_memory_and_says_so(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = checkpoints["untied"]
    merged, attached, result = merged_and_reference(base, IN_MEMORY[name], tmp_path)
    assert result.in_memory
    assert result.merged == 6
    assert f"{name} cannot be merged tensor by tensor" in " ".join(capsys.readouterr().err.split())
    require_same(merged, attached, torch.float32)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_go_back_into_the_files_layout(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    config = lora(target_modules=["q_proj"], target_parameters=EXPERTS[name])
    base = checkpoints[name]
    merged, attached, result = merged_and_reference(base, config, tmp_path)
    files = load_file(base / "model.safetensors")
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(written) == set(files), "not the layout of the backbone's files"
    assert result.merged == 6
    require_same(merged, attached, torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        lora(target_modules=["q_proj", "lm_head"]),
        lora(target_modules=["q_proj", "embed_tokens"]),
        lora(modules_to_save=["lm_head"]),
        lora(modules_to_save=["embed_tokens"]),
        lora(trainable_token_indices=[5, 7]),
    ],
    ids=["head", "embedding", "saved head", "saved embedding", "tokens"],
)
def test_head_and_embedding_that_were_one_part_where_the_adapter_parts_them(
    checkpoints: dict[str, Path], tmp_path: Path, config: LoraConfig
) -> None:
    merged, attached, result = merged_and_reference(checkpoints["tied"], config, tmp_path)
    with torch.no_grad():
        difference = (merged(IDS).logits - attached(IDS).logits).abs().max()
        effect = (load(checkpoints["tied"])(IDS).logits - attached(IDS).logits).abs().max()
    assert difference < 1e-5 < 1e-2 < effect
    assert result.untied == ("lm_head.weight", "model.embed_tokens.weight")
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False


def test_an_embedding_that_was_resized_keeps_its_rows(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = load(checkpoints["untied"])
    model.resize_token_embeddings(520)
    attached = get_peft_model(model, lora(modules_to_save=["embed_tokens", "lm_head"]))
    attached.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    plan = plan_of(checkpoints["untied"], tmp_path / "adapter")
    merge_adapter(plan, tmp_path / "merged")
    merged = load(tmp_path / "merged")
    ids = torch.arange(500, 520)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, attached.eval()(ids).logits, atol=1e-5)
    assert merged.config.vocab_size == 520


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
            r"adds virtual tokens and changes no weight \(got peft_type PROMPT_TUNING\)",
        ),
        (
            peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
            r"adds virtual tokens and changes no weight \(got peft_type PREFIX_TUNING\)",
        ),
        (lora(init_lora_weights="pissa_niter_4"), "path_initial_model_for_weight_conversion"),
        (lora(alora_invocation_tokens=[5], task_type="CAUSAL_LM"), "alora_invocation_tokens"),
        (peft.LilyConfig(r=4, target_modules=SOME), "PEFT cannot merge it"),
    ],
    ids=["prompt tuning", "prefix tuning", "random residue", "alora", "lily"],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(
    checkpoints: dict[str, Path], tmp_path: Path, config: Any, message: str
) -> None:
    trained(checkpoints["untied"], config, tmp_path / "adapter")
    with pytest.raises(MergeError, match=message):
        merge_adapter(plan_of(checkpoints["untied"], tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_residue_is_not_what_a_plain_adapter_would_leave(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """PiSSA's two factors alone, added to the whole weight, would be another model."""
    trained(checkpoints["untied"], LORA["pissa"], tmp_path / "adapter")
    merge_adapter(plan_of(checkpoints["untied"], tmp_path / "adapter"), tmp_path / "merged")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"init_lora_weights": True}))
    merge_adapter(plan_of(checkpoints["untied"], tmp_path / "adapter"), tmp_path / "plain")
    name = "model.layers.0.self_attn.q_proj.weight"
    one, other = (load_file(tmp_path / d / "model.safetensors")[name] for d in ("merged", "plain"))
    assert not torch.allclose(one, other, atol=1e-3)


def test_keys_of_a_compiled_model_are_named_as_such(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    trained(checkpoints["untied"], lora(), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    renamed = {
        key.replace("base_model.model.", "base_model.model._orig_mod."): tensor
        for key, tensor in load_file(path).items()
    }
    save_file(renamed, path)
    with pytest.raises(MergeError, match=r"from a compiled model: take `_orig_mod\.` out"):
        merge_adapter(plan_of(checkpoints["untied"], tmp_path / "adapter"), tmp_path / "merged")


def without(adapter: Path, part: str) -> None:
    path = adapter / "adapter_model.safetensors"
    kept = {key: tensor for key, tensor in load_file(path).items() if part not in key}
    assert len(kept) < len(load_file(path))
    save_file(kept, path)


@pytest.mark.parametrize(
    ("config", "base", "part"),
    [
        (OTHERS["LN_TUNING"], "untied", "layers.0.input_layernorm"),
        (BIASED["lora, all biases"], "biased", "layers.0.self_attn.q_proj.bias"),
        (LORA["dora"], "untied", "layers.1.self_attn.v_proj.lora_magnitude_vector"),
        (OTHERS["IA3"], "untied", "layers.1.mlp.down_proj"),
    ],
    ids=["a norm", "a bias", "a magnitude", "a scale"],
)
def test_a_tensor_that_the_adapter_lacks_is_an_error(
    checkpoints: dict[str, Path], tmp_path: Path, config: Any, base: str, part: str
) -> None:
    trained(checkpoints[base], config, tmp_path / "adapter")
    if part.endswith(".bias"):
        part = part.replace(".bias", ".base_layer.bias")
    without(tmp_path / "adapter", part)
    with pytest.raises(MergeError, match="tensors that are missing"):
        merge_adapter(plan_of(checkpoints[base], tmp_path / "adapter"), tmp_path / "merged")


def test_a_backbone_whose_files_are_quantized_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    trained(checkpoints["untied"], lora(), tmp_path / "adapter")
    base = tmp_path / "base"
    shutil.copytree(checkpoints["untied"], base)
    path = base / "config.json"
    config = json.loads(path.read_text())
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(config | {"quantization_config": quantized}))
    with pytest.raises(MergeError, match="checkpoint is quantized"):
        merge_adapter(plan_of(base, tmp_path / "adapter"), tmp_path / "merged")
    path.write_text(json.dumps(config))
    shard = next(base.glob("model-00001*"))
    tensors = load_file(shard)
    eight = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}
    save_file(eight, shard, metadata={"format": "pt"})
    with pytest.raises(MergeError, match="tensor is quantized, and its scale is unknown"):
        merge_adapter(plan_of(base, tmp_path / "adapter"), tmp_path / "merged")


def test_tensors_that_a_checkpoint_keeps_finer_than_the_others_stay_so(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    trained(checkpoints["tied"], lora(), tmp_path / "adapter")
    base = tmp_path / "base"
    shutil.copytree(checkpoints["tied"], base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = torch.rand(64)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    plan = plan_of(base, tmp_path / "adapter", stored_dtype="bfloat16")
    merge_adapter(plan, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(found["model.norm.weight"], tensors["model.norm.weight"])
    assert {t.dtype for key, t in found.items() if key != "model.norm.weight"} == {torch.bfloat16}


def test_a_number_that_the_stored_dtype_does_not_hold_is_an_error(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    trained(checkpoints["tied"], lora(), tmp_path / "adapter")
    base = tmp_path / "base"
    shutil.copytree(checkpoints["tied"], base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    plan = plan_of(base, tmp_path / "adapter", stored_dtype="float16")
    with pytest.raises(MergeError, match=r"model\.norm\.weight.*infinite or NaN"):
        merge_adapter(plan, tmp_path / "merged")
