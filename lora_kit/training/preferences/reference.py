"""The reference policy: the base, which is the model with its adapter switched off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel

# What TRL 1.16 calls the copy of the adapter that it adds to a model which has one.
COPY = "ref"


@contextmanager
def base_as_reference(model: PeftModel) -> Iterator[None]:
    """Have a trainer's constructor leave the adapter alone beside the base.

    TRL 1.16 takes an adapter that is attached already for one that was trained before, and adds a
    copy of it as the reference: as much memory again, and a second adapter in what is saved. Where
    the copy is not there, it switches the adapter off.
    """
    yield
    if COPY in model.peft_config:
        model.delete_adapter(COPY)
