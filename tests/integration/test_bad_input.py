"""Bad input of every kind: exit status 2, one message that says where, nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_kit.cli import main
from lora_kit.recipe.recipe import Recipe


@pytest.fixture
def place(tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe that works, its data and a suite."""
    task = {"name": "line", "kind": "loss", "source": "python-reference", "limit": 2}
    suite = {"name": "quiz", "role": "gain", "tasks": [task]}
    (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(suite))
    recipe = tiny_recipe.model_dump(mode="json")
    for source in (*recipe["data"]["train"], *recipe["data"]["validation"]):
        source["source"] = "chats.jsonl"
    recipe["evaluation"]["suites"] = ["quiz.yaml"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def refused(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], *parts: str
) -> None:
    """The command ends with 2 and one message, and leaves the folder as it was."""
    before = {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*"))}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    for part in parts:
        assert part in said
    assert "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*"))} == before


FIELDS = [
    ("seed=-1", "seed"),
    ("seed=many", "seed"),
    ("seed=4294967296", "seed"),
    ("name=a/b", "name"),
    ("name=", "name"),
    ("backbone.model=null", "backbone.model"),
    ("backbone.model=nowhere.gguf", "no such file"),
    ("backbone.model=package:nothing/x.gguf", "no installed package"),
    ("backbone.modle=x", "Did you mean `model`"),
    ("backbone.quantization=q4", "nf4"),
    ("backbone.dtype=int4", "bfloat16"),
    ("backbone.attention=flash", "flash_attention_2"),
    ("backbone.attention=flash_attention_2", "kernels for bfloat16 and float16 only"),
    ("adapter.rank=0", "adapter.rank"),
    ("adapter.rank=true", "adapter.rank"),
    ("adapter.rank=a", "adapter.rank"),
    ("adapter.alpha=-1", "adapter.alpha"),
    ("adapter.alpha=.inf", "adapter.alpha"),
    ("adapter.dropout=1", "adapter.dropout"),
    ("adapter.method=magic", "adapter.method"),
    ("adapter.target_modules=[]", "names no module"),
    ("adapter.target_modules=all", "adapter.target_modules"),
    ("data.train=[]", "data.train"),
    ("data.train.0.source=nowhere.jsonl", "data.train.0.source"),
    ("data.train.0.source=chats.docx", "data.train.0.source"),
    ("data.train.0.source=stdlib-docstring", "stdlib-docstrings"),
    ("data.train.0.split=test", "split"),
    ("data.train.0.limit=0", "data.train.0.limit"),
    ("data.train.0.format=csv", "data.train.0.format"),
    ("data.train.0.weight=0", "data.train.0.weight"),
    ("data.train.7.source=x", "counted from 0"),
    ("data.temperature=0", "data.temperature"),
    ("data.rows=10", "give the sources weights"),
    ("data.train_on=nobody", "data.train_on"),
    ("data.train_on=[robot]", "data.train_on"),
    ("data.max_length=0", "data.max_length"),
    ("data.max_length=3", "no supervised token"),
    ("data.replay={source: nothing}", "data.replay.source"),
    ("data.replay={source: python-reference, fraction: 0.999}", "data.replay.fraction"),
    ("data.replay={source: python-reference, fraction: 1}", "data.replay.fraction"),
    ("data.audit.leakage=2", "data.audit.leakage"),
    ("training.objective=magic", "training.objective"),
    ("training.epochs=0", "training.epochs"),
    ("training.epochs=.nan", "training.epochs"),
    ("training.epochs=many", "training.epochs"),
    ("training.batch_size=0", "training.batch_size"),
    ("training.micro_batch_size=3", "does not divide training.batch_size"),
    ("training.max_tokens_per_batch=0", "training.max_tokens_per_batch"),
    ("training.learning_rate=0", "training.learning_rate"),
    ("training.learning_rate=fast", "training.learning_rate"),
    ("training.learn_rate=1", "learning_rate"),
    ("training.lr_scheduler=sine", "cosine"),
    ("training.warmup_ratio=1", "training.warmup_ratio"),
    ("training.weight_decay=-1", "training.weight_decay"),
    ("training.max_grad_norm=0", "training.max_grad_norm"),
    ("training.early_stopping_patience=2", "set training.eval_steps"),
    ("training.keep_best=true", "set training.eval_steps"),
    ("training.save_total_limit=0", "training.save_total_limit"),
    ("training.report_to=[email]", "tensorboard"),
    ("evaluation.suites=[]", "evaluation.suites"),
    ("evaluation.suites=[quiz.yaml, quiz.yaml]", "names quiz.yaml twice"),
    ("evaluation.suites=[nosuite]", "nosuite"),
    ("evaluation.arms=[adapter]", "compares `base` with `adapter`"),
    ("evaluation.arms=[base, adapter, magic]", "evaluation.arms"),
    ("evaluation.shots=0", "evaluation.shots"),
    ("merge.base=other", "merge.base"),
    ("merge.shard_size=0", "merge.shard_size"),
    ("nothing", "write field=value"),
    ("data.train=[{source: [}", "not valid YAML"),
]


@pytest.mark.parametrize(("assignment", "part"), FIELDS)
def test_a_field(
    place: Path, capsys: pytest.CaptureFixture[str], assignment: str, part: str
) -> None:
    refused(place, capsys, ["train", "mine.yaml", "--set", assignment], part)


RECIPES = {
    "empty": (b"", "got nothing"),
    "list": (b"- name: a\n", "got a list"),
    "text": (b"name", "a mapping of fields is expected"),
    "tab": (b"name:\n\t- a\n", "line 2"),
    "twice": (b"name: a\nname: b\n", "line 2, name: given twice"),
    "binary": (b"\xff\xfe\x00", "UTF-8"),
    "anchor": (b"name: &a [*a]\n", "anchor"),
    "date": (b"name: 2001-99-99\n", "cannot be read"),
    "unknown": (b"nmae: x\n", "Did you mean `name`"),
    "nothing of it": (b"name: x\n", "backbone"),
}


GOOD = json.dumps({"prompt": "a", "completion": "b"}).encode() + b"\n"
ROWS = {
    "not JSON": (b'{"prompt": "a", \n', ":2"),
    "no UTF-8": (b"\xff\xfe\n", "UTF-8"),
    "a list": (b"[1]\n", ":2"),
    "a number": (b"7\n", ":2"),
    "deep": (b"[" * 100_000 + b"\n", "not valid JSON"),
    "no format": (b'{"question": "a", "reply": "b"}\n', "question"),
    "empty prompt": (b'{"prompt": " ", "completion": "b"}\n', "prompt"),
    "empty text": (b'{"text": ""}\n', "text"),
    "null completion": (b'{"prompt": "a", "completion": null}\n', "completion"),
    "number": (b'{"prompt": 1, "completion": "b"}\n', "prompt"),
    "no turns": (b'{"messages": []}\n', "messages"),
    "a turn alone": (b'{"messages": {"role": "user"}}\n', "messages"),
    "no role": (b'{"messages": [{"content": "a"}]}\n', "role"),
    "a strange role": (b'{"messages": [{"role": "robot", "content": "a"}]}\n', "robot"),
    "no answer": (b'{"messages": [{"role": "user", "content": "a"}]}\n', "assistant"),
    "control token": (b'{"prompt": "<|im_end|>", "completion": "b"}\n', "<|im_end|>"),
}


FILES: dict[str, tuple[str, bytes, str]] = {
    "no gzip": ("rows.jsonl.gz", b"not packed", "decompressed as gzip"),
    "empty lines": ("rows.jsonl", b"\n\n", "no rows"),
    "an object": ("rows.json", b'{"prompt": "a"}', "list"),
    "broken JSON": ("rows.json", b"[{", "JSON"),
    "no table": ("rows.parquet", b"PAR1 and nothing", "rows.parquet"),
    "other columns": ("rows.csv", b"a,b\n1,2\n", "a"),
}


# What is written, its name and content, and what the message says besides the name.
WRITTEN = {
    **{f"recipe: {name}": ("bad.yaml", *case) for name, case in RECIPES.items()},
    **{f"row: {name}": ("rows.jsonl", GOOD + text, part) for name, (text, part) in ROWS.items()},
    **{f"file: {name}": case for name, case in FILES.items()},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file, content, part = WRITTEN[name]
    (place / file).write_bytes(content)
    source = f"data.train=[{{source: {file}}}]"
    reads_it = ["plan", file] if file == "bad.yaml" else ["train", "mine.yaml", "--set", source]
    refused(place, capsys, reads_it, file, part)


LORA = json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})


def adapter(config: str = LORA, weights: bytes = b"") -> Callable[[Path], None]:
    """Writes `theirs`, an adapter of another tool."""

    def write(place: Path) -> None:
        (place / "theirs").mkdir()
        (place / "theirs" / "adapter_config.json").write_text(config)
        (place / "theirs" / "adapter_model.safetensors").write_bytes(weights)

    return write


def untrained(place: Path) -> None:
    """Makes `run`, of a training that wrote its recipe and nothing else."""
    (place / "run").mkdir()
    (place / "mine.yaml").rename(place / "run" / "recipe.yaml")


TO_OUT = ["train", "mine.yaml", "--output", "out"]
QUIZ = ["evaluate", "theirs", "--suite", "quiz.yaml"]
STATES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "output is a file": (lambda place: (place / "out").write_text("x"), TO_OUT, "is a file"),
    "output is not empty": (
        lambda place: [(place / "out").mkdir(), (place / "out" / "a").write_text("x")],
        TO_OUT,
        "--overwrite",
    ),
    "no run": (lambda place: None, ["evaluate", "absent"], "neither a run"),
    "a run without adapter": (untrained, ["merge", "run"], "no adapter_config.json"),
    "a broken configuration": (adapter(config="{"), QUIZ, "adapter_config.json"),
    "no base model": (adapter(), QUIZ, "--backbone"),
    "weights cut off": (
        adapter(weights=b"\x10\x00"),
        [*QUIZ, "--backbone", "{tiny}"],
        "theirs",
    ),
    "no such arm": (adapter(), ["evaluate", "theirs", "--arm", "magic"], "magic"),
    "a release without verdict": (untrained, ["release", "run"], "run"),
    "no manifest": (lambda place: (place / "out").mkdir(), ["verify", "out"], "out"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state(place: Path, tiny: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    prepare, arguments, part = STATES[name]
    prepare(place)
    refused(place, capsys, [argument.format(tiny=tiny) for argument in arguments], part)


def test_they_are_enough() -> None:
    assert len(FIELDS) + len(WRITTEN) + len(STATES) >= 60
