"""Number of processes over which each part of a training is sharded, by launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_kit.preflight.fake_model import FakeModel, gatherable_bytes
from lora_kit.runtime.launch import ZERO_WEIGHTS_STAGE, Launch

# The layer in use and the next one, which is prefetched (Zhao et al. 2023, arXiv:2304.11277,
# section 3.3).
GATHERED_LAYERS = 2
# DeepSpeed's default of `stage3_max_live_parameters`: parameters that stay gathered.
DEEPSPEED_LIVE_PARAMETERS = 10**9


@dataclass(frozen=True)
class Sharding:
    """Number of processes that share each part of a training; 1 if each process holds all of it.

    Data parallelism shards nothing and holds gradients twice: in the parameters and in the buckets
    in which they are averaged. ZeRO shards the moments (stage 1), also the gradients (2) and also
    the weights (3) (Rajbhandari et al. 2020, arXiv:1910.02054, section 5); FSDP shards all three
    (Zhao et al. 2023, arXiv:2304.11277). Hybrid sharding (HSDP) shards over the processes of a
    replica. Constants of 4-bit weights are whole in each process.

    Not counted: DeepSpeed's communication buffers (`reduce_bucket_size`), which add memory; its
    offloading, which saves memory; and the main memory of shards that FSDP offloads. While a model
    is loaded, a process holds less than here: its shards so far and one unsharded layer.

    Attributes:
        weights: processes that share the frozen weights and the adapter.
        gradients: processes that share the adapter's gradients.
        moments: processes that share AdamW's moments.
        buckets: true if gradients are copied into buckets to be averaged.
        live_parameters: parameters gathered at once, if more than two layers.
        reshard_after_forward: true if a layer is sharded again after its forward pass.
        offloaded: true if a GPU's process keeps its shards, gradients and moments in main memory.
    """

    weights: int = 1
    gradients: int = 1
    moments: int = 1
    buckets: bool = False
    live_parameters: int = 0
    reshard_after_forward: bool = True
    offloaded: bool = False

    @classmethod
    def of(
        cls, launch: Launch, reshard_after_forward: bool = True, offloaded: bool = False
    ) -> Sharding:
        """Return the sharding of a launch."""
        processes = launch.processes
        if launch.fsdp:
            shards = processes // launch.replicas
            return cls(
                shards,
                shards,
                shards,
                reshard_after_forward=reshard_after_forward,
                offloaded=offloaded,
            )
        stage = launch.zero_stage
        return cls(
            weights=processes if stage >= ZERO_WEIGHTS_STAGE else 1,
            gradients=processes if stage > 1 else 1,
            moments=processes if stage else 1,
            buckets=processes > 1 and not launch.deepspeed,
            live_parameters=DEEPSPEED_LIVE_PARAMETERS if stage >= ZERO_WEIGHTS_STAGE else 0,
        )

    def gathered_bytes(self, fake: FakeModel, dtype: torch.dtype) -> int:
        """Return the bytes of the weights that a process gathers in addition to its own shard.

        These are two layers and the output head, which stays gathered from the end of the forward
        pass to the start of the backward pass. The embedding, as large, is released before.
        """
        if self.weights == 1:
            return 0
        model = fake.model.get_base_model()
        total = gatherable_bytes(model)
        names = set(getattr(model, "_no_split_modules", None) or ())
        layers = [gatherable_bytes(m) for m in model.modules() if type(m).__name__ in names]
        if not layers or not self.reshard_after_forward:
            # FSDP treats a model without known layers as a single unit.
            return total
        head = gatherable_bytes(model.get_output_embeddings())
        gathered = GATHERED_LAYERS * max(layers) + head
        return min(max(gathered, self.live_parameters * dtype.itemsize), total)
