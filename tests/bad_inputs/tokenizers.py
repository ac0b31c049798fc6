"""Tokenizers that lack tokens, have tokens that the model has not, or several templates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, copied, jsonl, plan_of
from tests.first_tokens import VOCABULARY

ROW = {"prompt": "Name a colour.", "completion": "Red."}
TEXT = {"text": "The river ends in the sea."}
# Templates of which only one writes tools.
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "<|im_start|>system\nYou may call: {{ tools | tojson }}<|im_end|>\n" + PLAIN
TOOL = {
    "type": "function",
    "function": {"name": "tides", "description": "x", "parameters": {"type": "object"}},
}
Change = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]


def changed_tokenizer(place: Place, change: Change) -> Path:
    """Return a copy of the tiny model with other tokenizer files.

    Args:
        place: where the copy is written.
        change: function that changes tokenizer_config.json, tokenizer.json and config.json.
    """
    model = copied(place.model, place.folder / "model")
    names = ("tokenizer_config.json", "tokenizer.json", "config.json")
    files = [json.loads((model / name).read_text()) for name in names]
    for name in ("chat_template.jinja", "generation_config.json"):
        (model / name).unlink()
    files[0]["chat_template"] = PLAIN
    change(*files)
    for name, content in zip(names, files, strict=True):
        (model / name).write_text(json.dumps(content))
    return model


def _plan(name: str, change: Change, row: object, *says: str, status: int = REFUSED) -> Case:
    def write(place: Place) -> list[str]:
        return plan_of(place, jsonl(place, row, row), changed_tokenizer(place, change))

    return Case(name, write, says, status)


def _added(content: str, number: int = VOCABULARY, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": special, **flags}


def _with_pad(config: Any, tokens: Any, _: Any) -> None:
    tokens["added_tokens"].append(_added("<pad>"))
    config["pad_token"] = "<pad>"


def _with_end(config: Any, tokens: Any, _: Any) -> None:
    tokens["added_tokens"].append(_added("</s>"))
    config["eos_token"] = "</s>"


def _with_chat_token(config: Any, tokens: Any, _: Any) -> None:
    tokens["added_tokens"].append(_added("<|turn|>"))
    config["chat_template"] = PLAIN.replace("<|im_start|>", "<|turn|>")


def _with_user_token(config: Any, tokens: Any, _: Any) -> None:
    tokens["added_tokens"].append(_added("[name]", special=False))


def _with_image_token(config: Any, tokens: Any, _: Any) -> None:
    tokens["added_tokens"].append(_added("<image>"))


def _with_more_words(config: Any, tokens: Any, _: Any) -> None:
    tokens["model"]["vocab"]["zzzzzz"] = 50000


def _small_window(config: Any, tokens: Any, model: Any) -> None:
    model["max_position_embeddings"] = 16


def _without(*names: str, end: int | None = None) -> Change:
    def change(config: Any, tokens: Any, model: Any) -> None:
        for name in names:
            del config[name]
        model["eos_token_id"] = end

    return change


def _without_any_end(config: Any, tokens: Any, model: Any) -> None:
    _without("eos_token", "pad_token")(config, tokens, model)


def _templates(*names: str) -> Change:
    def change(config: Any, tokens: Any, _: Any) -> None:
        config["chat_template"] = [
            {"name": name, "template": TOOLS if name == "tool_use" else PLAIN} for name in names
        ]

    return change


# The first id that has no row in the embeddings of the tiny model, and its rows.
PAST = (f"id {VOCABULARY}", f"{VOCABULARY} rows")

CASES = (
    _plan("a pad token past the embedding", _with_pad, ROW, "<pad>", *PAST),
    _plan("an end token past the embedding", _with_end, ROW, "</s>", *PAST),
    _plan("a chat token past the embedding", _with_chat_token, ROW, "<|turn|>", *PAST),
    _plan("a user's token past the embedding", _with_user_token, ROW, "[name]", *PAST),
    _plan(
        "a word past the embedding",
        _with_more_words,
        ROW,
        "zzzzzz",
        "id 50000",
        PAST[1],
    ),
    _plan(
        "a text with a token of images past the embedding",
        _with_image_token,
        {"text": "A <image> of the sea."},
        "rows.jsonl:1",
        "<image>",
        *PAST,
    ),
    _plan("a token of images that no row has", _with_image_token, ROW, "Red.", status=0),
    _plan(
        "a row longer than the window that the model was made for",
        _small_window,
        {**ROW, "completion": "Red and blue. " * 8},
        "2 of 2 examples are longer than the window of 16 tokens",
        "Set data.max_length: 16",
        status=0,
    ),
    _plan(
        "neither end nor padding token",
        _without_any_end,
        ROW,
        "no eos_token",
        "tokenizer_config.json",
    ),
    _plan("no end token", _without("eos_token"), ROW, "no eos_token", "tokenizer_config.json"),
    _plan(
        "an end token that only config.json names",
        _without("eos_token", "pad_token", end=2),
        ROW,
        "Red.",
        status=0,
    ),
    _plan("no padding token", _without("pad_token", end=2), TEXT, "river", status=0),
    _plan(
        "several templates without a default",
        _templates("rag", "tool_use"),
        ROW,
        "none is named default",
        "rag, tool_use",
    ),
    _plan(
        "a list of templates, of which default is taken",
        _templates("default", "tool_use"),
        ROW,
        "<|im_start|>user Name a colour.<|im_end|>",
        status=0,
    ),
    _plan(
        "a list of templates, of which tool_use is taken",
        _templates("default", "tool_use"),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        | {"tools": [TOOL]},
        "You may call:",
        "tides",
        status=0,
    ),
    _plan(
        "tools that no template writes",
        _templates("default"),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        | {"tools": [TOOL]},
        "rows.jsonl:1",
        "got `tools`",
    ),
)
