"""A release on the hub: one commit of exactly its files, or nothing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.releasing.manifest import MANIFEST, files_below
from lora_kit.runtime.errors import ReleaseError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

GIT_ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class Destination:
    """A repository that may be written to, as far as can be known before."""

    repository: str
    private: bool
    api: HfApi


def destination(repository: str, private: bool, endpoint: str | None = None) -> Destination:
    """Check what can be checked before anything is made.

    Args:
        repository: `OWNER/NAME`.
        private: whether nobody else may see it.
        endpoint: of the hub; by default huggingface_hub's.

    Raises:
        ReleaseError: if the name is none, there is no token, or the hub is switched off.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ReleaseError(f"--push {repository}: {error}", status=2) from error
    if repository.count("/") != 1:
        raise ReleaseError(f"--push {repository}: write it as OWNER/NAME", status=2)
    if constants.HF_HUB_OFFLINE:
        raise ReleaseError(
            f"--push {repository}: HF_HUB_OFFLINE is set, so nothing is sent; unset it", status=2
        )
    token = get_token()
    if not token:
        raise ReleaseError(
            f"--push {repository}: no token for the hub; log in with `hf auth login`, or set "
            "HF_TOKEN to one that may write",
            status=2,
        )
    return Destination(repository, private, HfApi(endpoint=endpoint, token=token))


def push(directory: Path, to: Destination) -> str:
    """Make the repository hold this release, whole, in one commit.

    `upload_folder` sends a large folder in several commits, so that a reader could find weights
    without their manifest; `create_commit` sends one.

    Returns:
        The address of the commit.

    Raises:
        ReleaseError: if the hub cannot be reached or refuses; what is there stays as it was.
    """
    # Of whichever httpx the hub's library is built on.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        with warnings.catch_warnings():
            # The ledger is a table and belongs to the release.
            warnings.filterwarnings("ignore", message=".*commit a data file.*")
            return _commit(directory, to)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ReleaseError(
            f"--push {to.repository}: {_told(error, to.api.endpoint)}. The release lies whole in "
            f"{directory}; the same command tries again",
            status=2,
        ) from error


def _told(error: Exception, endpoint: str) -> str:
    """In one line, what the hub or the way to it said; the library tells its errors by others."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = [error, *([error.__cause__] if error.__cause__ else [])]
    refused = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    if refused is None:
        return f"not sent to {endpoint}: {_one_line(chain[-1])}"
    status = refused.response.status_code
    who = "the token may not write there" if status in (401, 403) else "the hub refused"
    own = "" if error is refused else f": {_one_line(error)}"
    return f"{who}{own} ({status}: {refused.server_message or _one_line(refused)})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _commit(directory: Path, to: Destination) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    to.api.create_repo(to.repository, private=to.private or None, exist_ok=True)
    info = to.api.model_info(to.repository)
    if to.private and not info.private:
        raise ReleaseError(
            f"--push {to.repository}: is public already, and --private does not change that; make "
            "it private on the hub, or choose another name",
            status=2,
        )
    files = [*files_below(directory), MANIFEST]
    there = {sibling.rfilename for sibling in info.siblings or []} - {GIT_ATTRIBUTES}
    stale = sorted(there - set(files))
    if stale and MANIFEST not in there:
        raise ReleaseError(
            f"--push {to.repository}: holds files that are of no release, such as {stale[0]}, and "
            "would not be what `lora-kit verify` takes; choose another name",
            status=2,
        )
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationDelete(name) for name in stale),
        *(CommitOperationAdd(name, str(directory / name)) for name in files),
    ]
    commit = to.api.create_commit(
        to.repository, operations, commit_message=f"Release of {directory.resolve().name}"
    )
    return str(commit.commit_url)
