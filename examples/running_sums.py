"""Train a recurrent model on sums of bits, and see what deeper thinking adds, also on rows longer than it was taught.

At each bit the model says whether the sum so far is even or odd. The further a bit is from the start, the more
additions its answer takes: position is difficulty. The table gives the share of right answers by depth and position.
The run takes one or two minutes on a CPU.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from _arguments import command_line, training_arguments
from hf_stages import AtDepths, MakeRecurrent, Stage, StagedTrainer
from hf_stages.layers import at_depth, carrying_states

DEPTHS, TAUGHT = (1, 2, 4, 8, 16, 32, 64), 16


def sums(count: int, length: int, seed: int) -> Dataset:
    """Make rows of random bits. The label after each bit is the sum up to it, modulo 2; the last bit has none."""
    draw = random.Random(seed)
    rows = [[draw.randrange(2) for _ in range(length + 1)] for _ in range(count)]
    labels = [[-100, *(total % 2 for total in accumulate(row[:-1]))] for row in rows]
    return Dataset.from_dict({"input_ids": rows, "labels": labels})


@torch.no_grad()
def right_answers(model: LlamaForCausalLM, rows: Dataset, group: int, depths: Sequence[int] = DEPTHS) -> dict:
    """Give for each depth the share of right answers, by groups of positions."""
    ids, labels = (torch.tensor(rows[name][:]) for name in ("input_ids", "labels"))
    found = {}
    with carrying_states(model.eval()):
        for depth in depths:
            with at_depth(model, depth):
                right = model(input_ids=ids).logits[:, :-1].argmax(-1) == labels[:, 1:]
            found[depth] = [part.float().mean().item() for part in right.split(group, dim=1)]
    return found


def main(
    out: Path, steps: int, *, seed: int = 0, start: str = "sum", mean: float = 6, blocks: int = 2, asked: int = 512
) -> dict[int, list[float]]:
    # 1. Make a Llama of small blocks.
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=2, hidden_size=64, intermediate_size=128, num_hidden_layers=blocks, num_attention_heads=4,
        initializer_range=0.08, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip

    # 2. Train it with its last block as a core, which runs seven times on average.
    looped = MakeRecurrent(prelude=blocks - 1, core=1, coda=0, mean_depth=mean, adapter_start=start)
    args = training_arguments(
        out, per_device_train_batch_size=64, learning_rate=2e-3, lr_scheduler_type="cosine",
        warmup_steps=min(50, steps // 4), adam_beta2=0.95, seed=seed,
    )  # fmt: skip
    trainer = StagedTrainer(
        LlamaForCausalLM(config),
        args,
        stages=[Stage("sums", f"{steps} steps", transforms=[looped])],
        train_dataset=sums(64 * steps, TAUGHT, seed),
        eval_dataset=AtDepths(sums(asked // 8, 2 * TAUGHT, seed=-1), DEPTHS),
    )
    trainer.train()

    # 3. Count the right answers on rows twice as long.
    return right_answers(trainer.model, sums(asked, 2 * TAUGHT, seed=-2), group=4)


def table(found: dict[int, list[float]]) -> str:
    ends = range(4, 4 * len(found[1]) + 1, 4)
    heads = "bits     " + "".join(f"{end - 3:>4}-{end:<2}" for end in ends) + f"   (taught: up to {TAUGHT})"
    rows = [f"depth {depth:<3}" + "".join(f"{share:>7.0%}" for share in shares) for depth, shares in found.items()]
    return "\n".join([heads, *rows])


if __name__ == "__main__":
    parser = command_line(__doc__, out="running-sums-out", steps=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", choices=["input", "sum"], default="sum", help="what the adapter does at first")
    parser.add_argument("--mean", type=float, default=6, help="mean depth less one; 0: the core runs once, always")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of the model, whose last is the core")
    options = vars(parser.parse_args())
    print(table(main(options.pop("out"), options.pop("steps"), **options)))
