"""Loss, features and saved head of a token classification."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from lora_kit import pipeline
from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads.tags import SavedTags
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import load
from lora_kit.data.dataset import open_rows, prepare
from lora_kit.data.supervision import Example
from lora_kit.merging.methods import adapter_configuration
from lora_kit.modeling.features import frozen_features
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import AdapterError, MergeError
from lora_kit.training.head_losses.tags import TagLoss
from tests.entities import TAGS, entities_recipe
from tests.plain_process import run_plain

PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForTokenClassification
found = []
for backbone, adapter in zip(sys.argv[1::2], sys.argv[2::2]):
    config = AutoConfig.from_pretrained(adapter)
    base = AutoModelForTokenClassification.from_pretrained(
        backbone, config=config, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    ids = torch.tensor([[5, 6, 7], [9, 8, config.pad_token_id]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    logits = model(input_ids=ids, attention_mask=mask).logits.tolist()
    found.append([logits, list(config.id2label.values())])
print(json.dumps(found))
"""


def test_the_loss_is_that_of_torch_over_the_first_tokens_of_all_words() -> None:
    loss = TagLoss(3)
    examples = [
        Example((1, 5, 6, 2), (-100, 0, -100, -100)),
        Example((1, 5, 6, 7, 8, 2), (-100, 2, 1, -100, 0, -100)),
        Example((0, 0), (-100, -100)),
    ]
    targets = loss.targets(examples)
    assert targets.shape == (3, 6)
    logits = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
    mean = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    weights = loss.weight_of(targets)
    assert weights.tolist() == [1.0, 3.0, 0.0]
    assert torch.allclose(loss.of_rows(logits, targets).sum() / weights.sum(), mean)
    assert loss.targets([]).shape == (0, 0)


@pytest.mark.parametrize("fixture", ["tiny_encoder", "tiny"])
def test_the_features_of_words_give_the_logits_of_the_model(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model_path = request.getfixturevalue(fixture)
    recipe = entities_recipe(model_path, tmp_path, adapter={"method": "head"})
    outputs = HeadOutputs("token-classification", TAGS)
    spec = BackboneSpec(model=str(model_path), quantization="none", dtype="float32")
    backbone = load(resolve(spec), spec, outputs)
    model = attach(backbone, AdapterSpec(method="head"), 0)
    rows = open_rows(recipe.data, 0, "token-classification")[:3]
    data = prepare(rows, backbone.tokenizer, recipe.data, outputs=outputs)
    features, loss = frozen_features(backbone, model, data), TagLoss(len(TAGS))
    batch = features.batch([2, 0], loss.targets([data.examples[2], data.examples[0]]))
    assert batch["features"].shape[:2] == batch["targets"].shape == (2, 5)
    head = backbone.model.get_submodule(backbone.head.module if backbone.head else "")
    for row, number in enumerate([2, 0]):
        example = data.examples[number]
        with eval_mode(model), torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
            own = head(batch["features"][row])
        places = [n for n, label in enumerate(example.labels) if label != -100]
        known = batch["targets"][row] != -100
        assert batch["targets"][row][known].tolist() == [example.labels[n] for n in places]
        assert torch.allclose(own[known], logits[places], atol=1e-5)


def test_plain_transformers_gives_the_same_logits(
    tiny_encoder: Path, tiny: Path, tmp_path: Path
) -> None:
    """An encoder with weights of its own, and a decoder with LoRA, in one process."""
    cases: list[tuple[Path, dict[str, object]]] = [
        (tiny_encoder, {"method": "last-1"}),
        (tiny, {"rank": 4, "alpha": 8}),
    ]
    mine, arguments = [], []
    for number, (backbone, adapter) in enumerate(cases):
        recipe = entities_recipe(backbone, tmp_path, adapter=adapter)
        session = pipeline.train(recipe, tmp_path / f"run {number}").session
        ids = torch.tensor([[5, 6, 7], [9, 8, session.backbone.tokenizer.pad_token_id]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        with torch.no_grad():
            mine.append(session.model.eval()(input_ids=ids, attention_mask=mask).logits)
        arguments += [backbone, session.run.adapter]
    printed = run_plain(PLAIN, *arguments)
    for expected, (logits, names) in zip(mine, json.loads(printed), strict=True):
        assert tuple(names) == TAGS
        assert torch.allclose(torch.tensor(logits), expected, atol=1e-6)
    _check_saved(tmp_path / "run 0" / "adapter")


def _check_saved(adapter: Path) -> None:
    saved = read_saved_head(adapter)
    assert isinstance(saved, SavedTags)
    assert saved.outputs == HeadOutputs("token-classification", TAGS)
    assert (saved.rows, saved.counts["B-place"]) == (32, 24)
    # "new" is always O; "York" has two tags.
    assert "new" not in saved.words
    assert saved.words["York"] == {"I-place": 8, "B-place": 8}
    with pytest.raises(MergeError, match=r"cannot be merged.*\(got task_type TOKEN_CLS\)"):
        adapter_configuration(adapter)
    (adapter / "tags.json").write_text('{"training_rows": 3, "counts": {"O": 1}, "words": []}')
    with pytest.raises(AdapterError, match=r"tags\.json: training_rows must be"):
        read_saved_head(adapter)
    (adapter / "tags.json").unlink()
    with pytest.raises(AdapterError, match=r"\(TOKEN_CLS\) without .*tags\.json"):
        read_saved_head(adapter)
