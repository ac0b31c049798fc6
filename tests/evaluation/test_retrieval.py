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


def test_other_examples_have_another_identity() -> None:
    """TF-IDF has the same values for texts of the same shape."""

    def identity(*prompts: str) -> str:
        rows = [Row(f"f:{p}", "", (Message("user", p), ANSWERED)) for p in prompts]
        retriever = Retriever.of(rows)
        assert retriever is not None
        return retriever.identity

    assert identity("red apple", "blue sky") != identity("green pear", "dark moon")
    assert identity("red apple", "blue sky") == identity("red apple", "blue sky")
