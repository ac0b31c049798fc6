import itertools
from typing import Any

import pytest

from lora_kit.data.dataset import prepare
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.data.tokenization import end_of_turn_id, tokenize, tokenize_prompt, tokenize_rows
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.errors import DataError

CHAT = (
    Message("user", "Name a colour."),
    Message("assistant", "Blue."),
    Message("user", "Another."),
    Message("assistant", "Red."),
)


def row(*messages: Message, text: str | None = None) -> Row:
    return Row("rows.jsonl:1", "c", messages, text)


def learned(tokenizer: Any, example: Any) -> str:
    return str(tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX]))


def test_only_the_answer_and_its_end_of_turn_are_supervised(tokenizer: Any) -> None:
    example = tokenize(row(*CHAT), tokenizer, 512)
    assert learned(tokenizer, example) == "Blue.<|im_end|>Red.<|im_end|>"
    assert (
        example.labels[-1]
        == end_of_turn_id(tokenizer)
        == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )


def test_tokens_equal_those_of_the_template_with_one_bos(tokenizer: Any) -> None:
    example = tokenize(row(*CHAT), tokenizer, 512)
    rendered = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in CHAT], tokenize=False
    )
    text = tokenizer.decode(list(example.input_ids))
    assert rendered.startswith(text)
    assert rendered.removeprefix(text).strip() == ""
    assert text.count("<|im_start|>system") == 1


def test_a_prompt_has_the_tokens_before_the_answer_in_training(tokenizer: Any) -> None:
    prompt = tokenize_prompt(CHAT[:1], tokenizer)
    example = tokenize(row(*CHAT[:2]), tokenizer, 512)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert example.labels[len(prompt)] != IGNORE_INDEX
    assert set(example.labels[: len(prompt)]) == {IGNORE_INDEX}


def test_a_text_is_supervised_except_for_its_first_token(tokenizer: Any) -> None:
    example = tokenize(row(text="The quick brown fox."), tokenizer, 512)
    assert example.supervised == len(example.input_ids) - 1


def test_a_long_row_is_truncated_and_marked(tokenizer: Any) -> None:
    example = tokenize(row(*CHAT), tokenizer, 20)
    assert len(example.input_ids) == 20
    assert example.truncated
    assert not tokenize(row(*CHAT), tokenizer, 512).truncated


@pytest.mark.parametrize("size", [2, 5, 7, 64])
def test_a_long_text_is_split_so_that_each_token_is_supervised_once(
    tokenizer: Any, size: int
) -> None:
    text = row(text="The quick brown fox jumps over the lazy dog, and then it sleeps.")
    whole = (*tokenize(text, tokenizer, 512).input_ids, tokenizer.eos_token_id)
    [parts] = tokenize_rows([text], tokenizer, size, "assistant", split=True)
    assert [label for one in parts for label in one.labels if label != IGNORE_INDEX] == list(
        whole[1:]
    )
    for before, after in itertools.pairwise(parts):
        assert len(before.input_ids) == size
        assert after.input_ids[0] == before.input_ids[-1]
    assert not any(one.truncated for one in parts)


def test_a_conversation_among_texts_is_truncated_not_split(tokenizer: Any) -> None:
    [parts] = tokenize_rows([row(*CHAT)], tokenizer, 30, "assistant", split=True)
    assert [len(one.input_ids) for one in parts] == [30]
    assert parts[0].truncated


def test_texts_that_are_split_are_counted(tokenizer: Any) -> None:
    spec = DataSpec.model_validate(
        {"train": [{"source": "python-reference"}], "max_length": 8, "overflow": "split"}
    )
    data = prepare([row(text="One two three. " * 6), row(text="Short.")], tokenizer, spec)
    assert (data.counts.rows, data.counts.split_rows, data.counts.truncated) == (2, 1, 0)
    assert data.counts.split_examples == data.counts.used - 1
    assert max(data.lengths) == 8


def test_a_control_token_in_a_row_is_refused_with_its_line(tokenizer: Any) -> None:
    bad = row(Message("user", "hi <|im_end|> there"), Message("assistant", "no"))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*<\|im_end\|>"):
        tokenize(bad, tokenizer, 512)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}{{ loop.length }}\n{{ m['content'] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(DataError, match="rewrites earlier turns"):
        tokenize(row(*CHAT), changed, 512)


def test_a_row_that_the_template_rejects_is_named(tokenizer: Any) -> None:
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*System role not supported"):
        tokenize(row(*CHAT), changed, 512)


def test_a_template_without_an_end_of_turn_is_refused(tokenizer: Any) -> None:
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(DataError, match="could not learn when to stop"):
        tokenize(row(*CHAT[:2]), changed, 512)


def test_a_completion_without_a_template_is_supervised_with_its_eos(tokenizer: Any) -> None:
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    example = tokenize(row(Message("user", "2 + 2 ="), Message("assistant", "4")), plain, 512)
    assert learned(plain, example).strip() == "4<|im_end|>"
    prompt = tokenize_prompt([Message("user", "2 + 2 =")], plain)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert example.labels[len(prompt)] != IGNORE_INDEX
    with pytest.raises(DataError, match="no chat template"):
        tokenize(row(*CHAT), plain, 512)


def test_a_fully_masked_dataset_is_refused_with_a_remedy(tokenizer: Any) -> None:
    spec = DataSpec.model_validate({"train": [{"source": "x"}], "max_length": 8})
    with pytest.raises(DataError, match=r"1 of 1 examples have no supervised token.*max_length"):
        prepare([row(*CHAT)], tokenizer, spec)


def test_every_row_is_counted(tokenizer: Any) -> None:
    spec = DataSpec.model_validate(
        {"train": [{"source": "x"}], "max_length": 40, "audit": {"dropped": 0.5}}
    )
    long = row(Message("user", "word " * 60), Message("assistant", "no"))
    data = prepare([row(*CHAT), row(*CHAT[:2]), long], tokenizer, spec)
    counts = data.counts
    assert (counts.rows, counts.used, counts.dropped, counts.truncated) == (3, 2, 1, 1)
    assert counts.tokens == sum(len(example.input_ids) for example in data.examples)
    assert counts.supervised_tokens == sum(example.supervised for example in data.examples)
