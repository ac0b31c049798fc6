"""Checks of module, parameter and token names in an adapter's options."""

import re
from typing import Any

import pytest

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.runtime.errors import AdapterError
from tests.first_tokens import VOCABULARY


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"method": "trainable_tokens"},
            "adapter.options.token_indices: names no token, so no embedding would be trained. "
            f"Fix: use token ids from 0 to {VOCABULARY - 1}",
        ),
        (
            {"method": "trainable_tokens", "options": {"token_indices": [5, 999_999]}},
            "adapter.options.token_indices: 999999 is not a token of this backbone",
        ),
        (
            {"method": "trainable_tokens", "options": {"token_indices": [-1]}},
            "adapter.options.token_indices: -1 is not a token",
        ),
        (
            {"options": {"trainable_token_indices": [5, VOCABULARY]}},
            f"adapter.options.trainable_token_indices: {VOCABULARY} is not a token",
        ),
        ({"options": {"trainable_token_indices": []}}, "trainable_token_indices: names no token"),
        (
            {"options": {"trainable_token_indices": {"embed_tokens": [VOCABULARY]}}},
            f"adapter.options.trainable_token_indices.embed_tokens: {VOCABULARY} is not a token",
        ),
        (
            {"options": {"trainable_token_indices": {"embde_tokens": [5]}}},
            "adapter.options.trainable_token_indices: no module is called embde_tokens. "
            "Did you mean `embed_tokens`?",
        ),
    ],
)
def test_tokens_outside_of_the_vocabulary_are_refused(
    tiny_backbone: Backbone, adapter: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=re.escape(message)):
        attach(tiny_backbone, AdapterSpec.model_validate(adapter), seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modules_to_save": ["norm", "nrm"]},
            "adapter.options.modules_to_save: no module is called nrm. Did you mean `norm`? "
            "Fix: use one of act_fn, down_proj",
        ),
        (
            {"rank_pattern": {"q_proj": 4, "v_prj": 4}},
            "adapter.options.rank_pattern: no module is called v_prj. Did you mean `v_proj`?",
        ),
        ({"alpha_pattern": {"layers.2.*q_proj": 4}}, "no module is called layers.2.*q_proj."),
        (
            {"alpha_pattern": {"(": 4}},
            "adapter.options.alpha_pattern: ( is not a regular expression",
        ),
        ({"exclude_modules": ["v_prj"]}, "adapter.options.exclude_modules: no module is called"),
        ({"exclude_modules": r"layers\.0"}, r"exclude_modules: no module is called layers\.0."),
        (
            {"target_parameters": ["q_proj.weight", "nope.weight"]},
            "adapter.options.target_parameters: no parameter is called nope.weight",
        ),
    ],
)
def test_an_option_with_an_unknown_name_is_refused(
    tiny_backbone: Backbone, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=re.escape(message)):
        attach(tiny_backbone, AdapterSpec(options=options), seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["layers.1.input_layernorm"]},
        {"rank_pattern": {r"layers\.1\..*q_proj": 4, "model.layers.0.mlp.up_proj": 2}},
        {"exclude_modules": ["v_proj", "mlp.up_proj"]},
        {"exclude_modules": r".*layers\.0.*"},
        {"trainable_token_indices": {"embed_tokens": [0, VOCABULARY - 1]}},
    ],
)
def test_an_option_with_known_names_is_accepted(
    tiny_backbone: Backbone, options: dict[str, Any]
) -> None:
    attach(tiny_backbone, AdapterSpec(options=options), seed=0)


def test_a_pattern_may_name_a_parameter_that_is_targeted(tiny_backbone: Backbone) -> None:
    names = ["up_proj.weight"]
    options = {"target_parameters": names, "rank_pattern": dict.fromkeys(names, 4)}
    attach(tiny_backbone, AdapterSpec(target_modules=["q_proj"], options=options), seed=0)
