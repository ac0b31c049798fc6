"""Two independent halves of the work."""

import pytest

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.halves import halve
from lora_kit.evaluation.suite import Suite
from lora_kit.runtime.errors import EvaluationError
from lora_kit.statistics.halves import MIN_CLUSTERS


def planned(backbone: Backbone, source: str, limit: int) -> list[Work]:
    # One cluster a topic, of several items.
    task = {"name": "prose", "kind": "loss", "source": source, "limit": limit, "max_length": 64}
    return plan_work(
        [Suite.model_validate({"name": "s", "role": "gain", "tasks": [task]})], backbone
    )


def test_work_is_halved_without_an_item_twice_or_lost(tiny_backbone: Backbone) -> None:
    (whole,) = planned(tiny_backbone, "python-reference", 40)
    halves = halve([whole], tiny_backbone)
    (a,), (b,) = halves.a, halves.b
    assert len({item.cluster for item in whole.task.items}) < len(whole.task.items)
    ids = [[item.id for item in part.task.items] for part in (a, b)]
    assert sorted(ids[0] + ids[1]) == sorted(item.id for item in whole.task.items)
    assert not {i.cluster for i in a.task.items} & {i.cluster for i in b.task.items}
    for part in (a, b):
        assert sorted(n for batch in part.batches for n in batch) == list(
            range(len(part.task.items))
        )
    # Results of the one are never taken for the other's, nor for the whole's.
    assert len({one.key("base", "x") for one in (whole, a, b)}) == 3


def test_a_task_of_too_few_clusters_is_refused_with_the_number_needed(
    tiny_backbone: Backbone,
) -> None:
    work = planned(tiny_backbone, "python-reference", 4)
    with pytest.raises(
        EvaluationError, match=rf"s/prose: .*\(got 4 items .* at least {2 * MIN_CLUSTERS},"
    ):
        halve(work, tiny_backbone)
