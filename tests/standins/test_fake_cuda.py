"""Training, scoring, drift and generation on a GPU that computes nothing: devices, waits, copies.

A wait that a case lists is one that the code of today has, and why is said beside it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.standins import fake_cuda

LOSS, NORM = "tr_loss_scalar = ", 'logs["grad_norm"] = '
DIVISOR = "num_items_in_batch = num_items_in_batch.to(device)"
# transformers logs two numbers after each step, which guards against divergence and metrics.jsonl
# need; the divisor of the next step's loss is sent after that, when nothing runs.
LOGGED = {LOSS: 1, NORM: 1, DIVISOR: 1}
# TRL's metrics, and the places of the answers in its batches.
PREFERENCES = {"training_step: ": 20, "_answer_log_probs: ": 2, "trl_trainer.py train: ": 2}
SCORES = {".cpu()": 1}
# Of generation: inputs and stop tokens, and the answers.
SENT = {"_generation_inputs: ": 2, "generate_batch: ": 8, "_generate: ": 1}
ENCODED = {"encode_prompts: ": 1}
WAITS: dict[str, dict[str, int]] = {
    "train lora": LOGGED,
    "train packed": LOGGED,
    "train varlen": LOGGED,
    "train nf4": LOGGED,
    "train classifier": LOGGED,
    "train preferences": PREFERENCES,
    "validation": {".tolist()": 1},
    "loss": SCORES,
    "loss prefix": SCORES,
    "choice tree": SCORES,
    "choice tree prefix": SCORES,
    "choice rows": SCORES,
    "choice rows prefix": SCORES,
    "classes": {".tolist()": 1},
    "drift": SCORES,
    # A batch is sent at its beginning; after each token but the last, it is asked which rows ended.
    # The rows that are encoded together, and the common beginning, are sent once as well.
    "generation": SENT | {"encode_prefix: ": 3} | ENCODED | {"append: ": 2, "_leave: ": 2},
    "generation prefix": SENT | ENCODED | {"append: ": 2, "_leave: ": 2},
}
# Tensors of a pass: ids, mask, positions and supervised tokens; a pack has no mask, but two passes;
# with `varlen`, the starts of its examples.
COPIES = {
    "train lora": 4,
    "train packed": 6,
    "train varlen": 4,
    "train nf4": 4,
    "train classifier": 5,
}


@pytest.fixture(scope="module")
def ran(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all cases in one process, since it sees a GPU from then on."""
    if fake_cuda.compiler() is None:
        pytest.skip("no C++ compiler (g++), which the fake GPU is built with")
    folder = tmp_path_factory.mktemp("fake_cuda")
    model = _of_one_layer(tiny, folder / "model")
    done = subprocess.run(
        [sys.executable, "-m", "tests.standins.fake_run", str(model), str(folder)],
        env=fake_cuda.environment(fake_cuda.build(folder)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _of_one_layer(tiny: Path, directory: Path) -> Path:
    """Copy a model with one of its layers, since each operation of a fake tensor takes 1 ms."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny, directory)
    AutoModelForCausalLM.from_pretrained(tiny, num_hidden_layers=1).save_pretrained(directory)
    return directory


def test_every_case_runs_without_mixing_devices(ran: dict[str, Any]) -> None:
    """A tensor that was left on the host stops a case; see the planted ones."""
    assert set(ran["counts"]) == set(WAITS)
    assert all(counts["kernels"] > 100 for counts in ran["counts"].values())


@pytest.mark.parametrize("case", WAITS)
def test_the_host_waits_only_where_it_must(ran: dict[str, Any], case: str) -> None:
    waits: dict[str, int] = ran["counts"][case]["waits"]
    by_reason = {
        reason: sum(count for line, count in waits.items() if reason in line)
        for reason in WAITS[case]
    }
    assert by_reason == WAITS[case], waits
    assert sum(waits.values()) == sum(WAITS[case].values()), waits


@pytest.mark.parametrize("case", COPIES)
def test_a_step_sends_what_its_passes_need_once(ran: dict[str, Any], case: str) -> None:
    assert sum(ran["counts"][case]["copies"].values()) == COPIES[case]


def test_a_model_over_two_gpus_is_scored_without_mixing_them(ran: dict[str, Any]) -> None:
    cases = ran["over two GPUs"]
    assert len(cases) == 13
    assert not any(cases.values()), cases
    # The same with a head that gets its inputs on the second GPU.
    assert "same device" in ran["planted"]["head"]


@pytest.mark.parametrize("name", ["position_ids", "input_ids", "supervised"])
def test_a_tensor_that_stays_on_the_host_is_found(ran: dict[str, Any], name: str) -> None:
    assert "same device" in ran["planted"][name]
