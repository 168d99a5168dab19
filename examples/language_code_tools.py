"""Train on language, then code, then tool calls, and measure all three after each stage.

All text comes with Python itself. Language is its reference and docstrings, code is its modules, and tools are JSON
calls of its real functions. Later stages have lower learning rates: the ratio 3e-5 : 5e-6, scaled to a small model.

``--replay 0.1`` mixes earlier sources into later stages. ``--preferences`` adds a fourth stage: DPO on right and wrong
calls, with the model of the tools stage as the reference. ``--small`` ends in seconds and learns little.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from _arguments import command_line, training_arguments
from hf_stages import DPO, Fresh, Lengths, Mixture, Preferences, Replay, Stage, StagedTrainer
from hf_stages.reports.domain_matrix import domain_matrix
from stdlib_tools import call_metrics, domains

BLOCK = 128
FULL = {"bytes": 1_000_000, "calls": 2_000, "hidden_size": 160, "intermediate_size": 432, "num_hidden_layers": 3}
SMALL = {"bytes": 50_000, "calls": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
PEAKS = {"language": 6e-3, "code": 1e-3, "tools": 1e-3, "preferences": 5e-5}


def stages(steps: int, replay: float, pairs: dict) -> list[Stage]:
    """Declare a stage for each domain and, if there are pairs, one for preferences."""
    schedules = {name: Fresh(peak=peak, warmup="10 %", shape="cosine") for name, peak in PEAKS.items()}
    earlier = {"code": "language", "tools": Mixture({"language": 1, "code": 1})}
    data = {name: Replay(old, replay, into=name) if replay else name for name, old in earlier.items()}
    declared = [Stage("language", f"{steps} steps", train_dataset="language", schedule=schedules["language"])]
    declared += [Stage(name, f"{steps} steps", train_dataset=data[name], schedule=schedules[name]) for name in data]
    if pairs:
        declared.append(
            Stage(
                "preferences",
                f"{max(steps // 8, 1)} steps",
                train_dataset=pairs["train"],
                eval_dataset={"preferences": pairs["eval"]},
                compute_metrics=lambda prediction: {},
                schedule=schedules["preferences"],
                data_collator=Preferences(),
                loss=DPO(beta=0.1),
                teacher="stage:tools",
                args={"per_device_train_batch_size": 4},
            )
        )
    return declared


def show(found: dict, out: Path) -> None:
    for metric in ("bits_per_byte", "parsed", "function", "arguments"):
        print(f"\n{metric}")
        for row, values in found[metric]["values"].items():
            print(f"  {row:<16}" + "".join(f"{name:>12} {value:6.3f}" for name, value in values.items()))
    print(f"\nhf-stages report {out}")


def main(out: Path, steps: int, seed: int, replay: float, preferences: bool, small: bool) -> dict:
    shutil.rmtree(out, ignore_errors=True)

    # 1. Make a tokenizer, the three domains, and pairs of right and wrong calls.
    set_seed(seed)
    size = dict(SMALL if small else FULL)
    tokenizer, data, pairs = domains(size.pop("bytes"), size.pop("calls"), BLOCK)

    # 2. Make a model.
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=4, initializer_range=0.08, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, **size,
    )  # fmt: skip

    # 3. Train all stages. After each one, the model also answers requests: see call_metrics.
    args = training_arguments(
        out, seed=seed, per_device_train_batch_size=8, per_device_eval_batch_size=32, eval_strategy="no",
        include_for_metrics=["inputs"], logging_steps=10,
    )  # fmt: skip
    trainer = StagedTrainer(
        LlamaForCausalLM(config),
        args,
        stages=stages(steps, replay, pairs if preferences else {}),
        train_dataset=data["train"],
        eval_dataset=data["eval"],
        processing_class=tokenizer,
        data_collator=Lengths(2 * BLOCK),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        compute_metrics=lambda prediction: call_metrics(trainer.model, tokenizer, prediction),
    )
    trainer.train()

    # 4. Show what each stage did to all domains.
    found = domain_matrix(out)["metrics"]
    show(found, out)
    return found


if __name__ == "__main__":
    parser = command_line(__doc__, out="tools-out", steps=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=float, default=0.0, help="share of earlier sources in later stages")
    parser.add_argument("--preferences", action="store_true", help="a fourth stage: DPO on right and wrong calls")
    parser.add_argument("--small", action="store_true", help="a tiny model and little text")
    main(**vars(parser.parse_args()))
