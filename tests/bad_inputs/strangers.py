"""Models and templates as strangers write them: broken, hostile, or of another kind."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.bad_inputs.adapters import changed
from tests.bad_inputs.case import SUITE, Case, Place, copied, jsonl, plan_of
from tests.first_tokens import VOCABULARY

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PAIRS = [
    {"prompt": f"Name colour {number}.", "completion": f"Red {number}."} for number in range(9)
]
TEMPLATE = "chat_template.jinja"
# Doubles its steps with each letter of a name.
ENDLESS = r"(.|..)*(.|..)*!"
# A value of a field that is to be left out of the file.
ABSENT = "(absent)"


def copied_without(place: Place, *without: str) -> Path:
    """Return a copy of the model that lacks some files."""
    folder = copied(place.model, place.folder / "model")
    for name in without:
        (folder / name).unlink()
    return folder


def replaced(path: Path, text: str) -> None:
    """Write a file anew, since the model of the session may have the same bytes."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def planned(place: Place, model: Path | str, **sections: Any) -> list[str]:
    return plan_of(place, jsonl(place, *PAIRS), model, **sections)


def with_text(name: str, file: str, text: str, *says: str, status: int = 2) -> Case:
    """Return the case of a file of the model with another text."""

    def write(place: Place) -> list[str]:
        model = copied_without(place)
        replaced(model / file, text)
        return planned(place, model)

    return Case(name, write, says or (file,), status)


def with_templates(templates: Any, *says: str) -> Case:
    """Return the case of a model whose templates are in tokenizer_config.json."""

    def write(place: Place) -> list[str]:
        model = copied_without(place, TEMPLATE)
        found = json.loads((model / TOKENIZER).read_text(encoding="utf-8"))
        replaced(model / TOKENIZER, json.dumps({**found, "chat_template": templates}))
        return planned(place, model)

    return Case(f"templates that are {templates!s:.60}", write, says or ("chat template",))


def with_values(file: str, values: Mapping[str, Any], *says: str, status: int = 2) -> Case:
    """Return the case of a JSON file of the model with some other values."""

    def write(place: Place) -> list[str]:
        model = copied_without(place)
        path = model / file
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = {k: v for k, v in (found | dict(values)).items() if v is not ABSENT}
        replaced(path, json.dumps(found))
        return planned(place, model)

    return Case(f"{file} with {values!s:.120}", write, says or (file,), status)


def with_folder(
    name: str, change: Callable[[Path], None], *says: str, without: tuple[str, ...] = ()
) -> Case:
    """Return the case of a copy of the model that `change` has changed."""

    def write(place: Place) -> list[str]:
        model = copied_without(place, *without)
        change(model)
        return planned(place, model)

    return Case(name, write, says)


def indexed(name: str, weight_map: Any, *says: str) -> Case:
    """Return the case of a model with this index in place of the single file."""

    def change(model: Path) -> None:
        shutil.move(model / WEIGHTS, model.parent / "outside.safetensors")
        (model / INDEX).write_text(json.dumps(weight_map))

    return with_folder(f"an index {name}", change, INDEX, *says)


def gguf_of_many_blocks(path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(100_000)
    writer.add_embedding_length(64)
    writer.add_tensor("output_norm.weight", np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_gguf(name: str, write: Callable[[Path], object], *says: str) -> Case:
    """Return the case of a GGUF file as backbone."""

    def arguments(place: Place) -> list[str]:
        path, suite = place.folder / "model.gguf", place.folder / "suite.yaml"
        write(path)
        suite.write_text(json.dumps(SUITE))
        read = ["--suite", str(suite), "--backbone", str(path)]
        return ["evaluate", str(place.adapter), *read]

    return Case(f"a GGUF file {name}", arguments, ("model.gguf", *says))


def linked(file: str) -> Case:
    def change(model: Path) -> None:
        outside = model.parent / f"outside-{file}"
        shutil.move(model / file, outside)
        (model / file).symlink_to(outside)

    return with_folder(f"a link in place of {file}", change, file, "link out of the model's folder")


def with_options(values: Mapping[str, Any], place: Place) -> Path:
    """Return a copy of the adapter with other values in its configuration."""

    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        found = json.loads(path.read_text()) | {"base_model_name_or_path": str(place.model)}
        path.write_text(json.dumps(found | dict(values)))

    return changed(place, change)


def of_adapter(name: str, values: Mapping[str, Any], *says: str) -> Case:
    """Return the case of an evaluation of an adapter with other values in its configuration."""

    def write(place: Place) -> list[str]:
        suite = place.folder / "suite.yaml"
        suite.write_text(json.dumps(SUITE))
        return ["evaluate", str(with_options(values, place)), "--suite", str(suite)]

    return Case(name, write, says)


def with_template(name: str, template: str, *says: str, status: int = 2) -> Case:
    """Return the case of a model with another chat template."""
    return with_text(f"a template {name}", TEMPLATE, template, *says, status=status)


def of_command(name: str, command: list[str], values: Mapping[str, Any], *says: str) -> Case:
    """Return the case of a merge or a combination of adapters with other values."""

    def write(place: Place) -> list[str]:
        output = ["--output", str(place.folder / "output")]
        return [command[0], str(with_options(values, place)), *command[1:], *output]

    return Case(name, write, says)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


OWN_CODE = {
    "auto_map": {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Tokenizer", None],
    }
}

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)
# A template that writes a conversation, for those whose problem lies elsewhere.
WRITES = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "that loops": (LOOP, "does not end"),
    "that loops on some rows only": (
        f"{{% if messages[-1].content == 'Red 7.' %}}{LOOP}{{% endif %}}{WRITES}",
        "does not end",
    ),
    "that makes ten gigabytes of one letter": ("{{ 'a' * 10**10 }}", "memory"),
    "that makes a list of ten gigabytes": ("{{ ([1] * 10**11)|length }}", "memory"),
    "that fills ten gigabytes": ("{{ 'a'.center(10**10) }}", "memory"),
    "that formats ten gigabytes": ("{{ '%9999999999d' % 1 }}", "memory"),
    "that doubles": (DOUBLING, "memory"),
    "that writes a hundred megabytes": (
        "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
        "writes too much",
    ),
    "that includes another": ("{% include 'other.jinja' %}",),
    "that imports another": ("{% import 'other.jinja' as other %}",),
    "that extends another": ("{% extends '/etc/passwd' %}",),
    "that divides by zero": ("{{ 1 / 0 }}", "ZeroDivisionError", "backbone.model"),
    "that calls itself": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        *("RecursionError", "backbone.model"),
    ),
    "that calls nothing": ("{{ nothing() }}",),
    "that adds texts and numbers": ("{{ 'a' + 1 }}", "TypeError", "backbone.model"),
    "that reads a missing key": ("{{ messages['a'].b.c }}",),
    "that reaches for Python": ("{{ ().__class__.__base__.__subclasses__() }}",),
    "with a range beyond the sandbox": ("{{ range(10**9)|list }}", "OverflowError"),
    "with a syntax error": ("{% for m in messages %}", "backbone.model"),
    "with an unknown tag": ("{% shell ls %}",),
    "with an unknown filter": ("{{ messages|shell }}", "backbone.model"),
    "with 5,000 parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",),
    "with 3,000 nested loops": (
        "{% for m in messages %}" * 3000 + "{% endfor %}" * 3000,
    ),
}  # fmt: skip

CASES = (
    # Templates that do not end, grow, or are programs of another kind.
    *(
        with_template(name, template, *(says or ["chat template"]))
        for name, (template, *says) in TEMPLATES.items()
    ),
    with_templates(7, TOKENIZER, "chat_template"),
    with_templates([{"name": "default", "template": 7}], TOKENIZER, "chat_template"),
    with_templates([{"name": "other", "template": WRITES}], "default"),
    with_templates([{"a": "b"}], TOKENIZER),
    # Code of its own: refused, or left alone, and never asked about.
    with_values(CONFIG, {"model_type": "own", **OWN_CODE}, CONFIG, "custom code"),
    with_values(CONFIG, {"model_type": ABSENT, **OWN_CODE}, CONFIG),
    with_values(CONFIG, {"model_type": "vit", **OWN_CODE}),
    with_values(
        TOKENIZER, {"tokenizer_class": "OwnTokenizer", **OWN_CODE}, TOKENIZER, "custom code"
    ),
    with_values(
        TOKENIZER,
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": "a/b--own.Tokenizer"}},
        *(TOKENIZER, "custom code"),
    ),
    # Files outside of the folder, and files that are no weights.
    *(
        indexed(f"that names {name}", {"weight_map": {"a": name}}, "outside of the model's folder")
        for name in (
            "../outside.safetensors",
            "/etc/outside.safetensors",
            "sub/../../outside.safetensors",
            "./../outside.safetensors",
        )
    ),
    *(
        indexed(f"that names {name!r}", {"weight_map": {"a": name}}, "weight_map")
        for name in ("pytorch_model.bin", "weights.pkl", "", None, 7, ["a"], {"a": "b"})
    ),
    indexed("without weight_map", {"metadata": {}}, "weight_map"),
    indexed("with an empty weight_map", {"weight_map": {}}, "weight_map"),
    indexed("with a list as weight_map", {"weight_map": ["a"]}, "weight_map"),
    indexed("with a text as weight_map", {"weight_map": "a.safetensors"}, "weight_map"),
    indexed("with null as weight_map", {"weight_map": None}, "weight_map"),
    indexed("that is a list", [1], "object"),
    indexed("of a missing file", {"weight_map": {"a": "b.safetensors"}}, "b.safetensors"),
    indexed("with a NUL in a name", {"weight_map": {"a": "a\0b.safetensors"}}),
    indexed(
        "with a name of 10,000 characters", {"weight_map": {"a": "b" * 10000 + ".safetensors"}}
    ),
    *(linked(name) for name in (CONFIG, WEIGHTS, TOKENIZER, "tokenizer.json")),
    with_folder(
        "a link that leads to itself",
        lambda model: (model / GENERATION).symlink_to(model / GENERATION),
        GENERATION,
        without=(GENERATION,),
    ),
    with_folder(
        "an adapter in the folder of a model",
        lambda model: (model / "adapter_config.json").write_text("{}") and None,
        "adapter_config.json",
    ),
    with_values(CONFIG, {"transformers_weights": "../outside.safetensors"}),
    # Files that are no JSON objects, or too deep.
    *(
        with_text(f"{file} that is {kind}", file, text)
        for file in (CONFIG, GENERATION, TOKENIZER, "special_tokens_map.json", INDEX)
        for kind, text in {
            "a list": "[]",
            "null": "null",
            "no JSON": "{",
            "empty": "",
            "nested 10,000 deep": f'{{"a": {nested(10000)}}}',
        }.items()
    ),
    with_text("a tokenizer.json that is a list", "tokenizer.json", "[]"),
    with_text("a tokenizer.json of another shape", "tokenizer.json", '{"version": 2}'),
    with_text("a config.json nested 600 deep", CONFIG, f'{{"model_type": {nested(600)}}}'),
    # Names of models.
    *(
        of_adapter(
            f"a base model's name of {kind}",
            {"base_model_name_or_path": name},
            *("backbone.model", "Fix:"),
        )
        for kind, name in {
            "10,000 characters": "a" * 10_000,
            "1,000 folders": "a/" * 1000,
            "control characters": "a\x1b]0;title\x07\x9b2J\u202eb",
            "NUL": "a\0b",
        }.items()
    ),
    # Regular expressions without end.
    of_adapter(
        "an endless expression in an adapter",
        {"target_modules": ENDLESS},
        *("target_modules", "takes too long"),
    ),
    of_command(
        "an endless expression in a combination",
        ["combine", "--method", "svd", "--rank", "1"],
        {"rank_pattern": {ENDLESS: 2}},
        *("rank_pattern", "takes too long"),
    ),
    # Values of config.json.
    *(
        with_values(CONFIG, {name: value})
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "intermediate_size",
        )
        for value in (-1, 0, "many", 1.5, [2], True)
    ),
    *(
        with_values(CONFIG, {name: None})
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    ),
    with_values(CONFIG, {"num_hidden_layers": 100_000}, CONFIG, "100,000"),
    with_values(CONFIG, {"num_hidden_layers": 10**12}, CONFIG, "1,000,000,000,000"),
    with_values(CONFIG, {"text_config": {"num_hidden_layers": 100_000}}, CONFIG, "100,000"),
    with_values(CONFIG, {"num_labels": 10**9}, CONFIG, "1,000,000,000"),
    with_values(CONFIG, {"num_hidden_layers": 1}, "config.json", "1", "2"),
    with_values(CONFIG, {"num_hidden_layers": 3}, "layers"),
    with_values(CONFIG, {"vocab_size": 100}, "embed_tokens", "100", str(VOCABULARY)),
    with_values(CONFIG, {"hidden_size": 128}, "128", "64"),
    with_values(CONFIG, {"intermediate_size": 10**12}, "1000000000000", "128"),
    *(
        with_values(CONFIG, {"dtype": value})
        for value in ("float99", "Tensor", 7, ["float32"], {"a": "b"}, "float32.x", "nn")
    ),
    *(
        with_values(CONFIG, {"model_type": value})
        for value in ("unheard", None, 7, [], {"a": 1}, "vit", "llama\x1b[31m", "")
    ),
    *(
        with_values(CONFIG, {name: value})
        for name, value in {
            "hidden_act": "unheard",
            "rope_parameters": "linear",
            "tie_word_embeddings": "yes",
            "eos_token_id": "end",
            "rms_norm_eps": "small",
            "architectures": 7,
            "quantization_config": {"quant_method": "unheard"},
            "num_key_value_heads": 3,
            "attention_dropout": "much",
            "head_dim": -4,
        }.items()
    ),
    with_values(CONFIG, {"return_dict": False}, "return_dict"),
    # Tokens that no model has, or this one not.
    *(
        with_values(GENERATION, {"eos_token_id": value}, GENERATION, "eos_token_id")
        for value in (2**70, [2, 2**31], -5)
    ),
    with_values(
        TOKENIZER,
        {"added_tokens_decoder": {"60000": {"content": " colour", "special": False}}},
        "has no embedding of",
    ),
    # What is no file.
    *(
        with_folder(
            f"a pipe in place of {file}",
            lambda model, file=file: os.mkfifo(model / file),
            *says,
            without=(file,),
        )
        for file, *says in ((GENERATION, "no file"), (TEMPLATE, "no file"), (WEIGHTS, "no model"))
    ),
    *(
        with_folder(
            f"a directory in place of {file}",
            lambda model, file=file: (model / file).mkdir(),
            *says,
            without=(file,),
        )
        for file, *says in ((TOKENIZER, "no file"), (TEMPLATE, "no file"), (WEIGHTS, "no model"))
    ),
    of_gguf("of a hundred thousand layers", gguf_of_many_blocks, "block_count", "100000"),
    of_gguf("of four bytes", lambda path: path.write_bytes(b"GGUF")),
    of_gguf("of another version", lambda path: path.write_bytes(b"GGUF" + b"\xff" * 60)),
    of_gguf(
        "of very many tensors",
        lambda path: path.write_bytes(b"GGUF\x03\0\0\0" + (2**60).to_bytes(8, "little") * 2),
    ),
    # Weights that are none.
    *(
        with_folder(
            f"weights that are {name}",
            lambda model, data=data: bool((model / WEIGHTS).write_bytes(data)) and None,
            *(WEIGHTS, "safetensors"),
            without=(WEIGHTS,),
        )
        for name, data in {
            "empty": b"",
            "a pickle": b"\x80\x04\x95" + b"a" * 100,
            "of a header without end": b"\xff" * 64,
            "of a header nested 20,000 deep": (20_000).to_bytes(8, "little") + b"[" * 20_000,
        }.items()
    ),
    # Values of generation_config.json and tokenizer_config.json.
    *(
        with_values(GENERATION, {name: value})
        for name, value in {
            "eos_token_id": "end",
            "pad_token_id": [1, "a"],
            "temperature": "hot",
            "max_length": "long",
            "bos_token_id": {"a": 1},
        }.items()
    ),
    *(
        with_values(TOKENIZER, {name: value})
        for name, value in {
            "tokenizer_class": 7,
            "eos_token": 7,
            "added_tokens_decoder": {"a": {"content": "b"}},
            "model_max_length": "long",
            "extra_special_tokens": 7,
            "padding_side": "up",
        }.items()
    ),
)
