"""Selection of training rows that the retrieval arm answers from."""

from lora_kit.data.rows import Message, Row
from lora_kit.evaluation.engine.retrieval import Retriever
from lora_kit.evaluation.tasks import as_shot

ASKED, ANSWERED = Message("user", "Why is it so?"), Message("assistant", "So.")
ROWS = (
    Row("f:1", "", (ASKED, ANSWERED)),
    Row("f:2", "", (ASKED, ANSWERED, ASKED)),
    Row("f:3", "", (ANSWERED,)),
    Row("f:4", "", text="Prose."),
)


def test_only_rows_that_end_with_an_answer_are_examples() -> None:
    """A conversation may end with a question if all of its turns are trained on."""
    assert [as_shot(row) for row in ROWS] == [(ASKED, ANSWERED), None, None, None]
    retriever = Retriever.of(ROWS)
    assert retriever is not None
    assert retriever.answers == ("So.",)
    assert Retriever.of(ROWS[1:]) is None
