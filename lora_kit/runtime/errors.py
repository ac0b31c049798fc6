"""The errors that a user can mend: one class a kind, all caught in `cli.main`, exit status 2.

Each message names the field, file or line, what was found, and what is possible.
"""

# Exit status of a command whose result is a verdict.
VERDICT_STATUS = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}


class LoraKitError(Exception):
    """Base of all errors that are about the user's input and carry their own remedy.

    `status` is the exit status of a command that ends with it.
    """

    status = 2


class RecipeError(LoraKitError):
    """The recipe, an override or a suite cannot work as written."""


class BackboneError(LoraKitError):
    """The backbone cannot be found, read, or loaded as asked."""


class AdapterError(LoraKitError):
    """The adapter does not fit the backbone, or would train nothing."""


class DataError(LoraKitError):
    """A data source, a row, or the whole data set cannot be trained or evaluated on."""


class TrainingError(LoraKitError):
    """Training was refused or went wrong in a way that makes its result worthless."""


class TrainingInterruptedError(TrainingError):
    """A signal ended a training, which can go on from its checkpoint.

    The status is sysexits' EX_TEMPFAIL: try the same again (`sbatch --requeue`).
    """

    status = 75


class EvaluationError(LoraKitError):
    """An evaluation cannot be run or its results cannot be compared."""


class MergeError(LoraKitError):
    """The adapter cannot be merged, or the merged model is not what was measured."""


class ReleaseError(LoraKitError):
    """A release was refused, or a released directory is not what its manifest says."""

    def __init__(self, message: str, status: int = 3):
        super().__init__(message)
        self.status = status
