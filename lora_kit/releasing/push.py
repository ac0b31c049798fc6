"""Upload of a release to the hub, as a single commit of exactly its files."""

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
    """Hub repository to upload to, checked as far as possible without writing.

    Attributes:
        repository: `OWNER/NAME`.
        private: true to require a private repository.
        api: client of the hub, with a token.
    """

    repository: str
    private: bool
    api: HfApi


def check_destination(repository: str, private: bool, endpoint: str | None = None) -> Destination:
    """Check everything that can be checked before the release is built.

    Args:
        repository: `OWNER/NAME`.
        private: if true, require a private repository.
        endpoint: URL of the hub; by default that of huggingface_hub.

    Raises:
        ReleaseError: if the name is invalid, no token is found, or offline mode is set.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ReleaseError(
            f"--push: not a repository name: {' '.join(str(error).split()).rstrip('.')} (got "
            f"{repository}). Fix: write OWNER/NAME",
            status=2,
        ) from error
    if repository.count("/") != 1:
        raise ReleaseError(
            f"--push: not a repository name (got {repository}). Fix: write OWNER/NAME", status=2
        )
    if constants.HF_HUB_OFFLINE:
        raise ReleaseError(
            f"--push: HF_HUB_OFFLINE is set, so nothing can be sent (got {repository}). Fix: unset "
            "HF_HUB_OFFLINE",
            status=2,
        )
    token = get_token()
    if not token:
        raise ReleaseError(
            f"--push: no token for the hub (got {repository}). Fix: log in with `hf auth login`, "
            "or set HF_TOKEN to a token with write access",
            status=2,
        )
    return Destination(repository, private, HfApi(endpoint=endpoint, token=token))


def push(directory: Path, to: Destination) -> str:
    """Replace the contents of the repository with a release, in one commit.

    `upload_folder` splits a large folder into several commits, so a reader could download weights
    without their manifest. `create_commit` sends a single commit.

    Args:
        directory: the release.
        to: repository to upload to.

    Returns:
        URL of the commit.

    Raises:
        ReleaseError: if the hub cannot be reached or refuses; the repository is left unchanged.
    """
    # huggingface_hub re-exports the HTTPError of the httpx that it uses.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        with warnings.catch_warnings():
            # huggingface_hub warns about data files in a model repository; the ledger belongs here.
            warnings.filterwarnings("ignore", message=".*commit a data file.*")
            return _commit(directory, to)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ReleaseError(
            f"--push: {_describe_error(error, to.api.endpoint)} (got {to.repository}). Fix: run "
            f"the same command again; the release is complete in {directory}",
            status=2,
        ) from error


def _describe_error(error: Exception, endpoint: str) -> str:
    """Describe an error of the hub or the network in one line.

    huggingface_hub raises some errors of the hub as the cause of another error.
    """
    from huggingface_hub.errors import HfHubHTTPError

    chain = [error, *([error.__cause__] if error.__cause__ else [])]
    response = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    if response is None:
        return f"not sent to {endpoint}: {_one_line(chain[-1])}"
    status = response.response.status_code
    problem = "the token has no write access" if status in (401, 403) else "the hub refused"
    detail = "" if error is response else f": {_one_line(error)}"
    return f"{problem}{detail} ({status}: {response.server_message or _one_line(response)})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _commit(directory: Path, to: Destination) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    to.api.create_repo(to.repository, private=to.private or None, exist_ok=True)
    info = to.api.model_info(to.repository)
    if to.private and not info.private:
        raise ReleaseError(
            f"--private: the repository is public already (got {to.repository}). Fix: make the "
            "repository private on the hub, or choose another name",
            status=2,
        )
    files = [*files_below(directory), MANIFEST]
    present = {sibling.rfilename for sibling in info.siblings or []} - {GIT_ATTRIBUTES}
    stale = sorted(present - set(files))
    if stale and MANIFEST not in present:
        raise ReleaseError(
            f"--push: {to.repository} holds files that are not from a release and would be deleted "
            f"(got {stale[0]}). Fix: choose another name",
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
