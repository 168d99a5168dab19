"""Train models with a recurrent core: one that goes well, two that go wrong, and one that is brought back.

All have the same blocks, data and order. ``good`` has norms on all sums (sandwich). ``collapsed`` is made as the first
bad run of Huginn's paper (https://arxiv.org/abs/2502.05171, figure 5): norms without gains, the input added to the
state, a rate ten times too high. All its tokens become alike. ``prenorm`` has norms before its layers alone, as the
second bad run: cycles that it is trained with make no difference, and more of them ruin it. Detectors name both.
``rescued`` is ``collapsed`` with an action: back to where it began, at a tenth of the rate. All four take a few minutes
on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from _arguments import command_line, training_arguments
from hf_stages import (
    AtDepths,
    DeadRecurrence,
    MakeRecurrent,
    Overthinking,
    Rollback,
    Stage,
    StagedTrainer,
    TokenCollapse,
    TokenCorrelation,
)
from hf_stages.commands.cli import main as hf_stages
from hf_stages.data.sample_text import blocks, byte_tokenizer, prose
from hf_stages.reports.run_folder import read_run

RATE = 3e-3
COLLAPSING = {"adapter": "add", "learned_norms": False}
RUNS: dict[str, tuple[dict[str, Any], float]] = {
    "good": ({"adapter_start": "sum"}, RATE),
    "collapsed": (COLLAPSING, 10 * RATE),
    "prenorm": ({"adapter_start": "sum", "norm": "pre"}, RATE),
    "rescued": (COLLAPSING, 10 * RATE),
}
SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}


def main(out: Path, steps: int, names: Sequence[str] = tuple(RUNS)) -> dict[str, list[str]]:
    torch.set_num_threads(1)  # models as small as these lose more by sharing work than they gain

    # 1. Train the runs, one after another.
    for name in names:
        train(out / name, name, steps)

    # 2. Compare them: a table, and a page with the three panels.
    hf_stages(["compare", *(str(out / name) for name in names), "-o", str(out / "panels.html")])

    # 3. Say who found what.
    ledgers = {name: read_run(out / name).ledger for name in names}
    found = {name: [entry["by"] for entry in ledger if entry["kind"] != "end"] for name, ledger in ledgers.items()}
    for name, detectors in found.items():
        print(f"{name}: {', '.join(dict.fromkeys(detectors)) or 'nothing found'}")
    return found


def train(out: Path, name: str, steps: int) -> None:
    set_seed(0)
    tokenizer = byte_tokenizer()
    changes, rate = RUNS[name]
    # Far enough back to come before the collapse, which begins at once.
    then = [Rollback(steps=80, factor=0.1)] if name == "rescued" else []
    trainer = StagedTrainer(
        LlamaForCausalLM(LlamaConfig(vocab_size=258, initializer_range=0.08, **SIZE)),
        training_arguments(
            out,
            learning_rate=rate,
            warmup_steps=0.1,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=64,
            logging_steps=5,
            eval_strategy="steps",
            eval_steps=max(steps // 12, 1),
        ),
        train_dataset=blocks(prose(200_000), tokenizer, 64),
        eval_dataset=AtDepths(blocks(prose(2_000, split="eval"), tokenizer, 64)),
        processing_class=tokenizer,
        stages=[
            Stage(
                "main",
                f"{steps} steps",
                transforms=[MakeRecurrent(1, 1, 1, mean_depth=4, **changes)],
                monitors=[TokenCorrelation(every=5)],
                gates=[TokenCollapse(warn_for=40, collapsed_for=40, then=then), DeadRecurrence(), Overthinking()],
            )
        ],
    )
    trainer.train()


if __name__ == "__main__":
    options = command_line(__doc__, out="recurrent-out", steps=600, steps_help="updates of each run").parse_args()
    main(options.out, options.steps)
