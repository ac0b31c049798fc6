"""Backbones of an encoder and a decoder: one text to us, two to the model."""

import copy
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lora_kit.backbone import load as backbones
from lora_kit.backbone.encoder_decoder import prepare_seq2seq
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone
from lora_kit.backbone.open_files import open_tokenizer
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.tokenization import tokenize, tokenize_prompt, tokenize_rows
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.suite import Suite
from lora_kit.merging.exporting.export import export
from lora_kit.modeling.drift import prompt_drift
from lora_kit.modeling.generation import generate_batch
from lora_kit.modeling.likelihood import supervised_nll, supervised_tokens
from lora_kit.modeling.model_inputs import pad_examples
from lora_kit.pipeline import evaluate, merge, train
from lora_kit.pipeline.selection import compare_backbones
from lora_kit.pipeline.training import Trained
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import (
    BackboneError,
    DataError,
    EvaluationError,
    LoraKitError,
    MergeError,
)
from tests.merging.in_process import in_a_fork
from tests.plain_process import run_plain
from tests.two_stacks import WRITERS

SENTENCES = [("What is 3 plus 4?", "3 plus 4 is 7."), ("Is 1 plus 2 more than 2? Say it.", "3 is.")]


def loaded(directory: Path, quantization: str = "none") -> Backbone:
    spec = BackboneSpec(model=str(directory), quantization=quantization, dtype="float32")
    return backbones.load(resolve(spec), spec)


@pytest.fixture(scope="module", params=sorted(WRITERS))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = WRITERS[request.param](tmp_path_factory.mktemp(request.param))
    return directory


@pytest.fixture(scope="module")
def backbone(files: Path) -> Backbone:
    return loaded(files)


def row(prompt: str, answer: str) -> Row:
    return Row("row", "", (Message("user", prompt), Message("assistant", answer)))


def pair(backbone: Backbone, prompt: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs that another program would give the model."""
    tokenizer = backbone.tokenizer
    source = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return source, tokenizer(text_target=answer, return_tensors="pt")["input_ids"]


def of_transformers(backbone: Backbone, prompt: str, answer: str) -> torch.Tensor:
    """(answer tokens, vocabulary) log probabilities, the decoder's inputs shifted by the model."""
    source, target = pair(backbone, prompt, answer)
    logits: torch.Tensor = backbone.model(input_ids=source, labels=target).logits[0]
    return logits.log_softmax(dim=-1)


def examples_of(backbone: Backbone) -> list[Example]:
    return [tokenize(row(*pair), backbone.tokenizer, 100) for pair in SENTENCES]


@torch.no_grad()
def test_a_likelihood_is_that_of_transformers(backbone: Backbone) -> None:
    batch = pad_examples(examples_of(backbone), backbone.tokenizer.pad_token_id)
    nll, rows = supervised_nll(backbone.model, batch)
    scored, greedy, _ = supervised_tokens(backbone.model, batch)
    torch.testing.assert_close(scored, nll)
    for number, (prompt, answer) in enumerate(SENTENCES):
        found = of_transformers(backbone, prompt, answer)
        target = pair(backbone, prompt, answer)[1][0]
        # A beginning of the answer that is the same for all, such as BART's, is given, not learned.
        learned = int((rows == number).sum())
        assert len(target) - learned == int(backbone.tokenizer.bos_token_id is not None)
        wanted = -found.gather(1, target[:, None])[-learned:, 0]
        torch.testing.assert_close(nll[rows == number], wanted, rtol=1e-4, atol=1e-4)
        right = found.argmax(dim=-1)[-learned:] == target[-learned:]
        assert greedy[rows == number].tolist() == right.tolist()


@torch.no_grad()
def test_what_is_said_is_what_each_prompt_says_alone(backbone: Backbone) -> None:
    prompts = [tokenize_prompt([Message("user", p)], backbone.tokenizer) for p, _ in SENTENCES]
    end, pad = backbone.tokenizer.eos_token_id, backbone.tokenizer.pad_token_id
    found = generate_batch(backbone.model, prompts, [end], pad, max_new_tokens=8)
    first = int(backbone.tokenizer.bos_token_id is not None)
    for number, (prompt, _) in enumerate(SENTENCES):
        source, target = pair(backbone, prompt, "x")
        start = backbone.model.generation_config.decoder_start_token_id
        begun = torch.tensor([[start, *target[0, :first]]])
        for _ in range(8):  # the most likely token, step by step
            logits = backbone.model(input_ids=source, decoder_input_ids=begun).logits[0, -1]
            begun = torch.cat([begun, logits.argmax()[None, None]], dim=1)
            if int(logits.argmax()) == backbone.tokenizer.eos_token_id:
                break
        alone = begun[0, 1 + first :].tolist()
        assert found[number, : len(alone)].tolist() == alone


def test_turns_before_the_answer_are_the_source(backbone: Backbone) -> None:
    turns = (
        Message("system", "Add."),
        Message("user", "1 plus 2?"),
        Message("assistant", "3."),
        Message("user", "plus 4?"),
        Message("assistant", "7."),
    )
    (several,) = tokenize_rows([Row("row", "", turns)], backbone.tokenizer, 100, "assistant")
    tokenizer = backbone.tokenizer
    texts = [
        ("Add.\n1 plus 2?", "3."),
        ("Add.\n1 plus 2?\n3.\nplus 4?", "7."),
    ]
    assert len(several) == len(texts)
    for example, (source, answer) in zip(several, texts, strict=True):
        ids = tokenizer(source)["input_ids"]
        assert list(example.input_ids[: len(ids)]) == ids
        said = [label for label in example.labels if label != IGNORE_INDEX]
        assert said == tokenizer(answer, add_special_tokens=False)["input_ids"] + [ids[-1]]


@pytest.mark.parametrize(
    ("given", "labels", "part"),
    [
        (Row("row 1", "", text="Once."), "assistant", "row 1: an encoder-decoder backbone needs"),
        (row("a", "b"), "all", "cannot train on the encoder's input"),
        (row("a", "b"), ["user", "assistant"], "cannot train on the encoder's input"),
        (row("a </s>", "b"), "assistant", "a turn (got </s>)"),
    ],
)
def test_what_no_decoder_says_is_not_learned(
    backbone: Backbone, given: Row, labels: Any, part: str
) -> None:
    with pytest.raises(DataError) as told:
        tokenize(given, backbone.tokenizer, 100, labels)
    assert part in str(told.value)


def test_a_backbone_that_says_not_how_it_begins_is_refused(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "unsaid")
    for name in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / "unsaid" / name).read_text())
        said["decoder_start_token_id"] = None
        (tmp_path / "unsaid" / name).write_text(json.dumps(said))
    with pytest.raises(BackboneError, match="decoder_start_token_id"):
        loaded(tmp_path / "unsaid")


def test_a_tokenizer_that_ends_no_text_is_refused(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "endless")
    path = tmp_path / "endless" / "tokenizer.json"
    said = json.loads(path.read_text()) | {"post_processor": None}
    path.write_text(json.dumps(said))
    with pytest.raises(BackboneError, match="does not end a text"):
        loaded(tmp_path / "endless")


def test_a_tokenizer_that_does_not_tell_where_tokens_stand_is_refused(tmp_path: Path) -> None:
    directory = WRITERS["t5"](tmp_path)
    for path in directory.glob("tokenizer*"):
        path.unlink()
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(DataError, match=r"in Python .*\(got ByT5Tokenizer\)"):
        tokenize(row("a", "b"), open_tokenizer(directory), 100)


def test_a_tokenizer_that_reads_an_answer_otherwise_behind_a_source_is_refused(
    tmp_path: Path,
) -> None:
    directory = WRITERS["t5"](tmp_path)
    path = directory / "tokenizer.json"
    # A word is marked as one at a text's beginning, and not behind a special token.
    said = json.loads(path.read_text())
    said["pre_tokenizer"] = said["pre_tokenizer"] | {"prepend_scheme": "first"}
    path.write_text(json.dumps(said))
    with pytest.raises(BackboneError, match="other tokens for source and answer in one text"):
        loaded(directory)


def test_a_backbone_whose_answers_begin_with_their_language_is_told_it(backbone: Backbone) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.tgt_lang = None
    with pytest.raises(BackboneError, match="`tgt_lang` in a copy's tokenizer_config"):
        prepare_seq2seq(backbone.model, tokenizer, "x")


def test_what_would_end_a_source_in_its_midst_is_not_asked(
    backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a prompt: the text contains a control .*\(got </s>\)"):
        tokenize_prompt([Message("user", "What is </s> 3?")], backbone.tokenizer)
    asked = {"question": "What?", "choices": ["a", "b </s>"], "answer": 0}
    (tmp_path / "quiz.jsonl").write_text(json.dumps(asked) + "\n")
    task = {"name": "quiz", "kind": "multiple_choice", "source": str(tmp_path / "quiz.jsonl")}
    suite = Suite.model_validate({"name": "own", "role": "gain", "tasks": [task]})
    with pytest.raises(DataError, match=r"contains a control token.*\(got </s>\)"):
        plan_work([suite], backbone)


def suites(folder: Path) -> list[str]:
    rows = [{"prompt": f"What is {n} plus {n + 4}?", "completion": f"{n}."} for n in range(8)]
    (folder / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(folder / "held-out.jsonl")
    tasks = {
        "gain": [
            {"name": "answers", "kind": "loss", "source": source},
            {"name": "said", "kind": "generation", "source": source, "max_new_tokens": 6}
            | {"metric": "exact_match"},
        ],
        "retention": [
            {"name": "quiz", "kind": "multiple_choice", "source": "general-knowledge", "limit": 8}
            | {"margin": 0.9}
        ],
    }
    for role, of_role in tasks.items():
        suite = {"name": f"own-{role}", "role": role, "tasks": of_role}
        (folder / f"{role}.yaml").write_text(yaml.safe_dump(suite))
    return [str(folder / f"{role}.yaml") for role in tasks]


def recipe_of(files: Path, chats: Path, **changes: Any) -> Recipe:
    document: dict[str, Any] = {
        "name": "two-stacks",
        "backbone": {"model": str(files), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": [{"source": str(chats), "limit": 24}], "max_length": 100},
        "training": {"batch_size": 4, "learning_rate": 5e-3, "epochs": 2},
        "evaluation": {"suites": suites(chats.parent)},
    }
    for name, change in changes.items():
        document[name] = document.get(name, {}) | change
    return Recipe.model_validate(document)


@pytest.fixture
def trained(files: Path, chats: Path, tmp_path: Path) -> Trained:
    return train(recipe_of(files, chats), tmp_path / "run")


PEFT_ALONE = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM
base, adapter, asked = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), adapter).eval()
with torch.no_grad():
    logits = model(**load_file(asked)).logits
save_file({"logits": logits}, asked)
"""


@pytest.mark.parametrize(
    "files", [pytest.param("bart", marks=pytest.mark.slow), "t5"], indirect=True
)
@torch.no_grad()
def test_trained_reloaded_measured_and_merged(
    trained: Trained, files: Path, backbone: Backbone, tmp_path: Path
) -> None:
    from lora_kit.modeling.modes import adapter_disabled

    history = trained.result.history
    assert trained.result.final_loss < trained.result.first_loss, history
    model = trained.session.model.eval()
    source, target = pair(backbone, *SENTENCES[0])
    asked = {"input_ids": source, "labels": target}
    save_file(asked, tmp_path / "asked.safetensors")
    adapter = trained.session.run.adapter
    run_plain(PEFT_ALONE, files, adapter, tmp_path / "asked.safetensors")
    plain = load_file(tmp_path / "asked.safetensors")["logits"]
    torch.testing.assert_close(plain, model(**asked).logits, rtol=1e-4, atol=1e-4)
    with adapter_disabled(model):
        torch.testing.assert_close(model(**asked).logits, backbone.model(**asked).logits)
    with in_a_fork():
        merge(trained.session.run.root)
    record = json.loads((trained.session.run.root / "merged" / "merge.json").read_text())
    assert record["verification"]["passed"]
    with pytest.raises(MergeError, match="encoder-decoder models have no export format"):
        export(trained.session.run.root / "merged", "nf4", tmp_path / "smaller")
    evaluate(trained.session.run.root, arms=["merged"])
    entries = list(read_ledger(trained.session.run.root / "evaluation" / "ledger.parquet"))
    scores = {(entry.arm, entry.task, entry.item): entry.score for entry in entries}
    assert {arm for arm, _, _ in scores} >= {"base", "adapter", "merged", "drift"}
    for (arm, task, item), score in scores.items():
        if arm == "merged":
            assert score == pytest.approx(scores["adapter", task, item], abs=1e-3), (task, item)


def test_it_is_scouted_without_an_estimate_of_memory(
    files: Path, chats: Path, tmp_path: Path
) -> None:
    (found,) = compare_backbones(recipe_of(files, chats), [str(files)], tmp_path / "scouted")
    assert not found.refused
    assert found.memory is None
    assert found.tokens_per_second
    assert [score.task for score in found.scores] == ["own-gain/answers", "own-gain/said"]


@torch.no_grad()
def test_drift_is_that_of_the_answers(trained: Trained, backbone: Backbone) -> None:
    from lora_kit.modeling.modes import adapter_disabled

    model = trained.session.model.eval()
    source, target = pair(backbone, *SENTENCES[1])
    adapted = model(input_ids=source, labels=target).logits[0].log_softmax(dim=-1)
    with adapter_disabled(model):
        base = model(input_ids=source, labels=target).logits[0].log_softmax(dim=-1)
    kl = (base.exp() * (base - adapted)).sum(dim=-1)
    # All places of the decoder: behind its start, the answer's own beginning and its tokens.
    examples = examples_of(backbone)
    prompts = [example.input_ids[:-1] for example in examples]
    pad = backbone.tokenizer.pad_token_id
    found = prompt_drift(model, prompts, pad, torch.device("cpu"))
    assert found[1] == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"adapter": {"method": "full", "rank": None, "alpha": None}}, "adapter.method: full"),
        ({"adapter": {"method": "prefix_tuning", "rank": None, "alpha": None}}, "prefix_tuning"),
        ({"adapter": {"options": {"init_lora_weights": "eva"}}}, "init_lora_weights: eva"),
        ({"training": {"layerwise_lr_decay": 0.9}}, "training.layerwise_lr_decay"),
        ({"training": {"gradual_unfreezing_steps": 2}}, "training.gradual_unfreezing_steps"),
        ({"data": {"packing": True}}, "data.packing"),
        ({"retention": {"self_distillation": {}}}, "retention.self_distillation"),
        ({"training": {"objective": "orpo"}}, "objective: orpo"),
    ],
)
def test_what_is_made_for_one_stack_is_refused(
    files: Path, chats: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    if "objective" in changes.get("training", {}):
        pairs = [{"prompt": "a", "chosen": "1", "rejected": "2"} for _ in range(8)]
        chats.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with pytest.raises(LoraKitError) as told:
        train(recipe_of(files, chats, **changes), tmp_path / "run")
    assert named in str(told.value)
    assert "encoder-decoder" in str(told.value)


def test_a_text_without_a_place_is_refused(tmp_path: Path, chats: Path) -> None:
    files = WRITERS["bart"](tmp_path / "bart")
    long = [{"prompt": f"{n} " + "plus " * 200, "completion": "3."} for n in range(8)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in long))
    exceeded = r"data.max_length: 400.*needs .* positions \(available: 128\)"
    with pytest.raises(DataError, match=exceeded):
        train(recipe_of(files, chats, data={"max_length": 400}), tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "new", "fits"), [(100, 120, True), (130, 8, False), (4, 140, False)]
)
def test_source_and_answer_have_positions_of_their_own(
    tmp_path: Path, words: int, new: int, fits: bool
) -> None:
    backbone = loaded(WRITERS["bart"](tmp_path / "bart"))
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": "plus " * words, "completion": "3."}) + "\n")
    task = {"name": "said", "kind": "generation", "source": str(asked), "max_new_tokens": new}
    suite = Suite.model_validate(
        {"name": "long", "role": "gain", "tasks": [task | {"metric": "exact_match"}]}
    )
    with nullcontext() if fits else pytest.raises(EvaluationError, match=r"\(available: 128\)"):
        plan_work([suite], backbone)


def test_the_base_is_held_to_on_answers(files: Path, chats: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    rows = [{"prompt": f"{n} minus 1?", "completion": f"{n - 1}."} for n in range(30, 40)]
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"source": str(kept), "split": "all"}
    held = {
        "kl": texts | {"rows": 2, "weight": 1.0},
        "early_stopping": texts | {"rows": 8, "steps": 4, "margin": 9.0},
        "ewc": texts | {"rows": 4},
        "token_masking": {"max_perplexity": 1e5},
        "non_target_kl": {},
        "entropy_weighting": {},
    }
    found = train(recipe_of(files, chats, retention=held), tmp_path / "run").result
    assert found.steps == 12
    logged = {"kl", "retention_bound", "non_target_kl", "entropy_weight"}
    assert logged <= set().union(*found.history)
    plain = recipe_of(files, chats, retention={"kl": {}})
    problem = r"retention\.kl\.source: python-reference: .*needs a prompt and an answer"
    with pytest.raises(DataError, match=problem):
        train(plain, tmp_path / "another")


def test_recomputed_activations_have_the_same_gradients(
    files: Path, chats: Path, tmp_path: Path
) -> None:
    """At a rate at which what rounding leaves does not grow from step to step."""
    histories = []
    for recomputed in (False, True):
        training = {"gradient_checkpointing": recomputed, "learning_rate": 1e-4}
        recipe = recipe_of(files, chats, training=training)
        histories.append(train(recipe, tmp_path / str(recomputed)).result.history)
    for one, other in zip(*histories, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_scratch_begins_as_the_backbone_does(files: Path, chats: Path, tmp_path: Path) -> None:
    unsaid = tmp_path / "unsaid"
    shutil.copytree(files, unsaid)
    said = json.loads((unsaid / "config.json").read_text()) | {"decoder_start_token_id": None}
    (unsaid / "config.json").write_text(json.dumps(said))
    train(recipe_of(unsaid, chats), tmp_path / "run")
    evaluate(tmp_path / "run", arms=["scratch"])
    arms = {entry.arm for entry in read_ledger(tmp_path / "run" / "evaluation" / "ledger.parquet")}
    assert "scratch" in arms


def test_a_head_is_refused_by_name(files: Path) -> None:
    spec = BackboneSpec(model=str(files), quantization="none", dtype="float32")
    with pytest.raises(BackboneError, match="let this one generate the answer"):
        backbones.load(resolve(spec), spec, HeadOutputs("classification", ("a", "b")))


def test_texts_to_be_continued_are_no_task_of_it(files: Path, chats: Path, tmp_path: Path) -> None:
    recipe = recipe_of(files, chats, evaluation={"suites": ["core-retention"]})
    with pytest.raises(DataError, match="an encoder-decoder backbone"):
        train(recipe, tmp_path / "run")
