"""Ownership of a loaded model: one place holds it, so that one call frees its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_kit.backbone.load import Backbone
from lora_kit.runtime.out_of_memory import free_memory


@dataclass(frozen=True)
class LoadedModel:
    """A backbone and the same model with the adapter attached.

    Attributes:
        backbone: backbone with the adapter's tokenizer, if the adapter brought one.
        model: backbone with the adapter attached.
        tokenizer_differences: parts in which the adapter's tokenizer differs; empty without one.
    """

    backbone: Backbone
    model: Any
    tokenizer_differences: Sequence[str] = ()


@dataclass
class OpenModel:
    """Owner of a loaded model.

    Others ask for it whenever they need it, and keep no reference: a second model of the same size
    is loaded after `close` only. The model is loaded on first use, and again if it is asked for
    after `close`.

    Attributes:
        load: function that loads backbone and adapter.
    """

    load: Callable[[], LoadedModel]
    _loaded: LoadedModel | None = field(default=None, init=False, repr=False)

    def get(self) -> LoadedModel:
        """Return the model; load it unless it is in memory."""
        if self._loaded is None:
            # That of the training, for example, whose parts refer to one another.
            free_memory()
            self._loaded = self.load()
        return self._loaded

    def close(self) -> None:
        """Free the memory of the model, on its device too."""
        self._loaded = None
        free_memory()


class WithModel:
    """Access to the model that `opened` owns, for the frozen descriptions of what has one."""

    opened: OpenModel

    @property
    def backbone(self) -> Backbone:
        """Backbone as it was loaded."""
        return self.opened.get().backbone

    @property
    def model(self) -> Any:
        """Backbone with the adapter attached."""
        return self.opened.get().model

    def close(self) -> None:
        """Free the model's memory; a later stage that needs the model loads it again."""
        self.opened.close()
