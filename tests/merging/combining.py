"""Updates of adapters, and distances between them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def base_model(directory: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


def deltas(directory: Path) -> dict[str, torch.Tensor]:
    """Return the update of each module as plain PEFT applies it."""
    from peft import PeftModel

    base = json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(base_model(base), directory)
    updates = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    model.unload()
    return updates


def weighted_sum(paths: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, delta in deltas(path).items():
            total[name] = total.get(name, 0) + weight * delta.double()
    return total


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative distance in the Frobenius norm."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def change_configuration(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
