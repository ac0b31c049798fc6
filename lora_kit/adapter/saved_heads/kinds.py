"""Kinds of saved heads; each has a file of its own beside the adapter."""

from __future__ import annotations

from lora_kit.adapter.saved_heads.classes import SavedClasses
from lora_kit.adapter.saved_heads.embedding import SavedEmbedding
from lora_kit.adapter.saved_heads.labels import SavedLabels
from lora_kit.adapter.saved_heads.masked import SavedMasked
from lora_kit.adapter.saved_heads.numbers import SavedNumbers
from lora_kit.adapter.saved_heads.reward import SavedReward
from lora_kit.adapter.saved_heads.tags import SavedTags

SavedHead = (
    SavedClasses
    | SavedNumbers
    | SavedLabels
    | SavedTags
    | SavedReward
    | SavedEmbedding
    | SavedMasked
)
# Of a directory with several files, the first that is there.
KINDS: tuple[type[SavedHead], ...] = (
    SavedReward,
    SavedClasses,
    SavedNumbers,
    SavedLabels,
    SavedTags,
    SavedEmbedding,
    SavedMasked,
)
