"""Rows of a head that are added or weighed: sections that cannot be meant."""

import json
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import CHAT_ROW, Case, Place, jsonl, plan_of
from tests.classifying import write_suite

CLASSES = {"training": {"batch_size": 2, "objective": "classification"}}
ROWS = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(8)]


def _data(
    name: str, data: dict[str, Any], *says: str, texts: list[Any] | None = None, **own: Any
) -> Case:
    """Return the case of a plan with these fields of `data`; `TEXTS` stands for a file of texts."""

    def write(place: Place) -> list[str]:
        sections = CLASSES | own
        is_chat = sections["training"].get("objective") is None
        rows = [CHAT_ROW] if is_chat else ROWS
        arguments = plan_of(place, jsonl(place, *rows), **sections)
        path = Path(arguments[1])
        file = place.folder / "texts.jsonl"
        lines = [{"text": "a"}] if texts is None else texts
        file.write_text("".join(json.dumps(one) + "\n" for one in lines))
        recipe = json.loads(path.read_text())
        filled = json.loads(json.dumps(data).replace("TEXTS", str(file)))
        recipe["data"] |= {"audit": {"duplicates": 1}} | filled
        path.write_text(json.dumps(recipe))
        return arguments

    return Case(name, write, says)


SOURCE = {"source": "TEXTS"}


def _alignment(name: str, alignment: dict[str, Any], *says: str, **own: Any) -> Case:
    """Return the case of a plan with `training.domain_alignment`."""
    case = _data(name, {}, *(says or ("training.domain_alignment.target",)), **own)

    def write(place: Place) -> list[str]:
        arguments = case.write(place)
        path = Path(arguments[1])
        recipe = json.loads(path.read_text())
        texts = {"source": str(place.folder / "texts.jsonl")}
        recipe["training"]["domain_alignment"] = {"target": [texts]} | alignment
        write_suite(place.folder / "suite.yaml", jsonl(place, *ROWS))
        path.write_text(json.dumps(recipe))
        return arguments

    return Case(case.name, write, case.says)


CASES = (
    _data(
        "pseudo-labels for a language model",
        {"unlabeled": {"texts": [SOURCE]}},
        *("data.unlabeled: ", "works with classification only", "Fix: remove it"),
        training={"batch_size": 2},
    ),
    _data(
        "pseudo-labels of numbers",
        {"unlabeled": {"texts": [SOURCE]}},
        "data.unlabeled: ",
        "works with classification only",
        training={"batch_size": 2, "objective": "regression"},
    ),
    _data(
        "a target domain of a language model",
        {"reweight": {"target": [SOURCE]}},
        "data.reweight: ",
        "works with classification or regression or multi-label only",
        training={"batch_size": 2},
    ),
    _data(
        "changed copies of chats",
        {"augmentation": {}},
        "data.augmentation: ",
        training={"batch_size": 2},
    ),
    _data("unlabelled texts from nowhere", {"unlabeled": {"texts": []}}, "data.unlabeled.texts"),
    _data(
        "unlabelled texts that are not there",
        {"unlabeled": {"texts": [{"source": "gone.jsonl"}]}},
        "data.unlabeled.texts.0.source",
        "gone.jsonl",
    ),
    _data(
        "unlabelled texts that are labelled rows",
        {"unlabeled": {"texts": [SOURCE]}},
        *("data.unlabeled.texts: no text to label", "got 2 texts"),
        texts=[{"text": "Text 1"}, {"text": "text  2"}],
    ),
    _data(
        "a weight of unlabelled texts in a mixture",
        {"unlabeled": {"texts": [{**SOURCE, "weight": 2}]}},
        "data.unlabeled.texts.0.weight",
        "only the sources of data.train are a mixture",
    ),
    _data(
        "a precision of nothing",
        {"unlabeled": {"texts": [SOURCE], "precision": 0}},
        "data.unlabeled.precision",
    ),
    _data(
        "a precision above one",
        {"unlabeled": {"texts": [SOURCE], "precision": 90}},
        "data.unlabeled.precision",
    ),
    _data(
        "no rounds",
        {"unlabeled": {"texts": [SOURCE], "rounds": 0}},
        "data.unlabeled.rounds",
    ),
    _data(
        "pseudo-labels of no weight",
        {"unlabeled": {"texts": [SOURCE], "weight": 0}},
        "data.unlabeled.weight",
    ),
    _data(
        "a target of one text",
        {"reweight": {"target": [SOURCE]}},
        *("data.reweight.target: too few texts", "got 1, needed: 20"),
    ),
    _data(
        "a clip below one",
        {"reweight": {"target": [SOURCE], "clip": 0.5}},
        "data.reweight.clip",
    ),
    _data("one fold", {"cross_validation": 1}, "data.cross_validation"),
    _data(
        "folds of a language model",
        {"cross_validation": 3},
        "data.cross_validation: ",
        "works with classification or regression or multi-label only",
        training={"batch_size": 2},
    ),
    _alignment(
        "an alignment of frozen features",
        {},
        "training.domain_alignment: ",
        "adapter.method",
        adapter={"method": "head"},
    ),
    _alignment(
        "an alignment of a language model",
        {},
        "works with classification or regression or multi-label only",
        training={"batch_size": 2},
    ),
    _alignment("an alignment to nothing", {"target": []}, "training.domain_alignment.target"),
    _alignment("an alignment to a file that is not there", {"target": [{"source": "no.jsonl"}]}),
    _alignment(
        "an alignment to fewer texts than a step has rows",
        {},
        *("training.domain_alignment.target: fewer texts", "got 1, training.batch_size is 2"),
    ),
    _alignment(
        "a covariance of a part of the step",
        {"method": "coral"},
        *("training.micro_batch_size: ", "whole step"),
        training=CLASSES["training"] | {"micro_batch_size": 1},
    ),
    _alignment(
        "a covariance of one row",
        {"method": "coral"},
        "training.batch_size: coral needs several rows",
        training=CLASSES["training"] | {"batch_size": 1},
    ),
    _alignment("a reversed reversal", {"weight": -1}, "training.domain_alignment.weight"),
    _data("no copies", {"augmentation": {"copies": 0}}, "data.augmentation.copies"),
    _data(
        "all words left out",
        {"augmentation": {"dropout": 1}},
        "data.augmentation.dropout",
    ),
    _data(
        "copies without a change",
        {"augmentation": {"dropout": 0, "swaps": 0}},
        *("data.augmentation", "changes nothing", "Fix: set one of them"),
    ),
    _data(
        "paraphrases by nobody",
        {"augmentation": {"paraphrase": {}}},
        *("data.augmentation.paraphrase.writer: missing",),
    ),
    _data(
        "paraphrases by a model that is not there",
        {"augmentation": {"paraphrase": {"writer": {"model": "./gone.gguf"}}}},
        *("data.augmentation.paraphrase.writer.model: ./gone.gguf: no such file",),
    ),
    _data(
        "paraphrases by an encoder",
        {"augmentation": {"paraphrase": {"writer": {"model": "all-minilm-l6-v2"}}}},
        *("data.augmentation.paraphrase.writer.model: ", "not the weights of a language model"),
    ),
    _data(
        "a similarity above that of the same text",
        {"augmentation": {"paraphrase": {"writer": {"model": "x"}, "similarity": 101}}},
        *("data.augmentation.paraphrase.similarity", "less than 100"),
    ),
    _data(
        "the arm plain of plain rows",
        {},
        *("evaluation.arms", "plain is the training without data.unlabeled, "),
        evaluation={"arms": ["base", "adapter", "plain"]},
    ),
    _data(
        "the arm plain of a language model",
        {},
        *("evaluation.arms", "plain is a head without added rows"),
        training={"batch_size": 2},
        evaluation={"arms": ["base", "adapter", "plain"]},
    ),
)
