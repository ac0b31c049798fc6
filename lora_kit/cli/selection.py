"""`compare-backbones`: which backbone to take."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_kit.cli.libraries import load_pipeline
from lora_kit.cli.options import (
    JsonOption,
    NoCacheOption,
    OutputOption,
    RecipeArgument,
    SetOption,
)
from lora_kit.cli.output import print_json, stdout
from lora_kit.recipe.recipe import Recipe


def compare_backbones_command(
    recipe: RecipeArgument,
    backbones: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help="As in backbone.model: aliases, hub ids, directories, .gguf files.",
        ),
    ],
    set_: SetOption = None,
    output: OutputOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare backbones on the recipe's gain tasks before any training.

    Of each: zero-shot and few-shot scores with intervals, a linear probe where training rows have
    labels, tokens per second and memory of training the recipe's adapter, parameters, licence.
    Losses are in bits per byte, which tokenizers do not change. Leaves `backbones.json`. Started again,
    it goes on where it was.
    """
    checked = Recipe.load(recipe, set_ or [])
    named = [name.strip() for name in backbones.split(",") if name.strip()]
    found = load_pipeline().compare_backbones(checked, named, output, no_cache)
    if as_json:
        print_json({"backbones": [one.to_dict() for one in found]})
        return
    from lora_kit.selection.show import show_backbones

    show_backbones(found, stdout())
