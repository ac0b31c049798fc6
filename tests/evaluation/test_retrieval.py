"""What is taken from training rows to answer with."""

from lora_kit.data.rows import Message, Row
from lora_kit.evaluation.engine.retrieval import Retriever
from lora_kit.evaluation.tasks import shot_of

ASKED, ANSWERED = Message("user", "Why is it so?"), Message("assistant", "So.")
ROWS = (
    Row("f:1", "", (ASKED, ANSWERED)),
    Row("f:2", "", (ASKED, ANSWERED, ASKED)),
    Row("f:3", "", (ANSWERED,)),
    Row("f:4", "", text="Prose."),
)


def test_only_rows_that_end_with_an_answer_are_examples() -> None:
    """Where all is learned, a conversation may end with a question."""
    assert [shot_of(row) for row in ROWS] == [(ASKED, ANSWERED), None, None, None]
    retriever = Retriever.of(ROWS)
    assert retriever is not None
    assert retriever.answers == ("So.",)
    assert Retriever.of(ROWS[1:]) is None
