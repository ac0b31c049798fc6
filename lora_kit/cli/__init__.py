"""The commands: parse, call, print.

Exit status: 0 done or PASS, 1 an error of lora-kit, 2 bad usage or refused input, 3 FAIL,
4 INCONCLUSIVE, 75 a training that a signal interrupted and --resume continues, 141 output that
nobody reads any more.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback

# Renamed, since `lora_kit.cli.app` is the module.
from lora_kit.cli.app import app as program
from lora_kit.cli.ending import (
    is_first_to_fail,
    is_null,
    is_reader_gone,
    leave,
    lost_another,
    named,
)
from lora_kit.runtime.console import VisibleConsole, is_debug_enabled, visible
from lora_kit.runtime.errors import LoraKitError, first_line
from lora_kit.runtime.launcher import number_of_processes

__all__ = ["main"]

# A full disk, a quota, a limit of file sizes, a folder without write permission.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
# Exit status after Ctrl-C.
INTERRUPTED = 130
# Exit status if nobody reads the output any more: that of a process ended by SIGPIPE, in a shell.
BROKEN_PIPE = 141


def main(arguments: list[str] | None = None) -> None:
    """Run a command; the one place where errors become messages and exit statuses."""
    was_null = is_null()
    try:
        program(arguments)
    except SystemExit as end:
        leave()
        # Status 1 is that of typer and rich for a broken pipe, too.
        if end.code == 1 and is_reader_gone(was_null):
            raise SystemExit(BROKEN_PIPE) from None
        if end.code == INTERRUPTED and is_first_to_fail():
            _print_error(
                "interrupted. Fix: repeat the command to continue from what is saved, a training "
                "or a run with --resume"
            )
        raise
    except Exception as error:
        reported = _reported(error)
        if is_debug_enabled():
            sys.stderr.write(visible(traceback.format_exc()))
            raise SystemExit(reported[1] if reported else 1) from None
        if not is_first_to_fail():
            raise SystemExit(reported[1] if reported else 1) from None
        if reported is None:
            raise
        message, status = reported
        _print_error(message)
        raise SystemExit(status) from error


def _print_error(message: str) -> None:
    # The status says as much where nobody reads.
    with contextlib.suppress(BrokenPipeError):
        VisibleConsole(stderr=True).print(f"{named()}: {message}", soft_wrap=True, markup=False)


def _reported(error: Exception) -> tuple[str, int] | None:
    """Return message and exit status of an error that a user can fix; `None` for a defect."""
    if isinstance(error, LoraKitError):
        return str(error), error.status
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return (
            f"{error.filename or 'a file'}: cannot be written ({error.strerror}). Existing files "
            "are intact. Fix: make room or allow writing, then continue a training with --resume"
        ), LoraKitError.status
    if number_of_processes() > 1 and lost_another(error):
        return (
            "another process is gone: it was killed, ran out of memory, or its machine is "
            "unreachable. Fix: continue from the last checkpoint with --resume, also with fewer "
            f"processes ({first_line(error)})"
        ), 1
    return None
