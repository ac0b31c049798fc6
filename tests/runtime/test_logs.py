"""A right run says nothing of kernels that bitsandbytes does without.

tests/preflight/test_libraries.py looks at a process that imports lora_kit first, and bitsandbytes.
"""

import logging

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
