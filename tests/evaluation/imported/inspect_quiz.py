"""Log of a quiz that Inspect itself writes: `python inspect_quiz.py FOLDER FORMAT EPOCHS EVERY`.

Every so manyth question is answered wrongly; in the second epoch, none.
"""

import sys
from typing import Any

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelAPI, ModelOutput, get_model, modelapi
from inspect_ai.scorer import Score, includes, match, mean, scorer
from inspect_ai.solver import generate

FOLDER, FORMAT, EPOCHS, EVERY = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ASKED: list[int] = []


class Quiz(ModelAPI):  # type: ignore[misc]
    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
        number = int(input[-1].text.split()[1])
        wrong = number % EVERY == 0 and number not in ASKED
        ASKED.append(number)
        return ModelOutput.from_content(self.model_name, "no" if wrong else "yes")

    async def count_tokens(self, *others: Any, **named: Any) -> int:
        return 1  # the default downloads a tokenizer


@modelapi(name="quiz")  # type: ignore[untyped-decorator]
def quiz() -> Any:
    return Quiz


@scorer(metrics=[{"tone": [mean()], "words": [mean()]}])  # type: ignore[untyped-decorator]
def style() -> Any:
    async def score(state: Any, target: Any) -> Any:
        return Score(value={"tone": 0.5, "words": len(state.output.completion)})

    return score


samples = [
    Sample(id=f"q{n}", input=f"Question {n} ?", target="yes", metadata={"page": n // 2})
    for n in range(40)
]
task = Task(
    dataset=MemoryDataset(samples),
    solver=generate(),
    scorer=[match(), includes(), style()],
    name="quiz",
)
eval(
    task,
    model=get_model("quiz/fixed"),
    log_dir=FOLDER,
    log_format=FORMAT,
    epochs=EPOCHS,
    display="none",
    max_samples=1,
)
