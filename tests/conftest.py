"""Fixtures: the real 135M model, once per session, and tiny random models for plumbing."""

import copy
import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.backbone import load as backbones
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from tests.first_tokens import VOCABULARY, write_first_tokens

ALIAS = "smollm2-135m-instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("integration", "training"))


def pytest_collection_finish() -> None:
    """Leave the libraries and the tests out of garbage collections, which took 0.3 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm() -> Path:
    """Return the directory of the real model, converted from its package."""
    return resolve(BackboneSpec(model=ALIAS)).directory


@pytest.fixture(scope="session")
def tokenizer(smollm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm)


@pytest.fixture(scope="session")
def loaded_backbone(smollm: Path) -> Backbone:
    """Return the real model in nf4 and float32, shared by the session."""
    spec = BackboneSpec(model=ALIAS, quantization="nf4", dtype="float32")
    return backbones.load(resolve(spec), spec)


@pytest.fixture
def real_backbone(loaded_backbone: Backbone) -> Backbone:
    """Return a copy for each test, since adapters are attached in place."""
    return copy.deepcopy(loaded_backbone)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Path:
    """Return a random model of two layers with a part of the real tokenizer, for plumbing only."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    write_first_tokens(smollm, directory, VOCABULARY)
    return directory


@pytest.fixture(scope="session")
def loaded_tiny(tiny: Path) -> Backbone:
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    return backbones.load(resolve(spec), spec)


@pytest.fixture
def tiny_backbone(loaded_tiny: Backbone) -> Backbone:
    """Return a copy for each test; loading the files again takes twenty times as long."""
    return dataclasses.replace(
        loaded_tiny,
        model=copy.deepcopy(loaded_tiny.model),
        tokenizer=copy.copy(loaded_tiny.tokenizer),
    )


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random encoder of two layers with a real tokenizer."""
    import shutil

    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("encoder")
    real = resolve(BackboneSpec(model="all-minilm-l6-v2")).directory
    vocabulary = json.loads((real / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,  # so that texts differ
    )
    BertModel(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(real / name, directory / name)
    return directory


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Write fifty chats in the formats that users bring."""
    path = tmp_path / "chats.jsonl"
    rows = []
    for number in range(50):
        question = f"What is {number} plus {number + 3}?"
        answer = f"{number} plus {number + 3} is {2 * number + 3}."
        if number % 2:
            rows.append({"prompt": question, "completion": answer})
        else:
            rows.append(
                {
                    "messages": [
                        {"role": "system", "content": "You add numbers."},
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a suite of four items; reading those of the default one takes a second."""
    path = tmp_path_factory.mktemp("suites") / "sums.yaml"
    path.write_text(
        "name: sums\nrole: gain\ntasks:\n- {name: sums, kind: loss, source: sums, limit: 4}\n"
    )
    return path


@pytest.fixture
def tiny_recipe(tiny: Path, chats: Path, sums: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {
                "train": [{"source": str(chats), "limit": 16}],
                "validation": [{"source": str(chats), "limit": 4}],
                "max_length": 128,
            },
            "training": {"batch_size": 4, "learning_rate": 1e-3},
            "evaluation": {"suites": [str(sums)]},
        }
    )
