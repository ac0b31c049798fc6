"""The main path, from recipe to release: the calls that the commands make and a script can make."""

from lora_kit.pipeline.dialling import dial
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.merging import Merged, merge
from lora_kit.pipeline.releasing import release, verify
from lora_kit.pipeline.scouting import scout
from lora_kit.pipeline.training import Trained, train
from lora_kit.pipeline.whole import Outcome, run
from lora_kit.releasing.released import Release

__all__ = [
    "Merged",
    "Outcome",
    "Release",
    "Trained",
    "dial",
    "evaluate",
    "merge",
    "release",
    "run",
    "scout",
    "train",
    "verify",
]
