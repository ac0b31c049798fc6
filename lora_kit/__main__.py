"""`python -m lora_kit`, which is what `accelerate launch -m lora_kit` starts."""

from lora_kit.cli import main

main()
