"""Greedy generation beside transformers' `generate`: tokens a second, and the tokens themselves.

    python -m tests.benchmarks.generation [--quick] [--rows N] [--tokens N] [--rounds N]

SmolLM2-135M-Instruct answers questions of arithmetic in chats, in batches of 16. `transformers`:
`model.generate` of the model as it is loaded. `lora_kit`: `generate_batch` with the weights held as
in an evaluation; holding and packing them is measured by itself. Turn about, both warm, in one
process; rates are those of the median round. `first`: seconds to the first token, which are in the
rates. Settings: 4-bit and dense weights, with a LoRA adapter (r16 on all linear layers, random) and
without, in the dtype that `auto` chooses here and in the other one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_kit.backbone import load as backbones
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, compute_dtype
from lora_kit.data.builtin.sums import sum_rows
from lora_kit.modeling.generation import generate_batch, stop_token_ids
from lora_kit.modeling.held_weights import held_weights
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.machine import machine, versions

BATCH = 16
# `ratio_to_generate` is that of the first setting: an adapter on 4-bit weights, the default.
SETTINGS = (("nf4", True), ("nf4", False), ("none", True), ("none", False))
SIDES = ("transformers", "lora_kit")


@dataclass
class Figures:
    """Measurements of one setting.

    Attributes:
        seconds: seconds of each round, by side.
        cpu: processor seconds of each round, by side: less moved by what else the machine does.
        first: seconds to the first token of each round, by side.
        tokens: generated tokens up to the end of each answer.
        differ: positions at which the tokens differ.
        holding: seconds of dequantizing and packing the weights, once in an evaluation.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in SIDES})
    first: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in SIDES})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in SIDES})
    tokens: int = 0
    differ: int = 0
    holding: float = 0.0

    def rate(self, side: str) -> float:
        """Return the tokens a second of the median round."""
        return self.tokens / statistics.median(self.seconds[side])

    @property
    def ratio(self) -> float:
        """Our rate over that of transformers."""
        return self.rate("lora_kit") / self.rate("transformers")

    @property
    def cpu_ratio(self) -> float:
        """Processor seconds of transformers for one of ours."""
        theirs, ours = (statistics.median(self.cpu[side]) for side in SIDES)
        return theirs / ours

    @property
    def step_ratio(self) -> float:
        """Ratio of the rates after the first token."""
        theirs, ours = (
            statistics.median(self.seconds[side]) - statistics.median(self.first[side])
            for side in SIDES
        )
        return theirs / ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a rougher figure in two minutes")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    own = compute_dtype(BackboneSpec(model="", dtype="auto"))
    dtypes = [own, torch.float32 if own == torch.bfloat16 else torch.bfloat16]
    settings = [(d, q, lora) for d in dtypes for q, lora in SETTINGS]
    if arguments.quick:
        arguments.rows, arguments.rounds, settings = BATCH, 1, settings[:1]
    found = {}
    print("| weights | s to hold | token/s transformers | lora_kit | ratio | after the first "
          "token | s to the first | tokens that differ |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for dtype, quantization, lora in settings:
        name = f"{quantization}, {str(dtype).removeprefix('torch.')}{', LoRA' if lora else ''}"
        found[name] = one = _measure(dtype, quantization, lora, arguments)
        firsts = " / ".join(f"{statistics.median(one.first[side]):.2f}" for side in SIDES)
        print(f"| {name} | {one.holding:.2f} | {one.rate(SIDES[0]):.1f} | {one.rate(SIDES[1]):.1f} "
              f"| {one.ratio:.2f} | {one.step_ratio:.2f} | {firsts} "
              f"| {one.differ} of {one.tokens} |", flush=True)  # fmt: skip
    print(json.dumps(_summary(found, arguments)))


def _summary(found: dict[str, Figures], arguments: argparse.Namespace) -> dict[str, Any]:
    first = next(iter(found.values()))
    return {
        "ratio_to_generate": round(first.ratio, 2),
        "tokens_differ": sum(one.differ for one in found.values()),
        "ratios": {name: round(one.ratio, 2) for name, one in found.items()},
        "cpu_ratios": {name: round(one.cpu_ratio, 2) for name, one in found.items()},
        "step_ratios": {name: round(one.step_ratio, 2) for name, one in found.items()},
        "rows": arguments.rows,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "machine": machine(),
        "versions": versions(),
    }


@torch.inference_mode()
def _measure(
    dtype: torch.dtype, quantization: str, lora: bool, arguments: argparse.Namespace
) -> Figures:
    backbone = _backbone(dtype, quantization)
    model = _with_adapter(backbone.model) if lora else backbone.model
    batches = _batches(backbone, arguments.rows)
    ways = {"transformers": _theirs, "lora_kit": _ours}
    found, answers = Figures(), {}
    for way in ways.values():
        way(model, backbone, batches[0], 2)
    started = time.monotonic()
    with held_weights(model):
        generate_batch(model, batches[0][:2], [], backbone.tokenizer.pad_token_id, 2)
        found.holding = time.monotonic() - started
    for _ in range(arguments.rounds):
        for side, way in ways.items():
            with held_weights(model) if side == "lora_kit" else nullcontext():
                if side == "lora_kit":
                    way(model, backbone, batches[0], 2)
                for tokens, seconds in ((1, found.first), (arguments.tokens, found.seconds)):
                    started, cpu = time.monotonic(), time.process_time()
                    answers[side] = [way(model, backbone, batch, tokens) for batch in batches]
                    seconds[side].append(time.monotonic() - started)
                found.cpu[side].append(time.process_time() - cpu)
    for theirs, ours in zip(answers["transformers"], answers["lora_kit"], strict=True):
        stops = torch.tensor(stop_token_ids(backbone))
        ended = torch.isin(theirs, stops).cumsum(dim=1) - torch.isin(theirs, stops).int()
        found.tokens += int((ended == 0).sum())
        width = min(theirs.shape[1], ours.shape[1])
        found.differ += int((theirs[:, :width] != ours[:, :width]).sum())
        found.differ += abs(theirs.shape[1] - ours.shape[1])
    return found


def _backbone(dtype: torch.dtype, quantization: str) -> Backbone:
    spec = BackboneSpec(
        model="smollm2-135m-instruct",
        quantization=quantization,
        dtype=str(dtype).removeprefix("torch."),
    )
    return backbones.load(resolve(spec), spec)


def _with_adapter(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.003)
    return adapted.eval()


def _batches(backbone: Backbone, rows: int) -> list[list[list[int]]]:
    prompts = [
        backbone.tokenizer.apply_chat_template(
            [{"role": "user", "content": row.messages[0].content}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for row in sum_rows()[:rows]
    ]
    prompts.sort(key=len)
    return [prompts[n : n + BATCH] for n in range(0, len(prompts), BATCH)]


def _ours(model: Any, backbone: Backbone, prompts: list[list[int]], tokens: int) -> torch.Tensor:
    stops, pad = stop_token_ids(backbone), backbone.tokenizer.pad_token_id
    return generate_batch(model, prompts, stops, pad, tokens)


def _theirs(model: Any, backbone: Backbone, prompts: list[list[int]], tokens: int) -> torch.Tensor:
    width, pad = max(map(len, prompts)), backbone.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output: torch.Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        eos_token_id=list(stop_token_ids(backbone)),
        pad_token_id=pad,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return output[:, width:]


if __name__ == "__main__":
    main()
