import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from lora_kit.cli import main
from lora_kit.pipeline import verify
from lora_kit.releasing.manifest import MANIFEST, files_below
from lora_kit.releasing.push import Destination, check_destination, push
from lora_kit.runtime.errors import ReleaseError
from tests.releasing.hub import TOKEN, Hub, Repository, serving

NAME = "somebody/sums"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The test server does not support xet; without xet the files are sent as LFS objects.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serving() as served:
        yield served


def to(hub: Hub, private: bool = False) -> Destination:
    return check_destination(NAME, private, hub.endpoint)


def refusal(hub: Hub, release: Path, private: bool = False) -> str:
    with pytest.raises(ReleaseError) as caught:
        push(release, to(hub, private))
    assert caught.value.status == 2
    return str(caught.value)


def files_of(release: Path) -> dict[str, bytes]:
    return {name: (release / name).read_bytes() for name in (*files_below(release), MANIFEST)}


def test_the_release_is_pushed_in_one_commit_and_verifies(
    hub: Hub, released: Path, tmp_path: Path
) -> None:
    url = push(released, to(hub))
    repository = hub.repositories[NAME]
    assert url == f"{hub.endpoint}/{NAME}/commit/1"
    assert len(repository.commits) == 1
    arrived = dict(repository.files)
    assert arrived.pop(".gitattributes")
    assert arrived == files_of(released)
    assert any(name.startswith("PUT /objects/") for name in hub.requests), "no LFS object was sent"
    for name, content in repository.files.items():
        path = tmp_path / "downloaded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert "its verdict is PASS" in verify(tmp_path / "downloaded")


def test_a_later_release_replaces_the_earlier_one(hub: Hub, released: Path, copied: Path) -> None:
    (copied / "of-the-earlier-one.json").write_text("{}")
    push(copied, to(hub))
    assert "of-the-earlier-one.json" in hub.repositories[NAME].files
    push(released, to(hub))
    repository = hub.repositories[NAME]
    assert set(repository.files) - {".gitattributes"} == set(files_of(released))
    assert len(repository.commits) == 2


def test_a_repository_with_other_files_is_left_unchanged(hub: Hub, released: Path) -> None:
    hub.repositories[NAME] = Repository(False, {"thesis.pdf": b"years of work"})
    assert (
        "holds files that are not from a release and would be deleted (got thesis.pdf)"
        in refusal(hub, released)
    )
    assert hub.repositories[NAME].files == {"thesis.pdf": b"years of work"}


def test_a_public_repository_is_refused_with_private(hub: Hub, released: Path) -> None:
    push(released, to(hub, private=True))
    assert hub.repositories[NAME].private
    hub.repositories[NAME] = Repository(False)
    assert "is public already" in refusal(hub, released, private=True)
    assert hub.repositories[NAME].files == {}


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("/api/repos/create", 403, "the token has no write access"),
        ("/preupload/", 403, "the token has no write access"),
        ("/api/validate-yaml", 400, "refused: Invalid metadata in README.md"),
        ("/objects/batch", 413, "refused (413: /objects/batch is broken)"),
        ("/objects/", 403, "(403: "),
        ("/commit/main", 412, "refused (412: /commit/main is broken)"),
    ],
)
def test_a_refused_push_changes_neither_release_nor_repository(
    hub: Hub, released: Path, part: str, status: int, message: str
) -> None:
    before = files_of(released)
    hub.broken[part] = status
    text = refusal(hub, released)
    assert message in text, text
    assert "\n" not in text
    assert TOKEN not in text
    assert files_of(released) == before
    if NAME in hub.repositories:
        assert set(hub.repositories[NAME].files) == {".gitattributes"}


def test_a_wrong_token_is_reported(
    hub: Hub, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token has no write access" in refusal(hub, released)


def test_an_unreachable_hub_is_reported(
    hub: Hub, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = check_destination(NAME, False, "http://127.0.0.1:9")
    with pytest.raises(ReleaseError, match=r"not sent to http://127\.0\.0\.1:9") as caught:
        push(released, nowhere)
    assert caught.value.status == 2


@pytest.mark.parametrize("name", ["sums", "a/b/c", "some body/sums", "somebody/", "-/x"])
def test_an_invalid_name_is_refused_without_a_request(hub: Hub, name: str) -> None:
    with pytest.raises(ReleaseError, match=r"--push") as caught:
        check_destination(name, False, hub.endpoint)
    assert caught.value.status == 2
    assert hub.requests == []


def test_a_missing_token_or_offline_mode_is_refused_without_a_request(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ReleaseError, match="HF_HUB_OFFLINE is set"):
        to(hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ReleaseError, match="no token for the hub"):
        to(hub)
    assert hub.requests == []


@pytest.mark.slow
def test_the_command_releases_and_pushes(hub: Hub, run_copy: Path) -> None:
    """Run in a subprocess, since huggingface_hub reads the endpoint from the environment."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "lora_kit", "release", str(run_copy), "--push", NAME, "--private"],
        capture_output=True,
        text=True,
        env=os.environ | own | {"HF_TOKEN": TOKEN},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"On the hub: {hub.endpoint}/{NAME}/commit/1" in done.stdout
    assert hub.repositories[NAME].private
    assert TOKEN not in done.stdout + done.stderr


def refused(capsys: pytest.CaptureFixture[str], run: Path, *arguments: str) -> str:
    """Return the error message of the command, which exits with status 2."""
    with pytest.raises(SystemExit) as ended:
        main(["release", str(run), *arguments])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    return said


def test_the_command_without_a_token_creates_nothing(
    hub: Hub,
    run_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(run_copy / "release", ignore_errors=True)
    monkeypatch.setenv("HF_TOKEN", "")
    nobody = str(run_copy / "nobody")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", nobody)
    said = refused(capsys, run_copy, "--push", NAME)
    assert "no token for the hub" in said
    assert "Traceback" not in said
    assert not (run_copy / "release").exists()
    assert hub.requests == []


def test_options_without_their_counterpart_are_refused(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, part in (
        (["--private"], "--private: has no effect alone. Fix: add --push"),
        (["--accept", "inconclusive"], "a reason is missing"),
        (["--reason", "because"], "used only with --accept"),
    ):
        assert part in refused(capsys, run_copy, *arguments)
