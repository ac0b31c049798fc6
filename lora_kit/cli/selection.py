"""`compare-backbones`: choose a backbone before training."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_kit.cli.libraries import quiet_libraries
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

    Reports for each backbone zero-shot and few-shot scores with intervals, a linear probe where
    training rows have labels, tokens per second and memory of training the recipe's adapter,
    parameters and licence. Losses are in bits per byte, which do not depend on the tokenizer.
    Writes `backbones.json`. If interrupted, it continues where it was.
    """
    checked = Recipe.load(recipe, set_ or [])
    names = [name.strip() for name in backbones.split(",") if name.strip()]
    quiet_libraries()
    from lora_kit.pipeline.selection import compare_backbones
    from lora_kit.selection.show import show_backbones

    results = compare_backbones(checked, names, output, no_cache)
    if as_json:
        print_json({"backbones": [result.to_dict() for result in results]})
    else:
        show_backbones(results, stdout())
