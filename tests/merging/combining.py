"""What combined adapters are compared by."""

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
    """The updates as plain PEFT applies them to the model."""
    from peft import PeftModel

    base = json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(base_model(base), directory)
    found = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    model.unload()
    return found


def weighted_sum(paths: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, delta in deltas(path).items():
            total[name] = total.get(name, 0) + weight * delta.double()
    return total


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative distance in the Frobenius norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def changed(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
