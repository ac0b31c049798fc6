"""The stages from recipe to release, one call each, as the commands and scripts use them."""

from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.merging import Merged, merge
from lora_kit.pipeline.releasing import release, verify
from lora_kit.pipeline.rescaling import rescale
from lora_kit.pipeline.selection import compare_backbones
from lora_kit.pipeline.training import Trained, train
from lora_kit.pipeline.whole_run import RunOutcome, run
from lora_kit.releasing.release import Release

__all__ = [
    "Merged",
    "Release",
    "RunOutcome",
    "Trained",
    "compare_backbones",
    "evaluate",
    "merge",
    "release",
    "rescale",
    "run",
    "train",
    "verify",
]
