"""What is checked of the examples before step 1."""

from __future__ import annotations

from lora_kit.data.tokenization import end_of_turn
from lora_kit.preflight.isolation import logit_spacing, packed_difference
from lora_kit.preflight.situation import Situation
from lora_kit.runtime.errors import DataError, TrainingError

# Two float32 computations of one thing differ by less (measured: 1e-5); neighbours that can be seen
# change logits by more than 0.1. In half precision two computations differ by several spacings of
# its numbers at the size of the logits.
LEAK = 1e-2
SPACINGS = 16


def something_to_learn(situation: Situation) -> None:
    """Raises DataError if no token of any example is supervised."""
    if not any(example.supervised for example in situation.examples):
        raise DataError(
            f"data: none of the {len(situation.examples)} examples has a supervised token, so that "
            "nothing would be trained at a loss of 0. Raise data.max_length, or check data.train_on"
        )


def learns_to_stop(situation: Situation) -> None:
    """Raises DataError if turns end, but no end of a turn is learned."""
    try:
        end = end_of_turn(situation.loaded.tokenizer)
    except DataError:
        # A template without such a token refuses conversations when they are tokenized; that these
        # examples are there means that they are plain texts.
        return
    seen = any(end in example.input_ids for example in situation.examples)
    learned = any(end in example.labels for example in situation.examples)
    if seen and not learned:
        raise DataError(
            "data: no example ends its answer: the token that ends a turn is never supervised, and "
            "the model would not learn to stop. Raise data.max_length, so that answers are not cut"
        )


def begins_once(situation: Situation) -> None:
    """Raises DataError if examples begin with two tokens that mark the beginning."""
    start = situation.loaded.tokenizer.bos_token_id
    for example in situation.examples:
        if start is not None and example.input_ids[:2] == (start, start):
            raise DataError(
                f"{example.origin or 'data'}: begins with two beginning-of-text tokens, from the "
                "chat template and from the tokenizer; the model has never seen that"
            )


def packed_apart(situation: Situation) -> None:
    """Raises TrainingError if an example sees another one of its row."""
    difference = packed_difference(situation.attached, situation.examples)
    spacing = logit_spacing(situation.attached, situation.examples)
    if difference > max(LEAK, SPACINGS * spacing):
        raise TrainingError(
            "data.packing: examples of one row see one another with this backbone (logits differ "
            f"by {difference:.2g} from those of the example alone). Set data.packing: false"
        )
