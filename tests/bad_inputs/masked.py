"""Rows, sections and backbones of masked language models."""

from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of

TEXTS = [{"text": f"the number {n} is a number"} for n in range(3)]


def _rows(
    name: str, *says: str, rows: list[dict[str, Any]] = TEXTS, changed: str = "", **own: Any
) -> Case:
    """Return the case of texts, or other rows, with changed sections, and a field by `--set`."""

    def write(place: Place) -> list[str]:
        training = {"batch_size": 2, "objective": "mlm", **own.get("training", {})}
        arguments = plan_of(place, jsonl(place, *rows), **{**own, "training": training})
        return [*arguments, "--set", changed] if changed else arguments

    return Case(name, write, says, REFUSED)


CASES = (
    _rows("masked tokens of a decoder", "backbone.model", "a decoder predicts no masked tokens"),
    _rows(
        "a conversation whose tokens are masked",
        *("rows.jsonl:1", "format"),
        rows=[{"prompt": "a", "completion": "b"}],
    ),
    _rows(
        "masked tokens of another format",
        *("data.train.0.format", "mlm accepts only format: text"),
        changed="data.train.0.format=alpaca",
    ),
    _rows("a probability of nothing", "mlm.probability", mlm={"probability": 0}),
    _rows("a probability of everything", "mlm.probability", mlm={"probability": 1}),
    _rows(
        "shares of masks above one",
        *("add up to 1.2", "Fix: lower one of them"),
        mlm={"mask_share": 0.7, "random_share": 0.5},
    ),
    _rows(
        "tokens that stay as they are",
        "so that the model could copy it",
        mlm={"mask_share": 0, "random_share": 0},
    ),
    _rows(
        "a section of masks for another objective",
        "mlm: is read by the objective mlm only",
        training={"objective": "sft"},
        mlm={},
    ),
    _rows("masked texts that are packed", "data.packing", changed="data.packing=true"),
    _rows(
        "masked texts with replay",
        *("data.replay", "add its texts to data.train"),
        changed="data.replay={source: sums}",
    ),
    _rows("masked texts of turns", "data.train_on", changed="data.train_on=last"),
    _rows(
        "a divergence of masked tokens",
        *("retention.kl", "needs a decoder"),
        retention={"kl": {"source": "sums"}},
    ),
    _rows("noise on masked texts", "neftune", training={"neftune_noise_alpha": 5}),
    _rows(
        "virtual tokens between masked ones",
        *("adapter.method", "no part of the text"),
        adapter={"method": "prompt_tuning"},
    ),
    _rows(
        "single tokens of a tied output layer",
        *("adapter.method", "the output layer is the embedding"),
        adapter={"method": "trainable_tokens", "options": {"token_indices": [3]}},
    ),
    _rows(
        "a second copy of a new head",
        *("adapter.options.modules_to_save", "saved there anyway"),
        adapter={"rank": 2, "options": {"modules_to_save": ["cls"]}},
    ),
    _rows("two merges of an encoder", *("merge.base", "merged once"), merge={"base": "both"}),
    _rows(
        "examples in the prompt of an encoder",
        *("evaluation.arms", "got fewshot", "use base, adapter, merged"),
        evaluation={"suites": ["library-text"], "arms": ["base", "adapter", "fewshot"]},
    ),
)
