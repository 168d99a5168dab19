"""Loop the middle blocks of a pretrained Llama, and compare it by depth with the untouched model, at equal tokens.

    python examples/recurrent_stories.py --model LLAMA --data STORIES --out out [--runs tuned retrofit] [--seeds 0 1 2]

LLAMA is a folder of a model of five blocks, such as stories260K. STORIES is a text file, gzipped or not; its last
tenth is held out: a half for choices (dev), a half that is measured once (test). You may interrupt the script and start
it again: it skips finished runs.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, default_data_collator

from _arguments import command_line, training_arguments
from hf_stages import AtDepths, Linear, MakeRecurrent, Stage, StagedTrainer, Ternarize, pack
from hf_stages.layers import at_depth
from ternary_stories import LOAD, read

DEPTHS = (1, 2, 4, 8, 16, 32)
LOOPED = {"prelude": 1, "core": 3, "coda": 1, "norm": "pre"}
TERNARY = Ternarize(method="absmean", per="tensor", embeddings=False, exclude="*.adapter")  # an identity at first
RUNS = {
    "tuned": [],
    "retrofit": [MakeRecurrent(**LOOPED, mean_depth=4)],
    "ramp": [MakeRecurrent(**LOOPED, mean_depth=Linear(0, 8))],
    "sum": [MakeRecurrent(**LOOPED, mean_depth=4, adapter_start="sum")],
    "sandwich": [MakeRecurrent(**{**LOOPED, "norm": "sandwich"}, mean_depth=4)],
    "added": [MakeRecurrent(**LOOPED, mean_depth=4, adapter="add", state_init="zeros")],
    "ternary": [MakeRecurrent(**LOOPED, mean_depth=4), TERNARY],
}


def parse(words=None) -> argparse.Namespace:
    parser = command_line(__doc__, required=("--model", "--data", "--out"))
    parser.add_argument("--runs", nargs="*", default=["tuned", "retrofit"], choices=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, value in {"--updates": 300, "--batch": 4, "--length": 256}.items():
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (default: 1e-3)")
    parser.add_argument("--pack", action="store_true", help="pack ternary runs, and let them generate")
    parser.add_argument("--test", action="store_true", help="measure the test text in place of dev")
    return parser.parse_args(words)


def tokens_a_second(model, prompt: torch.Tensor, depth: int, count: int) -> float:
    """Generate greedily at a depth; the time is the processor's."""
    with at_depth(model, depth):
        model.generate(prompt, max_new_tokens=2, do_sample=False)
        began = time.process_time()
        model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return count / (time.process_time() - began)


def show_packed(folder: Path, tokenizer, count: int = 100) -> None:
    size = pack(next(folder.glob("01-*")), folder / "packed", overwrite=True)
    model, prompt = LOAD(folder / "packed"), tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    speeds = ", ".join(f"{tokens_a_second(model, prompt, depth, count):.0f} at {depth}" for depth in (1, 4, 8))
    print(f"{size.bytes / 2**10:.0f} KiB, {size.bits_per_weight:.2f} bits per weight; tokens a second: {speeds}")


def main(words=None) -> None:
    # 1. Read the text.
    options = parse(words)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data, part = read(options.data, tokenizer, options.length), "test" if options.test else "dev"

    # 2. Train every run with every seed, unless its result is there.
    for name, seed in itertools.product(options.runs, options.seeds):
        folder = options.out / f"{name}-{options.rate:g}-{seed}"
        result = folder / f"{part}.json"
        if not result.exists():
            args = training_arguments(
                folder, per_device_train_batch_size=options.batch, learning_rate=options.rate, warmup_steps=0.1,
                seed=seed,
            )  # fmt: skip
            trainer = StagedTrainer(
                LOAD(options.model),
                args,
                stages=[Stage(name, f"{options.updates} steps", transforms=RUNS[name])],
                train_dataset=data["train"],
                processing_class=tokenizer,
                data_collator=default_data_collator,
            )
            trainer.train(resume_from_checkpoint=True)

            # 3. Measure it at every depth; a model without a core has one.
            result.write_text(json.dumps(trainer.evaluate(AtDepths(data[part], DEPTHS))))
        if options.pack and name == "ternary":
            show_packed(folder, tokenizer)
        found = json.loads(result.read_text())
        perplexities = [found.get(f"eval_ppl_at_{depth}", math.exp(found["eval_loss"])) for depth in DEPTHS]
        print(f"{name:14} seed {seed}  {part} " + " ".join(f"{value:.3f}" for value in perplexities), flush=True)


if __name__ == "__main__":
    main()
