"""Evaluate any PEFT adapter directory on any suite.

    python eval/evaluate_adapter.py ADAPTER --suite core-retention --backbone smollm2-135m-instruct
    accelerate launch --num_processes 2 eval/evaluate_adapter.py ADAPTER --suite my-suite.yaml

The same as `lora-kit evaluate`, to start from a script or a launcher. `--help` lists the options.
From Python:

    from lora_kit import evaluate
    evaluation = evaluate(Path("ADAPTER"), suites=["core-retention"])
    print(evaluation.verdict.decision)
"""

import sys

from lora_kit.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
