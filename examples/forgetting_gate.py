"""Train on language, then on code at a rate that forgets language, under four gates.

The first gate only reports. The others cut the learning rate, go back to an earlier state, or replay language.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from _arguments import command_line, training_arguments
from hf_stages import Const, Forgetting, Fresh, Stage, StagedTrainer
from hf_stages.data.sample_text import blocks, byte_tokenizer, code, prose
from hf_stages.reports.domain_matrix import domain_matrix

TOKENIZER, BLOCK = byte_tokenizer(), 128
BYTES = {"train": 200_000, "eval": 15_000}
ACTIONS = {"free": "alert", "cut_lr": "cut_lr", "rollback": "rollback", "replay": "replay"}


def train(out: Path, data: dict, gate: Forgetting, steps: int, seed: int) -> float:
    """Train both stages; returns by which share the loss on language rose in the second one."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.08, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    args = training_arguments(
        out, seed=seed, per_device_train_batch_size=8, per_device_eval_batch_size=32, eval_strategy="steps",
        eval_steps=max(steps // 6, 1), logging_steps=10,
    )  # fmt: skip
    schedule = Fresh(peak=3e-3, warmup="10 %", shape=Const(1))
    trainer = StagedTrainer(
        LlamaForCausalLM(config),
        args,
        stages=[
            Stage("language", f"{steps} steps", train_dataset=data["language"][0], schedule=schedule),
            Stage("code", f"{steps} steps", train_dataset=data["code"][0], schedule=schedule, gates=[gate]),
        ],
        eval_dataset={name: held_out for name, (_, held_out) in data.items()},
        processing_class=TOKENIZER,
    )
    trainer.train()
    losses = domain_matrix(out)["metrics"]["loss"]["values"]
    return losses["code"]["language"] / losses["language"]["language"] - 1


def main(out: Path, steps: int, seed: int, budget: str) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)

    # 1. Make training and evaluation data for both domains.
    texts = {"language": prose, "code": code}
    data = {
        name: [blocks(text(size, split=split), TOKENIZER, BLOCK) for split, size in BYTES.items()]
        for name, text in texts.items()
    }

    # 2. Train the same two stages under each gate.
    rises = {
        name: train(out / name, data, Forgetting(budget, action=action), steps, seed)
        for name, action in ACTIONS.items()
    }

    # 3. Compare what was forgotten and what was learned.
    print(f"\n{'gate':<10}{'language rose':>15}{'loss on code':>15}   (budget {budget})")
    for name, rise in rises.items():
        learned = domain_matrix(out / name)["metrics"]["loss"]["values"]["code"]["code"]
        print(f"{name:<10}{100 * rise:>13.1f} %{learned:>15.3f}")
    print(f"\nhf-stages report {out / 'rollback'} --save report.html")
    return rises


if __name__ == "__main__":
    parser = command_line(__doc__, out="forgetting-out", steps=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="5%", help="the rise of the loss on language that is allowed")
    main(**vars(parser.parse_args()))
