"""Language, then code, then tool calls, on text that every interpreter brings: what each stage does to all three.

Language is Python's reference and docstrings, code its modules, tools JSON calls of its real functions. Each later stage has a
lower rate, in the ratio 3e-5 : 5e-6 scaled to a small model. ``--replay 0.1`` mixes earlier sources in; ``--preferences`` adds a
fourth stage, DPO against the model that the tools made, on right and wrong calls. ``--small`` ends in seconds and learns little.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from examples.stdlib_tools import call_metrics, domains
from hf_stages import Stage, StagedTrainer
from hf_stages.data import Lengths, Mixture, Preferences, Replay
from hf_stages.losses import DPO
from hf_stages.reports.domain_matrix import domain_matrix
from hf_stages.schedules import Fresh

BLOCK = 128
FULL = {"bytes": 1_000_000, "calls": 2_000, "hidden_size": 160, "intermediate_size": 432, "num_hidden_layers": 3}
SMALL = {"bytes": 50_000, "calls": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
PEAKS = {"language": 6e-3, "code": 1e-3, "tools": 1e-3, "preferences": 5e-5}


def stages(steps: int, replay: float, pairs: dict) -> list[Stage]:
    rates = {name: Fresh(peak=peak, warmup="10 %", shape="cosine") for name, peak in PEAKS.items()}
    earlier = {"code": "language", "tools": Mixture({"language": 1, "code": 1})}
    data = {name: Replay(old, replay, into=name) if replay else name for name, old in earlier.items()}
    planned = [Stage("language", f"{steps} steps", train_dataset="language", schedule=rates["language"])]
    planned += [Stage(name, f"{steps} steps", train_dataset=data[name], schedule=rates[name]) for name in data]
    if pairs:
        planned.append(
            Stage(
                "preferences", f"{max(steps // 8, 1)} steps", train_dataset=pairs["train"],
                eval_dataset={"preferences": pairs["eval"]}, compute_metrics=lambda prediction: {}, schedule=rates["preferences"],
                data_collator=Preferences(), loss=DPO(beta=0.1), teacher="stage:tools", args={"per_device_train_batch_size": 4},
            )
        )  # fmt: skip
    return planned


def main(out: Path, steps: int, seed: int, replay: float, preferences: bool, small: bool) -> dict:
    shutil.rmtree(out, ignore_errors=True)
    set_seed(seed)
    size = dict(SMALL if small else FULL)
    tokenizer, data, pairs = domains(size.pop("bytes"), size.pop("calls"), BLOCK)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=4, initializer_range=0.08, tie_word_embeddings=True, pad_token_id=0,
        eos_token_id=1, bos_token_id=None, **size,
    )  # fmt: skip
    args = TrainingArguments(
        str(out), seed=seed, per_device_train_batch_size=8, per_device_eval_batch_size=32, include_for_metrics=["inputs"],
        eval_strategy="no", save_strategy="no", logging_steps=10, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = StagedTrainer(
        LlamaForCausalLM(config), args, train_dataset=data["train"], eval_dataset=data["eval"], processing_class=tokenizer,
        stages=stages(steps, replay, pairs if preferences else {}),
        data_collator=Lengths(2 * BLOCK), preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        compute_metrics=lambda prediction: call_metrics(trainer.model, tokenizer, prediction),
    )  # fmt: skip
    trainer.train()
    found = domain_matrix(out)["metrics"]
    for metric in ("bits_per_byte", "parsed", "function", "arguments"):
        print(f"\n{metric}")
        for row, values in found[metric]["values"].items():
            print(f"  {row:<16}" + "".join(f"{name:>12} {value:6.3f}" for name, value in values.items()))
    print(f"\nhf-stages report {out}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tools-out"))
    parser.add_argument("--steps", type=int, default=300, help="updates of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=float, default=0.0, help="share of earlier sources in later stages")
    parser.add_argument("--preferences", action="store_true", help="a fourth stage: DPO on right and wrong calls")
    parser.add_argument("--small", action="store_true")
    main(**vars(parser.parse_args()))
