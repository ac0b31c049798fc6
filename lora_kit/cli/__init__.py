"""The commands: parse, call, print. Exit status: 0 done or PASS, 1 an error of ours, 2 bad usage or
refused input, 3 FAIL, 4 INCONCLUSIVE, 75 a training that a signal ended and --resume goes on with.
"""

from __future__ import annotations

import errno

from rich.console import Console
from rich.markup import escape

# By another name: `lora_kit.cli.app` is the module.
from lora_kit.cli.app import app as program
from lora_kit.errors import LoraKitError

__all__ = ["main"]

# A full disk, a quota, a limit of file sizes, a folder that is not ours.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; the one place where errors become messages and exit statuses."""
    try:
        program(arguments)
    except LoraKitError as error:
        Console(stderr=True, highlight=False).print(
            f"lora-kit: {escape(str(error))}", soft_wrap=True
        )
        raise SystemExit(error.status) from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        Console(stderr=True, highlight=False).print(
            f"lora-kit: cannot write {escape(str(error.filename or 'a file'))}: {error.strerror}. "
            "What was there before is whole; a training goes on with --resume",
            soft_wrap=True,
        )
        raise SystemExit(LoraKitError.status) from error
