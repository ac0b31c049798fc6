"""Sampled answers: drawn with a seed, scored by their mean, in every engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engines.completions import Completions
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.requests import SampledRequest, Sampling
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import RecipeError

TASK: dict[str, Any] = {"name": "follow", "kind": "instructions", "source": "instructions"}
TASK |= {"limit": 6, "max_new_tokens": 5, "margin": 0.9}


def suite(**fields: Any) -> Suite:
    return Suite.model_validate({"name": "keep", "role": "retention", "tasks": [TASK | fields]})


def outcomes(backbone: Backbone, **fields: Any) -> list[Outcome]:
    [work] = plan_work([suite(**fields)], backbone)
    scorer = Scorer(backbone.model, backbone.tokenizer, stop_token_ids(backbone))
    requests = [item.request for item in work.task.items]
    return compute_outcomes(scorer, requests, BatchLayout(tree=False, prefix=False))


def test_samples_are_drawn_by_the_seed(tiny_backbone: Backbone) -> None:
    drawn = outcomes(tiny_backbone, samples=3)
    assert {len(one.samples) for one in drawn} == {3}
    assert any(len(set(one.samples)) > 1 for one in drawn)
    assert drawn == outcomes(tiny_backbone, samples=3)
    cold = outcomes(tiny_backbone, samples=2, temperature=1e-3)
    greedy = outcomes(tiny_backbone)
    assert [one.samples for one in cold] == [(one.text, one.text) for one in greedy]
    assert outcomes(tiny_backbone, samples=2, top_p=1e-6)[0].samples[0] == greedy[0].text


def test_the_score_is_the_mean_of_the_samples(tiny_backbone: Backbone) -> None:
    rows = {"id": "a", "prompt": "Say A.", "checks": [{"kind": "choice", "value": ["A"]}]}
    from lora_kit.evaluation.tasks import build_task

    path = Path(tiny_backbone.files.directory).parent / "sampled-rows.jsonl"
    path.write_text(json.dumps(rows) + "\n")
    spec = suite(source=str(path), samples=4, limit=None).tasks[0]
    assert not spec.is_binary
    task = build_task(spec, tiny_backbone.tokenizer, 0)
    request = task.items[0].request
    assert isinstance(request, SampledRequest)
    assert request.sampling == Sampling(4, 1.0, 1.0, 0)
    graded = task.grade(task.items[0], Outcome(samples=("A", "B", "A", "")))
    assert graded.score == 0.5
    assert graded.measures == {"pass@4": 1.0}
    assert graded.output.split("\n--- next sample ---\n") == ["A", "B", "A", ""]
    none = task.grade(task.items[0], Outcome(samples=("B", "B", "B", "B")))
    assert (none.score, none.measures["pass@4"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "loss", "source": "python-reference", "samples": 2}, "takes neither `samples`"),
        ({"top_p": 0.9}, "`top_p` has no effect"),
        ({"samples": 0}, "samples"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(
    fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "keep.yaml"
    task = {name: value for name, value in (TASK | fields).items() if name != "max_new_tokens"}
    path.write_text(yaml.safe_dump({"name": "keep", "role": "retention", "tasks": [task]}))
    with pytest.raises(RecipeError, match=reason):
        Suite.load(path)


def test_the_digest_of_a_suite_without_samples_is_that_of_earlier_versions() -> None:
    assert suite().digest == suite(samples=1).digest == suite(temperature=None).digest
    assert len({suite().digest, suite(samples=2).digest, suite(temperature=0.5).digest}) == 3


def test_a_verdict_on_samples_follows_from_its_ledger(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(
        tmp_path / "a"
    )
    path = tmp_path / "keep.yaml"
    path.write_text(json.dumps(suite(samples=3).model_dump(mode="json", exclude_none=True)))
    backbone = BackboneSpec.model_validate({"model": str(tiny), "dtype": "float32"})
    done = evaluate(tmp_path / "a", [str(path)], backbone, tmp_path / "out")
    assert check_verdict(done.directory).verdict == done.verdict
    [(_, task)] = done.verdict.tasks
    assert "pass@3" in {one.name for one in task.measures}
    outputs = [one.output for one in read_ledger(done.directory / "ledger.parquet") if one.output]
    assert outputs
    assert all(text.count("next sample") == 2 for text in outputs)


def test_a_server_is_asked_for_all_samples_at_once(tiny_backbone: Backbone) -> None:
    asked = []

    class Server:
        url = "http://here"

        def post(self, path: str, body: Any) -> Any:
            asked.append(body)
            choices = [{"index": n, "text": f"answer {n}"} for n in (2, 0, 1)]
            return {"choices": choices, "usage": {"prompt_tokens": len(body["prompt"][0])}}

    served = Completions(Server(), "mine", tiny_backbone.tokenizer)  # type: ignore[arg-type]
    outcome = served.outcome(SampledRequest((5, 6), 7, (), Sampling(3, 0.7, 0.9, 11)))
    assert outcome.samples == ("answer 0", "answer 1", "answer 2")
    assert outcome.text == "answer 0"
    [body] = asked
    given = {name: body[name] for name in ("n", "temperature", "top_p", "seed", "max_tokens")}
    assert given == {"n": 3, "temperature": 0.7, "top_p": 0.9, "seed": 11, "max_tokens": 7}
