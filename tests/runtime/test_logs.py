"""A right run says nothing of kernels that bitsandbytes does without, in a script as well."""

import logging
import subprocess
import sys

import pytest

from lora_kit.runtime.logs import KERNEL_LOGGER, hide_missing_kernels

MESSAGE = "Failed to load CPU gemm_4bit_forward from kernels-community: no module"


def test_the_kernels_message_is_left_out_and_others_are_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_missing_kernels()
    logger = logging.getLogger(KERNEL_LOGGER)
    logger.error(MESSAGE)
    logger.error("Another error")
    assert [record.getMessage() for record in caplog.records] == ["Another error"]
    monkeypatch.setenv("LORA_KIT_DEBUG", "1")
    logger.error(MESSAGE)
    assert caplog.records[-1].getMessage() == MESSAGE


def test_a_script_that_imports_the_package_first_does_not_see_it() -> None:
    command = [sys.executable, "-c", "import lora_kit, bitsandbytes"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "kernels" not in done.stderr
