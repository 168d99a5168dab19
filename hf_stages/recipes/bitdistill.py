"""A decoder in ternary weights: norms inserted, pretraining continued, then distilled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_stages.curves import Curve
from hf_stages.duration import Duration
from hf_stages.losses import AttentionRelation, Loss, TaskLoss
from hf_stages.recipes._parts import logits_of, part
from hf_stages.recipes._quantized import UNSEEN, headed, rates_of, stage
from hf_stages.stage import Recipe


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
    """BitDistill (https://arxiv.org/abs/2510.13998): ``InsertSubLN`` and ``Ternarize``, pretraining continued on ``corpus``
    (None: the run's own data) for ``pretrain``, then the task with the teacher's logits and the relations of one layer.

    The weights are not the paper's (10 for logits at a temperature of 5, 1e5 for relations, which it divides by other counts).
    On a small Llama (docs/results.md) each term's gradient at the start of ``distil`` was, in units of the task's: logits 0.9
    at a temperature of 1; 23 as the paper has it (``LogitKL`` multiplies by temperature**2), which made perplexity worse than no
    teacher; relations 0.05 for a weight of 1, about where an independent reproduction found its optimum, and 5000 for 1e5.

    ``relation`` and ``logits`` of 0 leave their parts out; ``sub_norm=False`` inserts no norms; ``pretrain=None`` skips that stage.
    """
    from hf_stages.transforms import Ternarize

    ternary = Ternarize(method=method, per=per, activations=activations, embeddings=embeddings, strength=strength)  # type: ignore[arg-type]
    first: list[Any] = [ternary]
    if sub_norm:
        from hf_stages.transforms import InsertSubLN

        first.insert(0, InsertSubLN())
    relations = part("relation", relation, lambda: AttentionRelation(layers={layer: layer}, heads=heads, form="cosine"))
    losses = [*logits_of(logits, task, temperature), *relations]
    rates = rates_of(learning_rate, 2 if pretrain is not None else 1)
    stages = []
    if pretrain is not None:
        if set_task is not None and corpus is None:
            raise ValueError(
                "set_task: expected corpus= beside it (the text to go on pretraining with), or pretrain=None"
            )
        own = {} if corpus is None else {"train_dataset": corpus, **UNSEEN}
        stages.append(stage("pretrain", pretrain, [TaskLoss()], rates[0], first, **own))
        first = []
    elif corpus is not None:
        raise ValueError("corpus: expected pretrain= beside it, such as pretrain='1 epochs'")
    stages.append(stage("distil", until, losses, rates[-1], [*first, *headed(set_task)]))
    return Recipe(stages)
