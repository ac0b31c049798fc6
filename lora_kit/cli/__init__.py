"""The commands: parse, call, print. Exit status: 0 done or PASS, 1 an error of ours, 2 bad usage or
refused input, 3 FAIL, 4 INCONCLUSIVE, 75 a training that a signal ended and --resume goes on with.
"""

from __future__ import annotations

import errno
import traceback

from rich.console import Console
from rich.markup import escape

# By another name: `lora_kit.cli.app` is the module.
from lora_kit.cli.app import app as program
from lora_kit.cli.ending import (
    is_first_to_fail,
    leave,
    lost_another,
    named,
    number_of_processes,
)
from lora_kit.runtime.console import debugging
from lora_kit.runtime.errors import LoraKitError

__all__ = ["main"]

# A full disk, a quota, a limit of file sizes, a folder that is not ours.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; the one place where errors become messages and exit statuses."""
    try:
        program(arguments)
    except SystemExit:
        leave()
        raise
    except Exception as error:
        told = _told(error)
        if debugging():
            traceback.print_exc()
            raise SystemExit(told[1] if told else 1) from None
        if not is_first_to_fail():
            raise SystemExit(told[1] if told else 1) from None
        if told is None:
            raise
        message, status = told
        Console(stderr=True, highlight=False).print(f"{named()}: {escape(message)}", soft_wrap=True)
        raise SystemExit(status) from error


def _told(error: Exception) -> tuple[str, int] | None:
    """Message and exit status of an error that is a user's to mend; `None` of one of ours."""
    if isinstance(error, LoraKitError):
        return str(error), error.status
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return (
            f"cannot write {error.filename or 'a file'}: {error.strerror}. What was there before "
            "is whole; a training goes on with --resume"
        ), LoraKitError.status
    if number_of_processes() > 1 and lost_another(error):
        return (
            "another process is gone: it was killed, ran out of memory, or its machine cannot be "
            "reached. A training goes on from its last checkpoint with --resume, also with fewer "
            f"processes ({str(error).splitlines()[0]})"
        ), 1
    return None
