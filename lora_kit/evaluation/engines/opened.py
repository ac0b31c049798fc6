"""Servers and connections that an engine opens, and their end."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType


class OpenedEngine:
    """Part of an engine that closes all that it has opened when it is left."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._open = ExitStack()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End servers and close connections."""
        self._open.close()
