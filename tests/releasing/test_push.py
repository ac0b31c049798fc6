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
from lora_kit.releasing.push import Destination, destination, push
from lora_kit.runtime.errors import ReleaseError
from tests.releasing.hub import TOKEN, Hub, Repository, serving

NAME = "somebody/sums"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Of xet there is no stand-in; without it the same files go as LFS objects.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serving() as served:
        yield served


def to(hub: Hub, private: bool = False) -> Destination:
    return destination(NAME, private, hub.endpoint)


def refusal(hub: Hub, release: Path, private: bool = False) -> str:
    with pytest.raises(ReleaseError) as caught:
        push(release, to(hub, private))
    assert caught.value.status == 2
    return str(caught.value)


def files_of(release: Path) -> dict[str, bytes]:
    return {name: (release / name).read_bytes() for name in (*files_below(release), MANIFEST)}


def test_what_arrives_is_the_release_in_one_commit_and_verifies(
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


def test_a_later_release_takes_the_place_of_the_earlier_one(
    hub: Hub, released: Path, copied: Path
) -> None:
    (copied / "of-the-earlier-one.json").write_text("{}")
    push(copied, to(hub))
    assert "of-the-earlier-one.json" in hub.repositories[NAME].files
    push(released, to(hub))
    repository = hub.repositories[NAME]
    assert set(repository.files) - {".gitattributes"} == set(files_of(released))
    assert len(repository.commits) == 2


def test_somebody_elses_files_are_left_alone(hub: Hub, released: Path) -> None:
    hub.repositories[NAME] = Repository(False, {"thesis.pdf": b"years of work"})
    assert "holds files that are of no release, such as thesis.pdf" in refusal(hub, released)
    assert hub.repositories[NAME].files == {"thesis.pdf": b"years of work"}


def test_private_is_private_or_nothing_is_sent(hub: Hub, released: Path) -> None:
    push(released, to(hub, private=True))
    assert hub.repositories[NAME].private
    hub.repositories[NAME] = Repository(False)
    assert "is public already" in refusal(hub, released, private=True)
    assert hub.repositories[NAME].files == {}


@pytest.mark.parametrize(
    ("part", "status", "told"),
    [
        ("/api/repos/create", 403, "the token may not write there"),
        ("/preupload/", 403, "the token may not write there"),
        ("/api/validate-yaml", 400, "refused: Invalid metadata in README.md"),
        ("/objects/batch", 413, "refused (413: /objects/batch is broken)"),
        ("/objects/", 403, "(403: "),
        ("/commit/main", 412, "refused (412: /commit/main is broken)"),
    ],
)
def test_a_hub_that_refuses_leaves_both_sides_as_they_were(
    hub: Hub, released: Path, part: str, status: int, told: str
) -> None:
    before = files_of(released)
    hub.broken[part] = status
    text = refusal(hub, released)
    assert told in text, text
    assert "\n" not in text
    assert TOKEN not in text
    assert files_of(released) == before
    if NAME in hub.repositories:
        assert set(hub.repositories[NAME].files) == {".gitattributes"}


def test_a_wrong_token_is_told(hub: Hub, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token may not write there" in refusal(hub, released)


def test_a_hub_that_is_not_there_is_told(
    hub: Hub, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = destination(NAME, False, "http://127.0.0.1:9")
    with pytest.raises(ReleaseError, match=r"not sent to http://127\.0\.0\.1:9") as caught:
        push(released, nowhere)
    assert caught.value.status == 2


@pytest.mark.parametrize("name", ["sums", "a/b/c", "some body/sums", "somebody/", "-/x"])
def test_a_name_that_is_none_is_refused_before_anything(hub: Hub, name: str) -> None:
    with pytest.raises(ReleaseError, match=r"--push") as caught:
        destination(name, False, hub.endpoint)
    assert caught.value.status == 2
    assert hub.requests == []


def test_without_a_token_or_offline_nothing_is_begun(
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
    """In a process of its own: where the hub is, its library takes from the environment."""
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
    """What the command says, in this process, before it ends with 2."""
    with pytest.raises(SystemExit) as ended:
        main(["release", str(run), *arguments])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    return said


def test_the_command_without_a_token_makes_nothing(
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


def test_options_that_go_with_others_are_refused_alone(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, part in (
        (["--private"], "--private goes with --push"),
        (["--accept", "inconclusive"], "say why"),
        (["--reason", "because"], "goes with --accept"),
    ):
        assert part in refused(capsys, run_copy, *arguments)
