"""The main path, from recipe to release: the calls that the commands make and a script can make."""

from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.merging import Merged, merge
from lora_kit.pipeline.releasing import release, verify
from lora_kit.pipeline.rescaling import rescale
from lora_kit.pipeline.selection import compare_backbones
from lora_kit.pipeline.training import Trained, train
from lora_kit.pipeline.whole_run import Outcome, run
from lora_kit.releasing.released import Release

__all__ = [
    "Merged",
    "Outcome",
    "Release",
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
