"""Fields that conflict with an initialisation are refused with the recipe."""

from typing import Any

import pytest

from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.launch_checks import refuse_retention_when_sharded
from lora_kit.preflight.method_checks import refuse_unavailable_initialisation
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.initialisations import initialisation_of
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import AdapterError
from lora_kit.runtime.launch import Launch


def recipe(start: str, quantization: str = "none", **sections: Any) -> Recipe:
    options = {"init_lora_weights": start, **sections.pop("options", {})}
    document = {
        "name": "start",
        "backbone": {"model": "smollm2-135m-instruct", "quantization": quantization},
        "adapter": {"options": options},
        "data": {"train": [{"source": "stdlib-docstrings"}]},
        **sections,
    }
    return Recipe.model_validate(document)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ("pissa", "pissa"),
        ("pissa_niter_16", "pissa"),
        ("pissa_niter_0", None),
        ("olora", "olora"),
        ("gaussian", None),
        (True, None),
    ],
)
def test_what_is_computed_before_step_1(asked: Any, kind: str | None) -> None:
    assert initialisation_of(AdapterSpec(options={"init_lora_weights": asked})) == kind


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"start": "loftq"}, "loftq begins with the error of 4-bit quantization"),
        ({"start": "loftq", "quantization": "int8"}, "backbone.quantization is int8"),
        ({"start": "corda", "quantization": "nf4"}, "corda needs unquantized weights"),
        ({"start": "lora_ga", "quantization": "nf4"}, "lora_ga needs unquantized weights"),
        (
            {"start": "pissa", "training": {"weight_decay": 0.1}},
            r"weight_decay: .*the factors of init_lora_weights: pissa \(got 0.1\)",
        ),
        (
            {"start": "pissa", "retention": {"ewc": {}}},
            "retention.ewc: would change the fixed half of the factors of init_lora_weights: pissa",
        ),
        (
            {"start": "loftq", "quantization": "nf4", "merge": {"base": "original"}},
            r"merge.base: .*loftq holds the quantization error.*\(got original\)",
        ),
        ({"start": "mica"}, r"is not tested here \(got mica\)"),
        (
            {"start": "pissa", "options": {"eva_config": {"rho": 3.0}}},
            "options.eva_config: is read with init_lora_weights: eva only",
        ),
        ({"start": "eva", "options": {"rank_pattern": {"q_proj": 2}}}, "options.rank_pattern"),
        (
            {"start": "corda", "options": {"corda_config": {"cache_file": "x.pt"}}},
            "pickled Python",
        ),
        (
            {"start": "corda", "options": {"corda_config": {"corda_method": "kpm"}}},
            r"corda_method: needs texts .* \(got kpm\)\. Fix: add retention\.corda",
        ),
        (
            {
                "start": "corda",
                "options": {"corda_config": {"corda_method": "ipm"}},
                "retention": {"corda": {}},
            },
            r"corda_method: uses training rows, .* \(got ipm\)\. Fix: remove one of the two",
        ),
        (
            {"start": "pissa", "retention": {"corda": {}}},
            r"retention\.corda: is read with init_lora_weights: corda only\. Fix: set adapter",
        ),
        (
            {"start": "corda", "quantization": "nf4", "retention": {"corda": {}}},
            "corda needs unquantized weights",
        ),
        (
            {"start": "corda", "retention": {"corda": {}}, "training": {"objective": "dpo"}},
            r"retention\.corda: works with the objectives sft and text only",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(**arguments)


@pytest.mark.parametrize("section", [None, {}, {"corda_method": "kpm"}])
def test_texts_of_corda_may_be_named_with_or_without_its_mode(section: Any) -> None:
    options = {} if section is None else {"corda_config": section}
    assert recipe("corda", options=options, retention={"corda": {}}).retention.corda is not None


@pytest.mark.parametrize("start", ["pissa", "olora", "eva"])
def test_on_four_bits_others_are_possible(start: str) -> None:
    assert recipe(start, "nf4").adapter.options["init_lora_weights"] == start


def test_whole_weights_are_wanted_and_gradients_of_a_language_model() -> None:
    sharded = Launch(fsdp=True, fsdp_version=2, processes=2)
    with pytest.raises(AdapterError, match="needs full weight matrices"):
        refuse_unavailable_initialisation(PreflightContext(recipe("olora"), sharded))
    kept = PreflightContext(recipe("corda", retention={"corda": {}}), sharded)
    # Nothing is compared with the base; the reason is the initialisation's own.
    refuse_retention_when_sharded(kept)
    with pytest.raises(AdapterError, match="corda needs full weight matrices"):
        refuse_unavailable_initialisation(kept)
    with pytest.raises(AdapterError, match="gradients of the objectives sft and text"):
        refuse_unavailable_initialisation(
            PreflightContext(recipe("lora_ga", training={"objective": "dpo"}), Launch())
        )
    classes = {"training": {"objective": "classification"}, "evaluation": {"suites": ["areas"]}}
    with pytest.raises(AdapterError, match="one vector per text"):
        refuse_unavailable_initialisation(PreflightContext(recipe("eva", **classes), Launch()))
    refuse_unavailable_initialisation(PreflightContext(recipe("pissa", **classes), Launch()))
