from pathlib import Path

from lora_kit.pipeline import verify


def test_a_release_verifies(released: Path) -> None:
    assert "its verdict is PASS" in verify(released)
    print((released / "README.md").read_text())
    print((released / "manifest.json").read_text())
