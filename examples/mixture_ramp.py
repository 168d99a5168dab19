"""A stage that goes from prose to code: its shares are curves, and what it really drew is written beside what was declared.

Two stages on the standard library's own text: prose alone, then a ramp into code with the easy blocks first. Half a minute on
a CPU. The last lines show the mixture over the stage, declared and realized, and what became of both domains.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.data import ByDifficulty, Mixture
from hf_stages.data.sample_text import blocks, byte_tokenizer, code, prose
from hf_stages.schedules import Rewarm


def variety(rows: list[dict]) -> list[int]:
    """How hard a block of code is, for the sake of the example: how many different bytes it has."""
    return [len(set(row["input_ids"])) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of each stage")
    parser.add_argument("--out", default="mixture-out")
    options = parser.parse_args()
    set_seed(0)
    tokenizer = byte_tokenizer()
    texts = {"prose": prose, "code": code}
    data = {name: blocks(text(150_000), tokenizer, 128) for name, text in texts.items()}
    held_out = {name: blocks(text(15_000, split="eval"), tokenizer, 128) for name, text in texts.items()}
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=258, initializer_range=0.08, **size)
    hard = {"code": ByDifficulty("code", by=variety, window=64)}
    ramp = Mixture({"prose": Linear(1, 0.3), "code": Linear(0, 0.7)}, sources=hard)
    quiet = {"logging_steps": 20, "save_strategy": "no", "report_to": "none"}
    trainer = StagedTrainer(
        LlamaForCausalLM(config),
        TrainingArguments(options.out, per_device_train_batch_size=8, learning_rate=3e-3, **quiet),
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        stages=[
            Stage("prose", f"{options.steps} steps", train_dataset="prose"),
            Stage("ramp", f"{options.steps} steps", train_dataset=ramp, schedule=Rewarm(to=1.5e-3)),
        ],
    )
    trainer.train()

    summary = json.loads((Path(options.out) / "02-ramp" / "stage.json").read_text())
    print("\nprogress  code declared  realized")
    for point in summary["data"]["over_time"][::4]:
        print(f"{point['t']:>7.0%}   {point['declared']['code']:>12.1%}  {point['share']['code']:>8.1%}")
    for name, about in summary["data"]["sources"].items():
        print(f"{name}: {about['examples']} examples, {about['tokens']} tokens, {about['passes']:.2f} passes")
    before = json.loads((Path(options.out) / "01-prose" / "stage.json").read_text())["metrics"]
    for name in data:
        key = f"eval_{name}_loss"
        print(f"loss on {name}: {before[key]:.2f} after prose, {summary['metrics'][key]:.2f} after the ramp")


if __name__ == "__main__":
    main()
