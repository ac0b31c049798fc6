"""lora-kit, which also writes the gradient of its first optimizer step to the file in GRADIENT."""

import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lora_kit.cli import main
from lora_kit.runtime.processes import process_state
from lora_kit.training.guards import Guards

seen = Guards.on_pre_optimizer_step


def write_gradient(
    self: Guards, args: Any, state: Any, control: Any, model: Any = None, **rest: Any
) -> None:
    if state.global_step == 0 and process_state().is_main_process:
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        save_file(gradients, Path(os.environ["GRADIENT"]))
    seen(self, args, state, control, model=model, **rest)


if __name__ == "__main__":
    Guards.on_pre_optimizer_step = write_gradient  # type: ignore[method-assign]
    main()
