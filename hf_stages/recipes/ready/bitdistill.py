"""Makes a decoder with ternary weights: norms are inserted, pretraining goes on, then it is distilled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_stages.core.curves import Curve
from hf_stages.core.duration import Duration
from hf_stages.core.stage import Recipe
from hf_stages.losses.attention_relation import AttentionRelation
from hf_stages.losses.base import Loss
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.recipes.ready._parts import logit_losses, weighted_loss
from hf_stages.recipes.ready._quantized import WITHOUT_EVALUATION, build_stage, head_transforms, one_rate_per_stage


def bitdistill(
    until: str | Duration = "3 epochs",
    *,
    pretrain: str | Duration | None = "1 epochs",
    corpus: Any = None,
    set_task: Any = None,
    sub_norm: bool = True,
    method: str = "absmean",
    per: str | int = "tensor",
    activations: int | None = 8,
    embeddings: bool = False,
    strength: float | str | Curve = 1.0,
    logits: float | str | Loss = 1.0,
    temperature: float = 1.0,
    relation: float | str | Loss = 1.0,
    layer: int = -1,
    heads: int | None = None,
    task: float | str | Loss = 1.0,
    learning_rate: float | Sequence[float] | None = None,
) -> Recipe:
    """Train a decoder with ternary weights: BitDistill (https://arxiv.org/abs/2510.13998).

    ``InsertSubLN`` and ``Ternarize`` change the model. Pretraining goes on with ``corpus`` (None: the run's own data)
    for ``pretrain``. Then the task is learned with the teacher's logits and the relations of one layer.

    ``relation`` and ``logits`` of 0 leave their parts out; ``sub_norm=False`` inserts no norms; ``pretrain=None``
    skips that stage; ``embeddings`` quantizes the word embeddings, too, if no head shares their weight. The inserted
    norms change the function: on a small Llama with few updates (docs/results.md) plain training was better than this
    recipe, and ``sub_norm=False, pretrain=None, relation=0`` was the best.

    The weights are not the paper's (logits 10 at a temperature of 5, relations 1e5, divided by other counts than
    here). Its logits, with the temperature**2 of ``LogitKL`` and of its code, pulled 23 times as hard as the task
    there, and did worse than no teacher. What pulls about as hard as the task did better: weight 1 at a temperature
    of 1, or 0.4 at 5, which is 10 without temperature**2. Relations of weight 1 pulled 0.05 times as hard, as those
    of weight 60 did in an independent reproduction, its best; they brought nothing. 1e5 would pull 5000 times as hard.
    """
    from hf_stages.transforms.ternarize import Ternarize

    ternary = Ternarize(method=method, per=per, activations=activations, embeddings=embeddings, strength=strength)  # type: ignore[arg-type]
    first: list[Any] = [ternary]
    if sub_norm:
        from hf_stages.transforms.insert_subln import InsertSubLN

        first.insert(0, InsertSubLN())
    relations = weighted_loss(
        "relation", relation, lambda: AttentionRelation(layers={layer: layer}, heads=heads, form="cosine")
    )
    losses = [*logit_losses(logits, task, temperature), *relations]
    rates = one_rate_per_stage(learning_rate, 2 if pretrain is not None else 1)
    stages = []
    if pretrain is not None:
        if set_task is not None and corpus is None:
            raise ValueError(
                "set_task: expected corpus= beside it (the text to go on pretraining with), or pretrain=None"
            )
        own = {} if corpus is None else {"train_dataset": corpus, **WITHOUT_EVALUATION}
        stages.append(build_stage("pretrain", pretrain, [TaskLoss()], rates[0], first, **own))
        first = []
    elif corpus is not None:
        raise ValueError("corpus: expected pretrain= beside it, such as pretrain='1 epochs'")
    stages.append(build_stage("distil", until, losses, rates[-1], [*first, *head_transforms(set_task)]))
    return Recipe(stages)
