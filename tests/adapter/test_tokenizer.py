"""Tokenizers and chat templates that adapters bring beside their weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_kit.adapter.tokenizer import with_adapter_tokenizer
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.rows import Message
from lora_kit.data.tokenization import end_of_turn_id, tokenize_prompt
from lora_kit.evaluation.arms.models import base_identity
from lora_kit.pipeline.merging import merge
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import open_run, open_subject
from lora_kit.runtime.errors import AdapterError
from tests.first_tokens import VOCABULARY
from tests.merging.exporting.test_vocabulary import ADDED, BOTH, saved
from tests.merging.in_process import in_this_process
from tests.two_stacks import WRITERS

OTHER = (
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)

Write = Callable[[Path, Path], object]


def adapter_of(tiny: Path, directory: Path, **options: Any) -> Path:
    saved(tiny, directory, **options)
    return directory


def spec(tiny: Path) -> BackboneSpec:
    return BackboneSpec(model=str(tiny), quantization="none", dtype="float32")


def tokenizer_of(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def whole(tiny: Path, adapter: Path, **changes: Any) -> None:
    """Save the backbone's tokenizer with changed attributes, as TRL does."""
    tokenizer = tokenizer_of(tiny)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(adapter)


def in_configuration(tiny: Path, adapter: Path, template: object = OTHER) -> None:
    """Save a tokenizer as transformers 4 does, with the template in the configuration."""
    whole(tiny, adapter)
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    path = adapter / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def alone(name: str, value: object) -> Write:
    text = value if isinstance(value, str) else json.dumps(value)
    return lambda _, adapter: (adapter / name).write_text(text)


BRINGING: dict[str, Write] = {
    "a template in a file": alone("chat_template.jinja", OTHER),
    "a template in a configuration": alone("tokenizer_config.json", {"chat_template": OTHER}),
    "a template of a processor": alone("chat_template.json", {"chat_template": OTHER}),
    "several templates": alone(
        "tokenizer_config.json",
        {
            "chat_template": [
                {"name": "tool_use", "template": "tools"},
                {"name": "default", "template": OTHER},
            ]
        },
    ),
    "a template among further ones": lambda _, adapter: (
        (adapter / "additional_chat_templates").mkdir(),
        (adapter / "additional_chat_templates" / "rag.jinja").write_text("x"),
        (adapter / "chat_template.jinja").write_text(OTHER),
    ),
    "a tokenizer": lambda tiny, adapter: whole(tiny, adapter, chat_template=OTHER),
    "a tokenizer of transformers 4": in_configuration,
}


@pytest.mark.parametrize("bring", BRINGING.values(), ids=BRINGING)
def test_a_template_of_the_adapter_is_used(
    tiny: Path, tiny_backbone: Backbone, tmp_path: Path, bring: Write, capsys: Any
) -> None:
    assert with_adapter_tokenizer(tiny_backbone, tmp_path) is tiny_backbone
    bring(tiny, tmp_path)
    own = with_adapter_tokenizer(tiny_backbone, tmp_path)
    assert own.tokenizer.get_chat_template() == OTHER
    assert base_identity(own) != base_identity(tiny_backbone)
    assert "chat template" in " ".join(capsys.readouterr().err.split())


def test_a_merge_holds_the_template_that_it_was_compared_with(tiny: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tiny, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text(OTHER)
    with in_this_process():
        merge(adapter, tmp_path / "merged", backbone=spec(tiny))
    found, base = tokenizer_of(tmp_path / "merged"), tokenizer_of(tiny)
    assert found.chat_template == OTHER
    assert found.get_vocab() == base.get_vocab()
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    own = open_subject(adapter, spec(tiny)).backbone
    assert record["tokenizer"] == own.adapter_tokenizer
    assert end_of_turn_id(found) == end_of_turn_id(own.tokenizer)


SAME: dict[str, Write] = {
    "a copy": whole,
    "a copy of transformers 4": lambda tiny, adapter: in_configuration(
        tiny, adapter, tokenizer_of(tiny).chat_template
    ),
    "another padding token": lambda tiny, adapter: whole(tiny, adapter, pad_token="<|im_start|>"),
    "another side of the padding": lambda tiny, adapter: whole(
        tiny, adapter, padding_side="left", model_max_length=77
    ),
    "a vocabulary without a template": lambda tiny, adapter: shutil.copy(
        tiny / "tokenizer.json", adapter
    ),
}


@pytest.mark.parametrize("bring", SAME.values(), ids=SAME)
def test_the_same_tokenizer_changes_nothing(
    tiny: Path, tiny_backbone: Backbone, tmp_path: Path, bring: Write, capsys: Any
) -> None:
    bring(tiny, tmp_path)
    assert with_adapter_tokenizer(tiny_backbone, tmp_path) is tiny_backbone
    assert "tokenizer" not in capsys.readouterr().err


def test_added_tokens_up_to_the_grown_embeddings_are_used(
    tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    adapter = adapter_of(tiny, tmp_path / "adapter", rows=3, modules_to_save=BOTH)
    subject = open_subject(adapter, spec(tiny))
    added = "3 tokens that it adds (<colour>, <shape>, <size>)"
    assert added in subject.facts["Tokenizer"]
    assert added in " ".join(capsys.readouterr().err.split())
    ids = tokenize_prompt([Message("user", "a <shape>")], subject.backbone.tokenizer)
    assert VOCABULARY + 1 in ids
    assert (
        subject.model(
            input_ids=subject.backbone.tokenizer("a <size>", return_tensors="pt").input_ids
        ).logits.shape[-1]
        == VOCABULARY + 3
    )


def test_a_padding_token_without_a_row_is_no_reason_to_refuse(
    tiny: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(tiny)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    own = with_adapter_tokenizer(tiny_backbone, tmp_path).tokenizer
    assert own.pad_token_id == tiny_backbone.tokenizer.pad_token_id


def test_a_reserved_token_may_be_given_a_name(
    tiny: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    whole(tiny, tmp_path)
    for path in (tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"):
        path.write_text(path.read_text().replace("<file_sep>", "<my_tool>"))
    own = with_adapter_tokenizer(tiny_backbone, tmp_path).tokenizer
    assert own("<my_tool>").input_ids == tiny_backbone.tokenizer("<file_sep>").input_ids


def test_a_run_is_trained_with_the_tokenizer_of_the_backbone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = SimpleNamespace(backbone=spec(tiny), evaluation=EvaluationSpec())
    monkeypatch.setattr(RunDirectory, "load_recipe", lambda _: recipe)
    adapter = adapter_of(tiny, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text(OTHER)
    with pytest.raises(AdapterError, match=r"adapter: a run is trained .*Fix: remove"):
        open_run(tmp_path)


def other_ids(tiny: Path, adapter: Path) -> None:
    whole(tiny, adapter)
    path = adapter / "tokenizer.json"
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    first, second = "Ġthe", "Ġof"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(value))


def without_rows(tiny: Path, adapter: Path) -> None:
    tokenizer = tokenizer_of(tiny)
    tokenizer.add_tokens(ADDED)
    tokenizer.save_pretrained(adapter)


def cut(tiny: Path, adapter: Path) -> None:
    whole(tiny, adapter)
    path = adapter / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-500])


REFUSED: dict[str, tuple[Write, str]] = {
    "a template of half a block": (
        alone("chat_template.jinja", "{% for m in messages %}"),
        r"chat_template\.jinja: .*cannot be used.*Fix:",
    ),
    "a template with an unknown filter": (
        alone("chat_template.jinja", "{{ messages | sorted_by_role }}"),
        r"chat_template\.jinja: .*cannot be used.*sorted_by_role.*Fix:",
    ),
    "a template that adds a text to nothing": (
        alone("chat_template.jinja", "{{ messages[0].content + messages[0].nothing }}"),
        r"chat_template\.jinja: .*cannot be used.*Fix:",
    ),
    "a template that ends no turn": (
        alone("chat_template.jinja", OTHER.replace("<|im_end|>", "\n")),
        r"chat_template\.jinja: .*without a special token.*Fix:",
    ),
    "a template that is no text": (
        lambda _, adapter: (adapter / "chat_template.jinja").write_bytes(b"\xff\xfe{{ 1 }}"),
        r"chat_template\.jinja: cannot be read.*Fix:",
    ),
    "a template that is a number": (
        alone("tokenizer_config.json", {"chat_template": 3}),
        r"tokenizer_config\.json: chat_template: must be a text \(got 3\)",
    ),
    "templates without a default": (
        alone("tokenizer_config.json", {"chat_template": {"rag": "a", "tool_use": "b"}}),
        r"tokenizer_config\.json: chat_template: .*\(got rag, tool_use\)",
    ),
    "a configuration that is no JSON": (
        alone("tokenizer_config.json", "{'chat_template': 'x'}"),
        r"tokenizer_config\.json: .*",
    ),
    "a configuration that is a list": (
        alone("tokenizer_config.json", []),
        r"tokenizer_config\.json: .*",
    ),
    "a truncated vocabulary": (cut, r"tokenizer\.json: .*Fix:"),
    "other ids of two tokens": (
        other_ids,
        r"tokenizer\.json: 2 tokens have other ids than in .*\(first: 'Ġof' has \d+ there.*Fix:",
    ),
    "added tokens without rows": (
        without_rows,
        rf"tokenizer\.json: 3 tokens .*\(first: '<colour>' has id {VOCABULARY}; {VOCABULARY} "
        r"rows\)\. Fix:",
    ),
}


@pytest.mark.parametrize(("bring", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_cannot_be_used_is_refused_by_file(
    tiny: Path, tiny_backbone: Backbone, tmp_path: Path, bring: Write, message: str
) -> None:
    bring(tiny, tmp_path)
    with pytest.raises(AdapterError, match=message):
        with_adapter_tokenizer(tiny_backbone, tmp_path)


def test_a_template_for_an_encoder_decoder_is_named_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = spec(WRITERS["t5"](tmp_path / "t5"))
    backbone = load(resolve(chosen), chosen)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "chat_template.jinja").write_text(OTHER)
    assert with_adapter_tokenizer(backbone, tmp_path / "adapter") is backbone
    assert "adapter: its chat template is not used" in capsys.readouterr().err
