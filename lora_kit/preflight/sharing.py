"""What of a training each process holds, by how it is launched."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_kit.preflight.shapes import ShapedModel
from lora_kit.runtime.launch import WEIGHTS_STAGE, Launch

# The layer that is computed with, and the next one, which is fetched meanwhile (Zhao et al. 2023,
# arXiv:2304.11277, section 3.3).
GATHERED = 2
# Parameters that DeepSpeed keeps gathered unless its `stage3_max_live_parameters` says otherwise.
LIVE = 10**9


@dataclass(frozen=True)
class Sharing:
    """Over how many processes each part of a training is divided; 1 where each holds all of it.

    Data parallelism divides nothing and holds gradients twice: as they are, and in the buckets in
    which they are averaged. ZeRO divides the moments (stage 1), the gradients (2) and the weights
    (3) (Rajbhandari et al. 2020, arXiv:1910.02054, section 5); FSDP divides all three (Zhao et al.
    2023, arXiv:2304.11277).

    Not counted: DeepSpeed's buffers of communication (`reduce_bucket_size`), which come on top;
    offloading, which takes away; and loading, in which the backbone is whole before it is sharded.

    Attributes:
        weights: the frozen weights and the adapter.
        gradients: of the adapter.
        moments: of AdamW.
        buckets: whether gradients are copied to be averaged.
        live: parameters that are gathered at once, where that is more than two layers.
        regathered: whether layers are given back after the forward pass.
    """

    weights: int = 1
    gradients: int = 1
    moments: int = 1
    buckets: bool = False
    live: int = 0
    regathered: bool = True

    @classmethod
    def of(cls, launch: Launch, regathered: bool = True) -> Sharing:
        """Of the processes of a launch."""
        processes = launch.processes
        if launch.fsdp:
            return cls(processes, processes, processes, regathered=regathered)
        stage = launch.zero_stage
        return cls(
            weights=processes if stage >= WEIGHTS_STAGE else 1,
            gradients=processes if stage > 1 else 1,
            moments=processes if stage else 1,
            buckets=processes > 1 and not launch.deepspeed,
            live=LIVE if stage >= WEIGHTS_STAGE else 0,
        )

    def gathered(self, shaped: ShapedModel, dtype: torch.dtype) -> int:
        """Bytes of the weights that a process holds whole besides its own share.

        Two layers, and the output head, which stays from the end of the forward pass to the
        beginning of the backward pass. The embedding, as large, is given back before that.
        """
        if self.weights == 1:
            return 0
        model = shaped.model.get_base_model()
        everything = _size(model)
        names = set(getattr(model, "_no_split_modules", None) or ())
        layers = [_size(m) for m in model.modules() if type(m).__name__ in names]
        if not layers or not self.regathered:
            # Without layers that are known as such the model is one unit.
            return everything
        head = _size(model.get_output_embeddings())
        return min(max(GATHERED * max(layers) + head, self.live * dtype.itemsize), everything)


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
