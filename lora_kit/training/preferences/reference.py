"""Reference policy of preference objectives: the base, i.e. the model with the adapter disabled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel

# Name that TRL 1.16 gives to the copy of an attached adapter.
REFERENCE_ADAPTER = "ref"


@contextmanager
def base_as_reference(model: PeftModel) -> Iterator[None]:
    """Delete the reference adapter that a TRL trainer's constructor adds.

    TRL 1.16 treats an attached adapter as trained before and copies it as the reference policy.
    The copy doubles the adapter's memory and is saved as a second adapter. Without the copy, TRL
    computes reference log probabilities with the adapter disabled.
    """
    yield
    if REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)
