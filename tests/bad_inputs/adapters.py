"""Backbones and adapters: references, weight files, key names and tokenizers of other tools."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.case import CHAT_ROW, Case, Place, jsonl, plan_of

NO_FILE = ("backbone.model", "no such file or directory", "Fix:")


def plan_on(place: Place, reference: str) -> list[str]:
    """Return the arguments that plan a small recipe on the backbone of that name."""
    arguments = plan_of(place, jsonl(place, CHAT_ROW))
    recipe = Path(arguments[1])
    recipe.write_text(recipe.read_text().replace(str(place.model), reference))
    return arguments


def plan_on_reference(name: str, reference: str, *says: str, status: int = 2) -> Case:
    """Return the case of a backbone's reference; `{folder}` stands for the case's folder."""
    return Case(
        name,
        lambda place: plan_on(place, reference.replace("{folder}", str(place.folder))),
        says or NO_FILE,
        status,
    )


REFERENCES = (
    plan_on_reference("a mistyped gguf path", "{folder}/model.gguf"),
    plan_on_reference("a gguf name without a folder", "model-q8_0.gguf"),
    plan_on_reference("a gguf name in capitals", "MODEL.GGUF"),
    plan_on_reference("a gguf file in a folder that looks like an owner", "models/tiny.gguf"),
    plan_on_reference("a relative path", "./models/tiny"),
    plan_on_reference("a path of the folder above", "../tiny"),
    plan_on_reference("a path in the home folder", "~/no-such-model"),
    plan_on_reference("a path in the home folder of nobody", "~nobody-here/model"),
    plan_on_reference("an absolute path", "/no/such/model"),
    plan_on_reference("an absolute path of one part", "/model"),
    plan_on_reference("a weight file by name", "tiny/model.safetensors"),
    plan_on_reference("a hidden folder", ".models/tiny"),
    plan_on_reference("a path of three parts", "no/such/model", "backbone.model", "neither a file"),
    plan_on_reference("a model name with a space", "my model", "backbone.model", "neither a file"),
    plan_on_reference("a folder without a model", "{folder}", "without config.json"),
    plan_on_reference("a pickle that is not there", "{folder}/rows.jsonl.bin"),
    plan_on_reference("a file that is no gguf", "{folder}/rows.jsonl", "not a GGUF file"),
    plan_on_reference("a hub id", "nobody/no-such-model", "not on this machine", status=0),
)

Change = Callable[[Path], object]
WEIGHTS = "adapter_model.safetensors"


def changed(place: Place, change: Change, name: str = "adapter") -> Path:
    """Copy the adapter and change the copy."""
    adapter = place.folder / name
    shutil.copytree(place.adapter, adapter)
    change(adapter)
    return adapter


def on_adapter(name: str, command: str, change: Change, *says: str, status: int = 2) -> Case:
    """Return the case of a command on a changed adapter; `combine` gets the sound one as well."""

    def write(place: Place) -> list[str]:
        adapter = str(changed(place, change))
        if command == "evaluate":
            suite = plan_of(place, jsonl(place, CHAT_ROW)) and place.folder / "suite.yaml"
            return ["evaluate", adapter, "--suite", str(suite)]
        others = [str(place.adapter)] if command == "combine" else []
        return [command, adapter, *others, "--output", str(place.folder / "output")]

    return Case(name, write, says, status)


def renamed(old: str, new: str) -> Change:
    """Return a change of the tensors' names."""

    def change(adapter: Path) -> None:
        path = adapter / WEIGHTS
        tensors = load_file(path)
        save_file({key.replace(old, new): tensor for key, tensor in tensors.items()}, path)

    return change


def of_tensors(function: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Return a change of the first tensor."""

    def change(adapter: Path) -> None:
        path = adapter / WEIGHTS
        tensors = load_file(path)
        first = min(tensors)
        save_file(tensors | {first: function(tensors[first]).contiguous()}, path)

    return change


def without_index(place: Place) -> list[str]:
    """Copy the model, named as the first of two shards."""
    model = place.folder / "model"
    shutil.copytree(place.model, model)
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    return plan_of(place, jsonl(place, CHAT_ROW), model)


def as_shards(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model-00001-of-00002.safetensors")


def as_pickle(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    torch.save({}, adapter / "adapter_model.bin")


def cut(adapter: Path) -> None:
    path = adapter / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0, 0] = float("nan")
    return tensor


INNER = "base_model.model.model."
COMPILED = ("adapter_model.safetensors", "take `_orig_mod.` out of the names", "Fix:")
DDP = ("adapter_model.safetensors", "take `module.` out of the names", "Fix:")
NOT_FINITE = ("adapter_model.safetensors", "infinite or NaN", "lora_A.weight", "Fix:")
UNREADABLE = ("adapter_model.safetensors", "cannot be read", "Fix: copy or save")
WEIGHT_FILES = (
    *(
        on_adapter(f"names of a compiled model, {command}", command, change, *COMPILED)
        for command, change in (
            ("evaluate", renamed(INNER, "base_model.model._orig_mod.model.")),
            ("merge", renamed(INNER, "_orig_mod.base_model.model.model.")),
            ("combine", renamed("self_attn.", "_orig_mod.self_attn.")),
        )
    ),
    *(
        on_adapter(f"names of a model in DDP, {command}", command, change, *DDP)
        for command, change in (
            ("evaluate", renamed("base_model.", "module.base_model.")),
            ("merge", renamed(INNER, "base_model.model.module.model.")),
            ("combine", renamed(INNER, "base_model.module.model.")),
        )
    ),
    on_adapter(
        "names of a model in FSDP",
        "evaluate",
        renamed("layers.0.", "layers.0._fsdp_wrapped_module."),
        "_fsdp_wrapped_module.",
        "FSDP",
    ),
    *(
        on_adapter(f"a NaN, {command}", command, of_tensors(nan), *NOT_FINITE)
        for command in ("evaluate", "merge", "combine")
    ),
    on_adapter("an infinity", "evaluate", of_tensors(lambda t: t / 0), *NOT_FINITE),
    on_adapter(
        "factors of whole numbers", "evaluate", of_tensors(torch.Tensor.int), "int32", "lora_A"
    ),
    on_adapter(
        "a tensor that was not gathered", "evaluate", of_tensors(lambda t: t[:0, 0]), "empty"
    ),
    on_adapter(
        "a factor of another shape", "evaluate", of_tensors(lambda t: t[:, 1:]), "does not fit"
    ),
    *(
        on_adapter(f"a truncated file, {command}", command, cut, *UNREADABLE)
        for command in ("evaluate", "merge", "combine")
    ),
    *(
        on_adapter(
            f"a file of no bytes, {command}",
            command,
            lambda adapter: (adapter / WEIGHTS).write_bytes(b""),
            *UNREADABLE,
        )
        for command in ("evaluate", "combine")
    ),
    *(
        on_adapter(
            f"a file without tensors, {command}",
            command,
            lambda adapter: save_file({}, adapter / WEIGHTS),
            "adapter_model.safetensors",
            "no tensor",
        )
        for command in ("evaluate", "combine")
    ),
    *(
        on_adapter(f"an adapter in a pickle, {command}", command, as_pickle, "adapter_model.bin")
        for command in ("evaluate", "merge", "combine")
    ),
    *(
        on_adapter(f"shards of an adapter, {command}", command, as_shards, "shards", "00001-of")
        for command in ("evaluate", "combine")
    ),
    on_adapter(
        "an adapter without weights",
        "merge",
        lambda adapter: (adapter / WEIGHTS).unlink(),
        "no adapter_model.safetensors",
    ),
    Case("shards of a model without their index", without_index, ("index.json is missing",)),
)


def plan_on_gguf(place: Place, model: object, pre: object) -> list[str]:
    """Write the metadata of a GGUF file and return the arguments that plan on it."""
    from gguf import GGUFValueType, GGUFWriter

    path = place.folder / "model.gguf"
    writer = GGUFWriter(path, "llama")
    for key, value in (("tokenizer.ggml.model", model), ("tokenizer.ggml.pre", pre)):
        if value is not None:
            writer.add_key_value(key, value, GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return plan_on(place, str(path))


def on_gguf(name: str, pre: object, *says: str, model: object = "gpt2") -> Case:
    """Return the case of a GGUF file with a name of its pre-tokenizer; `None` for no name."""
    return Case(name, lambda place: plan_on_gguf(place, model, pre), says)


def no_name(got: str) -> tuple[str, ...]:
    return ("model.gguf", "tokenizer.ggml.pre", f"(got {got} with", "known: gpt-2", "Fix:")


PRE_TOKENIZERS = (
    on_gguf("a gguf without a pre-tokenizer", None, *no_name("nothing")),
    *(
        on_gguf(f"a gguf with a pre-tokenizer {kind}", value, *no_name(repr(value)))
        for kind, value in {
            "of no characters": "",
            "named default": "default",
            "in capitals": "LLAMA-BPE",
            "with a space": "qwen2 ",
            "that nobody knows": "my-own-bpe",
            "that is a number": 2,
            "that is a list": ["gpt-2"],
            "of llama.cpp that splits otherwise": "falcon",
            "of llama.cpp with rules in its code": "kimi-k2",
        }.items()
    ),
    on_gguf("a gguf with a vocabulary of another kind", "default", "wordpiece", model="wordpiece"),
    on_gguf("a sentencepiece gguf without tokens", None, "cannot read this GGUF", model="llama"),
)


def bringing(name: str, value: object) -> Change:
    """Return a change that writes a file of a tokenizer beside the weights."""

    def change(adapter: Path) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        (adapter / name).write_bytes(text.encode("latin-1"))

    return change


TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
UNUSABLE = {
    "that is cut off": "{% for m in messages %}{{ m.content",
    "that calls what is not there": "{{ messages.render() }}",
    "that refuses every chat": "{{ raise_exception('no chats') }}",
    "without an end of the turn": "{% for m in messages %}{{ m.content }}\n{% endfor %}",
}
TOKENIZERS = (
    *(
        on_adapter(
            f"a chat template {kind}",
            command,
            bringing(TEMPLATE, template),
            *(TEMPLATE, "chat template of the adapter cannot be used", "Fix:"),
        )
        for (kind, template), command in zip(
            UNUSABLE.items(), ("evaluate", "merge", "evaluate", "merge"), strict=True
        )
    ),
    on_adapter(
        "a chat template in another encoding",
        "evaluate",
        bringing(TEMPLATE, "\xe4{{ messages }}"),
        *(TEMPLATE, "cannot be read", "UTF-8"),
    ),
    *(
        on_adapter(f"a tokenizer's configuration {kind}", "merge", bringing(CONFIG, value), *says)
        for kind, value, says in (
            ("cut off", '{"chat_template": "', (CONFIG,)),
            ("that is a list", [], (CONFIG,)),
            ("with a template that is a number", {"chat_template": 1}, (CONFIG, "got 1")),
            (
                "with templates of which none is the default",
                {"chat_template": [{"name": "rag", "template": "x"}]},
                (CONFIG, "(got rag)", "Fix:"),
            ),
        )
    ),
    *(
        on_adapter(
            f"a tokenizer {kind}",
            "evaluate",
            bringing("tokenizer.json", value),
            *("tokenizer.json", "cannot load the adapter's tokenizer", "Fix:"),
        )
        for kind, value in {
            "cut off": '{"version": "1.0", "added',
            "of no vocabulary": {"version": "1.0"},
            "that is a list": [],
        }.items()
    ),
    on_adapter(
        "a tokenizer that knows two words",
        "evaluate",
        bringing(
            "tokenizer.json",
            {
                "version": "1.0",
                "added_tokens": [],
                "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
            },
        ),
        *("tokenizer.json", "have other ids than in", "--backbone"),
    ),
)


def combined_with(*templates: str) -> Callable[[Place], list[str]]:
    """Return a function that writes adapters with chat templates, to be combined."""

    def write(place: Place) -> list[str]:
        changes = [bringing(TEMPLATE, one) if one else lambda _: None for one in templates]
        adapters = [
            str(changed(place, change, f"adapter-{number}"))
            for number, change in enumerate(changes)
        ]
        return ["combine", *adapters, "--output", str(place.folder / "output")]

    return write


COMBINED = (
    Case(
        "adapters of two chat templates",
        combined_with("{{ 1 }}", "{{ 2 }}"),
        ("adapter-1: brings another chat template than", "adapter-0", "Fix:"),
    ),
    Case(
        "an adapter with a chat template and one without",
        combined_with("", "{{ 1 }}"),
        ("adapter-1: its tokenizer goes with the combined adapter", "adapter-0"),
        status=0,
    ),
)

CASES = (*COMBINED, *TOKENIZERS, *PRE_TOKENIZERS, *REFERENCES, *WEIGHT_FILES)
