"""Scripts in new processes, forked from a server that has imported the libraries, not lora_kit.

A new interpreter takes 7 s to import torch, transformers and PEFT; a fork has them. The server is
started with the first script, and ends with the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

PACKAGE = "lora_kit"
FORKING = multiprocessing.get_context("forkserver")
# A model class that is missing here is imported by each script that needs it.
FORKING.set_forkserver_preload(
    [
        "torch",
        "peft",
        "safetensors.torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        *(
            f"transformers.models.{family}.modeling_{family}"
            for family in ("bart", "bert", "llama", "t5")
        ),
        "transformers.pipelines",
        "transformers.tokenization_utils_tokenizers",
    ]
)


def run_plain(script: str, *arguments: object) -> str:
    """Run a script in a new process that cannot import lora_kit, and return its output.

    Args:
        script: source code.
        arguments: arguments of the script, from `sys.argv[1]` on.

    Raises:
        AssertionError: the script failed; its error output is the message.
    """
    return _fork(script, arguments, PACKAGE)


def run_new(script: str, *arguments: object) -> str:
    """Run a script in a new process that imports lora_kit itself; like `run_plain` otherwise."""
    return _fork(script, arguments, "")


def _fork(script: str, arguments: tuple[object, ...], hidden: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        texts = [str(argument) for argument in arguments]
        state = (str(Path.cwd()), dict(os.environ), hidden)
        process = FORKING.Process(target=_run, args=(script, texts, out, err, *state))
        process.start()
        process.join()
        assert process.exitcode == 0, err.read_text()
        return out.read_text()


def _run(
    script: str,
    arguments: list[str],
    out: Path,
    err: Path,
    folder: str,
    environment: dict[str, str],
    hidden: str,
) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    found = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    assert not found, found
    if hidden:
        # An import of it fails from now on.
        sys.modules[hidden] = None  # type: ignore[assignment]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
