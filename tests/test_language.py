"""Docstrings and documents begin as the style asks: with a verb or a noun, not with a question."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUESTIONS = {"What", "Of", "Whether", "How"}
# Question words as a subject, and pronouns without a noun.
OPENINGS = QUESTIONS | {"It", "Its", "They", "Them", "Those", "These", "That"}
# Entries of `Args:`, `Attributes:`, `Returns:`: a name and its description.
ENTRY = re.compile(r"^ {4,}\w+: (\w+)", re.MULTILINE)
CODE = sorted(path for folder in ("lora_kit", "tests") for path in (ROOT / folder).rglob("*.py"))
PAGES = ("README.md", "recipes/**/*.md", "eval/*.md", "accelerate_configs/*.md")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring, those of attributes too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    odd = []
    for path in CODE:
        for line, text in docstrings(path):
            words = [text.split(maxsplit=1)[0] if text.split() else "", *ENTRY.findall(text)]
            place = f"{path.relative_to(ROOT)}:{line}"
            odd += [f"{place}: {word}" for word in words if word.capitalize() in OPENINGS]
    assert not odd, odd


def test_pages_open_no_sentence_with_a_question_word() -> None:
    odd = []
    for path in (path for pattern in PAGES for path in ROOT.glob(pattern)):
        prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for sentence in re.split(r"(?<=[.:])\s+|\n\n", prose):
            words = sentence.split()
            asks = sentence.rstrip().rstrip("|* ").endswith("?")
            if words and words[0] in QUESTIONS and not asks:
                odd.append(f"{path.relative_to(ROOT)}: {sentence[:60]}")
    assert not odd, odd
