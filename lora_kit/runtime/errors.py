"""Errors that a user can fix: one class per kind, all caught in `cli.main`.

The exit status is 2 unless a class sets another one. Each message names the field, file or line,
the value found, and the values that are possible.
"""

import difflib
from collections.abc import Iterable

# Exit status of a command whose result is a verdict.
VERDICT_STATUS = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}


class LoraKitError(Exception):
    """Base class of all errors about the user's input; each message includes a remedy.

    Attributes:
        status: exit status of a command that ends with this error.
    """

    status = 2


class RecipeError(LoraKitError):
    """Error in a recipe, an override or a suite that cannot work as written."""


class BackboneError(LoraKitError):
    """Error for a backbone that cannot be found, read, or loaded as requested."""


class MissingBackboneError(BackboneError):
    """Error for a hub id or package that is not on this machine, but may be installed there."""


class AdapterError(LoraKitError):
    """Error for an adapter that does not fit the backbone, or would train nothing."""


class DataError(LoraKitError):
    """Error for a source, row or data set that cannot be used for training or evaluation."""


class TrainingError(LoraKitError):
    """Error for training that was refused, or that failed so that its result is worthless."""


class TrainingInterruptedError(TrainingError):
    """Error for training that a signal interrupted and that can resume from its checkpoint.

    The exit status is EX_TEMPFAIL of sysexits: run the same command again (`sbatch --requeue`).
    """

    status = 75


class EvaluationError(LoraKitError):
    """Error for an evaluation that cannot run, or whose results cannot be compared."""


class MergeError(LoraKitError):
    """Error for an adapter that cannot be merged, or a merged model that was not measured."""


class ReleaseError(LoraKitError):
    """Error for a refused release, or a released directory that differs from its manifest."""

    def __init__(self, message: str, status: int = 3):
        super().__init__(message)
        self.status = status


def did_you_mean(name: str, names: Iterable[object]) -> str:
    """Return ` Did you mean ...?` with the most similar name; empty if none is similar."""
    near = difflib.get_close_matches(name, [str(one) for one in names], n=1, cutoff=0.5)
    return f" Did you mean `{near[0]}`?" if near else ""


def first_line(error: BaseException, lines: int = 1) -> str:
    """Return the first lines of an error's message, joined by spaces.

    Libraries append long lists or tracebacks to the line that states the problem.

    Args:
        error: error to shorten; its class name stands in for an empty message.
        lines: number of lines to keep.
    """
    message = str(error).strip() or type(error).__name__
    return " ".join(message.splitlines()[:lines])
