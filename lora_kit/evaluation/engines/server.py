"""Servers that are started here, on the loopback interface, and ended again."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from lora_kit.evaluation.engines.connection import Connection
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError

# Ends the program when its input ends: also if this process is killed, which then cannot end it.
SUPERVISED = (
    "sh",
    "-c",
    """exec 3<&0
    "$0" "$@" </dev/null & child=$!
    (
        cat <&3 >/dev/null
        for second in 1 2 3 4 5 6 7 8 9 10; do kill $child && sleep 1 || exit; done
        kill -9 $child
    ) 2>/dev/null &
    wait $child""",
)
# Seconds until the model is loaded.
LOADING = 600
# Shells report the number of a signal above this one.
SIGNALLED = 128
LOG_LINES = 5


@dataclass(frozen=True)
class ServerCommand:
    """Command that starts a server.

    Attributes:
        name: name of the program, for messages.
        model: file or directory that is served.
        arguments: command, to which `--port PORT` is added.
        slots: largest number of requests at a time.
        fix: advice for a model that the program does not load.
        environment: variables that are set for the program.
        safer: arguments with which the program is started again if it crashes while it loads.
    """

    name: str
    model: Path
    arguments: Sequence[str]
    slots: int
    fix: str
    environment: Mapping[str, str] = field(default_factory=dict)
    safer: Sequence[str] = ()


@dataclass(frozen=True)
class LocalServer:
    """A server process, and the connection to it."""

    command: ServerCommand
    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]

    @property
    def has_ended(self) -> bool:
        """True if the process has ended."""
        return self.process.poll() is not None

    @property
    def has_crashed(self) -> bool:
        """True if a signal ended the process."""
        status = self.process.poll() or 0
        return status < 0 or status > SIGNALLED

    def end(self) -> None:
        """End the process."""
        self.connection.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def wait(self) -> None:
        """Wait until the model is loaded.

        Raises:
            EvaluationError: with the end of its log, if it ends or does not load.
        """
        end, command = time.monotonic() + LOADING, self.command
        while not self.connection.is_ready("/health"):
            if self.has_ended:
                raise EvaluationError(
                    f"{command.model}: {command.name} does not load this model (got status "
                    f"{self.process.returncode}): {self._last_lines()}. Fix: {command.fix}"
                )
            if time.monotonic() > end:
                raise EvaluationError(
                    f"{command.model}: {command.name} has not loaded this model in {LOADING} s "
                    f"(got {self._last_lines()}). Fix: use a smaller model, or another machine"
                )
            time.sleep(0.1)

    def _last_lines(self) -> str:
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().decode(errors="replace").split("\n")]
        # After the cause, programs write how they ended.
        causes = [line for line in lines if "rror: " in line]
        return "; ".join([line[-300:] for line in causes or lines if line][-LOG_LINES:])


@contextmanager
def local_server(command: ServerCommand) -> Iterator[LocalServer]:
    """Start a server, yield it when its model is loaded, and end it.

    Raises:
        EvaluationError: if it does not load the model.
    """
    with tempfile.TemporaryFile() as log:
        server = _start(command, log)
        try:
            try:
                server.wait()
            except EvaluationError:
                if not (command.safer and server.has_crashed):
                    raise
                server.end()
                say(f"{command.name} crashed; starting it again with {' '.join(command.safer)}")
                arguments = [*command.arguments, *command.safer]
                server = _start(replace(command, arguments=arguments), log)
                server.wait()
            yield server
        finally:
            server.end()


def _start(command: ServerCommand, log: IO[bytes]) -> LocalServer:
    port = _free_port()
    # On this machine, what does not answer for seconds is gone.
    connection = Connection(f"http://127.0.0.1:{port}", command.slots, tries=4)
    process = subprocess.Popen(
        [*SUPERVISED, *command.arguments, "--port", str(port)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=os.environ | command.environment,
    )
    return LocalServer(command, process, connection, log)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
