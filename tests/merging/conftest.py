from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.adapters import attach
from lora_kit.backbone import load, resolve
from lora_kit.recipe import AdapterSpec, BackboneSpec
from lora_kit.training.trainer import save_adapter


@pytest.fixture(scope="session")
def random_adapter(tiny: Path) -> Callable[..., Path]:
    """Saves an adapter of the tiny model with random weights, as a training would leave it."""

    def save(directory: Path, seed: int, **options: Any) -> Path:
        spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
        backbone = load(resolve(spec), spec)
        model = attach(backbone, AdapterSpec(**({"rank": 4, "alpha": 8} | options)), seed=seed)
        torch.manual_seed(seed + 100)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        save_adapter(model, backbone, directory)
        return directory

    return save
