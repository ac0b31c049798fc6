"""Coherence: whole texts pass; fragments, loops, signs and echoes do not."""

import pytest

from lora_kit.metrics.coherence import coherent, no_echo

WHOLE = [
    "I can't do that.",
    "The heart pumps the blood through the body.",
    "The sun, the moon, the stars.",
    "The cat sat on the mat and looked at the birds in the garden.",
    "1. Open the file.\n2. Change the name.\n3. Save the file.",
    "Find the process with `ps aux | grep python`, then run `kill -9 4242`.",
    "Row, row, row your boat, gently down the stream.",
    "Die Katze schläft, weil sie müde ist.",
    "Use a fast lens, raise the ISO, and keep the shutter speed above one in two hund",
    "<think>loop loop loop loop</think>The answer is that water boils.",
]
BROKEN = {
    "nothing": "",
    "a fragment": "The cat",
    "one word in a loop": "help help help help help",
    "a sentence in a loop": "I am here to help you. " * 5,
    "a line in a loop": "Open the file.\nClose it now.\n" + "Write the name.\n" * 3,
    "an end in a loop": "It is a good idea to read the book" + ", and the book" * 6,
    "signs": "#### ;;;; 00 {}{}{} == a b c d",
    "numbers": "12 45 77 89 10 is it or 14 15 16 17 18",
    "letters": "a b c d e f g h i j k",
    "words run together": "thecatsatonthematandlookedatthebirds inthegardenonthehill near by",
    "an unfinished thought": "<think>The user wants to know how plants grow and what they need",
}


@pytest.mark.parametrize("response", WHOLE)
def test_a_whole_text_is_coherent(response: str) -> None:
    assert coherent(response, True)
    assert not coherent(response, False)


@pytest.mark.parametrize("response", BROKEN.values(), ids=BROKEN)
def test_a_broken_text_is_not(response: str) -> None:
    assert not coherent(response, True)
    assert coherent(response, False)


PROMPT = "How do I kill a Python process that hangs?"


@pytest.mark.parametrize(
    "response",
    [
        PROMPT,
        PROMPT.upper(),
        f'"{PROMPT}" Yes.',
        "Kill a Python process that hangs",
        f"{PROMPT} " * 3,
    ],
)
def test_an_echo_is_found(response: str) -> None:
    assert not no_echo(response, PROMPT)


@pytest.mark.parametrize(
    "response",
    ["Run kill.", f"{PROMPT} First find its number with ps, and then run kill in a new terminal."],
)
def test_an_answer_may_name_the_request(response: str) -> None:
    assert no_echo(response, PROMPT)
