"""Write a combined adapter: a PEFT adapter directory that scales each module by one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BACKBONE
from lora_kit.adapter.saved_configuration import PREFIX
from lora_kit.adapter.tokenizer_files import brought_files
from lora_kit.merging.combining.arithmetic import LoraFactors
from lora_kit.merging.combining.sources import (
    RECORD,
    SUFFIX_A,
    SUFFIX_B,
    AdapterSource,
)
from lora_kit.runtime.files import whole_directory, write_json


def write_adapter(
    sources: Sequence[AdapterSource],
    factors: Mapping[str, LoraFactors],
    same_backbone: bool,
    record: Mapping[str, Any],
    output: Path,
    tokenizer: Path | None = None,
) -> None:
    """Write an adapter directory that PEFT loads, completely or not at all.

    Args:
        sources: adapters that were combined.
        factors: factors by module, with the scaling in `b`.
        same_backbone: if true, the fingerprint of the sources is copied.
        record: record of the combination.
        output: directory that does not exist or is empty.
        tokenizer: adapter whose tokenizer and chat template are copied; `None` for none.
    """
    tensors = {}
    for module, part in factors.items():
        tensors[f"{PREFIX}{module}{SUFFIX_A}"] = part.a.contiguous()
        tensors[f"{PREFIX}{module}{SUFFIX_B}"] = part.b.contiguous()
    with whole_directory(output) as temporary:
        path = temporary / ADAPTER_WEIGHTS
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)
        write_json(temporary / ADAPTER_CONFIG, _configuration(sources, factors))
        write_json(temporary / RECORD, record)
        if tokenizer is not None:
            for name in brought_files(tokenizer):
                (temporary / name).parent.mkdir(exist_ok=True)
                shutil.copy2(tokenizer / name, temporary / name)
        if same_backbone:
            write_json(temporary / BACKBONE, sources[0].backbone)


def _configuration(
    sources: Sequence[AdapterSource], factors: Mapping[str, LoraFactors]
) -> dict[str, Any]:
    """Return a configuration with which PEFT scales each module by exactly one."""
    first = dict(sources[0].config)
    ranks = {module: part.rank for module, part in factors.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # Anchored: PEFT matches other patterns at the end of a name.
    others = {f"^{module}": rank for module, rank in ranks.items() if rank != usual}
    if any(source.modules != sources[0].modules for source in sources):
        first |= {"target_modules": sorted(factors), "exclude_modules": None}
        first |= {"layers_to_transform": None, "layers_pattern": None}
    return first | {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "init_lora_weights": True,
        "eva_config": None,
        "inference_mode": True,
    }
