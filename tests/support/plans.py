"""Plans and skeletons that several tests use."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from hf_stages import Recipe, Stage
from hf_stages.planning.plan import Plan, Size, make_plan
from hf_stages.schedules import Resume
from hf_stages.schedules.base import Defaults
from tests.support import tiny


def skeleton(**changes) -> LlamaForCausalLM:
    config = type(tiny.llama_config()).from_dict({**tiny.llama_config().to_dict(), **changes})
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def plan_of(*stages: Stage, tokens: float | None = 10, examples: int | None = 100) -> Plan:
    sizes = {stage.name: Size(examples, batch=2, tokens_per_example=tokens) for stage in stages}
    return make_plan(Recipe(stages), sizes, {stage.name: Defaults(1e-3, warmup=2) for stage in stages})


def chain(count: int) -> Plan:
    """A chain of stages of very different lengths; from four stages on, with a branch in its middle."""
    stages = []
    for i in range(count):
        parents = "s1" if count > 3 and i == count // 2 + 1 else None
        schedule = Resume() if i % 3 == 1 else None
        stages.append(Stage(f"s{i}", f"{10 * 3 ** (i % 4)} steps", parents=parents, schedule=schedule))
    return plan_of(*stages)
