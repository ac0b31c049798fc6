"""The end of a text is written once, whether the tokenizer appends it or not."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Message
from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.data.tokenization import (
    NO_LIMIT,
    end_of_turn_id,
    tokenize,
    tokenize_prompt,
    tokenize_rows,
)
from lora_kit.evaluation.questions import Question
from lora_kit.evaluation.task_items import choice_item
from lora_kit.evaluation.task_spec import TaskSpec

START, END, SECOND = 1, 2, 3
WORDS = ("what", "is", "red", "a", "colour", "?")
ROW = parse_row({"prompt": "what is red ?", "completion": "a colour"}, "row")
# Special tokens that the tokenizer writes around a text.
AROUND = {
    "nothing": "$A",
    "a start": "<s> $A",
    "an end": "$A </s>",
    "a start and an end": "<s> $A </s>",
    "two ends": "<s> $A </s> <end>",
}


@pytest.fixture(params=AROUND.values(), ids=AROUND.keys())
def tokenizer(request: Any) -> PreTrainedTokenizerFast:
    special = {"<unk>": 0, "<s>": START, "</s>": END, "<end>": SECOND}
    vocabulary = {**special, **{word: number for number, word in enumerate(WORDS, start=4)}}
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(special))
    backend.post_processor = processors.TemplateProcessing(
        single=request.param, special_tokens=list(special.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=64,
    )


def test_an_answer_ends_with_one_learned_end(tokenizer: PreTrainedTokenizerFast) -> None:
    example = tokenize(ROW, tokenizer, NO_LIMIT)
    answer = tuple(tokenizer("a colour", add_special_tokens=False)["input_ids"])
    assert example.input_ids[-3:] == example.labels[-3:] == (*answer, END)
    assert example.input_ids.count(END) == 1
    assert example.supervised == 3
    assert end_of_turn_id(tokenizer) == END
    unlearned = tokenize(ROW, tokenizer, NO_LIMIT, ["user"])
    assert END not in unlearned.labels


def test_a_text_that_is_split_ends_with_one_learned_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = parse_row({"text": "red is a colour"}, "row")
    ((example,),) = tokenize_rows([row], tokenizer, 32, "assistant", split=True)
    assert example.input_ids.count(END) == 1
    assert (example.input_ids[-1], example.labels[-1]) == (END, END)


def test_a_prompt_goes_on(tokenizer: PreTrainedTokenizerFast) -> None:
    """The answer of a training example follows exactly the tokens of the prompt."""
    prompt = tuple(tokenize_prompt([Message("user", "what is red ?")], tokenizer))
    assert END not in prompt
    example = tokenize(ROW, tokenizer, NO_LIMIT)
    assert example.input_ids[: len(prompt)] == prompt
    assert set(example.labels[: len(prompt)]) == {IGNORE_INDEX}


def test_a_choice_goes_on_from_its_question(tokenizer: PreTrainedTokenizerFast) -> None:
    spec = TaskSpec(name="colours", kind="multiple_choice", source="x.jsonl", template="{question}")
    question = Question("1", {"question": "what is"}, ("red", "a colour"), 0, "1")
    request: Any = choice_item(question, (), spec, tokenizer).request
    assert END not in request.prompt_ids
    assert [len(branch.input_ids) for branch in request.branches] == [1, 2]
