"""Find out on a batch what the task's loss is a mean over. Models do not say it, and names do not tell.

One forward is watched for the loss functions that it calls. The values by item of each are made leaves, and the
gradient of the loss with respect to them says what each item weighs. The model's weights have no influence on that,
so every rank and every resumed run comes to the same answer. A loss that calls no such function is tried instead
(``task_trial``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss, ForTokenClassification
from transformers.utils import logging

from hf_stages.core.randomness import preserve_random_state
from hf_stages.core.ranks import from_main_rank
from hf_stages.layers.blocks import base_of
from hf_stages.losses.objective.by_source_check import own_loss_mismatch
from hf_stages.losses.objective.loss_calls import Call, LossCalls
from hf_stages.losses.objective.task_trial import AdditivityTrial, doubled
from hf_stages.losses.objective.trainer_notes import preserve_trainer_notes
from hf_stages.losses.objective.update_sums import give_item_count
from hf_stages.losses.objective.without_dropout import training_without_dropout
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.models.capture import evaluating
from hf_stages.models.real_tokens import rows_of
from hf_stages.models.reduction import IGNORED, Count, Reduction, token_width

logger = logging.get_logger(__name__)
_BATCHES = 4
"""How many micro-batches of an update are searched for a target."""
_OTHERWISE = {"shift_labels", "ignore_index", "CrossEntropyLoss"}
"""Names in the code of a forward that treats its labels in a way of its own."""
_Loss = Callable[[Mapping[str, Any], Any], torch.Tensor]


class _NoTarget(Exception):
    """Raised where the batch has no target at all; another batch may have one."""


def learn_reduction(trainer: Any, objective: Any, batches: Sequence[Mapping[str, Any]]) -> None:
    """Find out, before a stage's first update, what its task's loss is a mean over. All ranks take main's answer."""
    if objective.reduction_is_known or not objective.tasks:
        return
    found: Any = False
    by_source = any(term.loss.task is not term.loss for term in objective.terms if term.loss.task is not None)
    for batch in _batches_to_try(batches[:_BATCHES]):
        found = find_reduction(trainer, trainer.compute_loss, objective.tasks[0], batch, exactly=by_source)
        if found is not False:
            break
    found = from_main_rank(found, trainer.args)
    if found is not False:
        objective.set_reduction(found)
        # In shards all ranks must run forwards alike, and one without targets would run none.
        told = by_source and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
        problem = own_loss_mismatch(trainer, objective, batch, half=_is_half(trainer)) if told else None
        if (problem := from_main_rank(problem, trainer.args)) is not None:
            raise ValueError(f"stage {trainer._stage.planned.name!r}: {problem}")
        trainer._reductions = {**trainer._reductions, _kind(trainer, batches[0]): found}


def reduction_in_evaluation(trainer: Any, inner: Callable[..., Any], task: TaskLoss, batch: Mapping[str, Any]) -> Any:
    """Return what the loss is a mean over for an evaluation. It is found once for batches of one kind and this model.

    Where a loss has several parts, their weights are found anew.
    """
    kind = _kind(trainer, batch)
    found = trainer._reductions.get(kind, False)
    if found is False or (found is not None and found.split):
        found = from_main_rank(find_reduction(trainer, inner, task, batch), trainer.args)
        if found is not False:
            trainer._reductions = {**trainer._reductions, kind: found}
    return found


def _kind(trainer: Any, batch: Mapping[str, Any]) -> tuple[Any, ...]:
    tensors = {key: value for key, value in trainer._staged_split_batch(batch).inputs.items() if torch.is_tensor(value)}
    return tuple(sorted((key, str(value.dtype), value.dim()) for key, value in tensors.items()))


def _batches_to_try(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Join two batches of one row where they have one shape, because a single row says little."""
    first, *rest = batches
    if not rest or rows_of(first) > 1:
        return list(batches)
    shapes = [{key: getattr(value, "shape", None) for key, value in batch.items()} for batch in (first, rest[0])]
    alike = shapes[0] == shapes[1] and None not in shapes[0].values()
    return [{k: torch.cat([b[k] for b in batches[:2]]) for k in first}] if alike else list(batches)


def find_reduction(
    trainer: Any, inner: Callable[..., Any], task: TaskLoss, batch: Mapping[str, Any], *, exactly: bool = False
) -> Any:
    """Find what ``inner``, the trainer's own ``compute_loss``, divides its loss of a batch by.

    Returns:
        None where it divides as ``TaskLoss`` does, or where it is unclear; False where the batch has no target to
        tell by.

    Args:
        exactly: Look also where the model's own code says it, because what the model adds to its loss matters.
    """
    if not exactly and _is_known(trainer, inner):
        return None
    inputs = trainer._prepare_input(trainer._staged_split_batch(batch).inputs)

    def loss_of(few: Mapping[str, Any], items: Any) -> torch.Tensor:
        with give_item_count(trainer, items):
            found = inner(trainer.model, dict(few), num_items_in_batch=None)
        return found[0] if isinstance(found, tuple) else found

    context = trainer.compute_loss_context_manager()
    for given in [doubled(inputs), inputs] if rows_of(inputs) == 1 else [inputs]:  # a row alone says little
        try:
            with (
                preserve_random_state(),
                preserve_trainer_notes(trainer),
                torch.no_grad(),
                evaluating(trainer.model),
                context,
                _sharded_after(trainer),
            ):
                return _find(trainer, loss_of, given, task)
        except _NoTarget:
            return False
        except Exception as error:
            problem = f"what the task's loss is a mean over was not found out ({type(error).__name__}: {error})"
    # Of rows that no model takes training will say it in its own words.
    (logger.warning if _is_cut(trainer) else logger.info)(
        f"{problem}; taken for one over labels, or rows without labels"
    )
    return None


@contextmanager
def _sharded_after(trainer: Any) -> Iterator[None]:
    """Put parameters back in shards: FSDP2 leaves a root's parameters whole after a forward, until a backward pass."""
    try:
        yield
    finally:
        for module in trainer.model.modules() if trainer.is_fsdp_enabled else ():
            if hasattr(module, "reshard"):
                module.reshard()


def _is_known(trainer: Any, inner: Callable[..., Any]) -> bool:
    """Tell whether the model's own code gives its labels to a loss of transformers that counts as ``TaskLoss`` does.

    Then no forward is needed, nor, for a language model, the memory for all logits of a batch.
    """
    own = getattr(inner, "__func__", None) is not Trainer.compute_loss
    if own or trainer.label_smoother is not None or trainer.compute_loss_func is not None:
        return False
    model = trainer.model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False  # it adds tokens, and labels for them
    base = base_of(model)
    code = getattr(inspect.unwrap(type(base).forward), "__code__", None)
    words = (
        {*code.co_names, *(w for const in code.co_consts if isinstance(const, tuple) for w in const)} if code else set()
    )
    if "loss_function" not in words or words & _OTHERWISE or base.config.is_encoder_decoder:
        return False
    if getattr(base.config, "output_router_logits", False):
        return False  # a router's loss comes on top
    return base.loss_function in (ForCausalLMLoss, ForMaskedLMLoss, ForTokenClassification)


def _find(trainer: Any, loss_of: _Loss, inputs: Mapping[str, Any], task: TaskLoss) -> Reduction | None:
    names = [name for name in (*trainer.label_names, "labels", "shift_labels") if name in inputs]
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # all ranks run the model alike: once
    found: Any = _by_watching(loss_of, inputs, task, names, leaves=not sharded)
    if sharded or rows_of(inputs) < 2:
        return found
    trial = AdditivityTrial(loss_of, half=_is_half(trainer))
    adds_up = True
    if found is None:
        found = trial(trainer.model, inputs, (task.items, *_likely_counts(inputs, names), None))
        adds_up = found is not False
    elif _is_cut(trainer) and not found.split:
        adds_up = not found.adds
        with suppress(Exception):  # of rows that cannot be taken one by one
            adds_up = adds_up and trial.adds_up(inputs, found.counts[0]) is not False
    if _is_cut(trainer):
        if not adds_up:
            _warn_of_coupled_rows()
        elif _differs_in_training(trainer.model, loss_of, inputs, task):
            _warn_of_training()
    return found or None


def _is_cut(trainer: Any) -> bool:
    return trainer.args.gradient_accumulation_steps * trainer.args.world_size > 1


def _is_half(trainer: Any) -> bool:
    """Tell whether rows may give slightly different values in another batch, because of half precision."""
    mixed = trainer.args.bf16 or trainer.args.fp16
    return mixed or any(p.dtype in (torch.bfloat16, torch.float16) for p in trainer.model.parameters())


# ---- by watching ----------------------------------------------------------------------------------------------------


def _by_watching(
    loss_of: _Loss, inputs: Mapping[str, Any], task: TaskLoss, names: list[str], *, leaves: bool
) -> Reduction | None:
    calls: list[Call] = []
    held: list[torch.Tensor] = []

    def answer(place: int, call: Call) -> torch.Tensor:
        if leaves:
            torch.set_grad_enabled(True)  # from here on; the block around the forward sets it back
        calls.append(call)
        held.append(call.value_by_item.detach().requires_grad_(leaves))
        return call.reduced(held[-1])

    with LossCalls(answer):
        loss = loss_of(inputs, task.items(inputs))
    if not bool(torch.isfinite(loss).all()):
        raise _NoTarget
    if not calls:
        return None
    weights = _weights(loss, calls, held) if leaves else _by_value(loss, calls)
    parts: list[tuple[int, Count | None, float]] = []
    explained = 0.0
    for place, (call, each) in enumerate(zip(calls, weights, strict=True)):
        if each is None or not bool(each.ne(0).any()):
            continue
        found = _items_of_call(call, each, inputs, names)
        if found is None:
            return None
        parts.append((place, *found))
        explained += float((each * call.value_by_item).sum())
    if not parts:
        return None
    allowed = max(2e-5, 8 * torch.finfo(loss.dtype).eps)
    adds = abs(loss.item() - explained) > allowed * max(abs(loss.item()), 1e-3)
    places, counts, scales = zip(*parts, strict=True)
    if len({*counts}) == 1:  # one number divides all of them
        places, counts, scales = places[:1], counts[:1], scales[:1]
    return Reduction(tuple(counts), tuple(scales), tuple(places), adds, len(calls))


def _weights(loss: torch.Tensor, calls: list[Call], held: list[torch.Tensor]) -> list[torch.Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(calls)
    return list(torch.autograd.grad(loss.sum(), held, allow_unused=True))


def _by_value(loss: torch.Tensor, calls: list[Call]) -> list[torch.Tensor | None]:
    """Find the weights without gradients, for parameters in shards, where the loss is the value of one call."""
    same = [torch.equal(call.reduced(call.value_by_item).to(loss), loss) for call in calls]
    if sum(same) != 1:
        return [None] * len(calls)
    scale = [1.0 if call.reduction == "sum" else 1.0 / float(call.items()) for call in calls]
    return [
        torch.full_like(call.value_by_item, one) if it else None
        for call, one, it in zip(calls, scale, same, strict=True)
    ]


def _items_of_call(
    call: Call, weights: torch.Tensor, inputs: Mapping[str, Any], names: list[str]
) -> tuple[Count | None, float] | None:
    """Return the items of one call and the weight of its mean in the loss; None where its items weigh differently."""
    if call.function is torch.nn.functional.ctc_loss and call.reduction == "mean":
        return Count(), float((weights * call.target_lengths(call.value_by_item)).sum())
    own = weights[weights.ne(0)]
    if call.target is not None and call.has_class_targets:  # an ignored item has no say, whatever its weight
        kept = call.target.flatten().ne(call.ignored_label)
        own = weights.flatten()[kept] if bool(kept.any()) else weights
    scale = float(own.mean())
    if float((own - scale).abs().max()) > 1e-3 * abs(scale):
        return None
    if call.reduction == "mean":
        number = float(call.items())
        count = _count_giving(call, number, inputs, names)
        return None if count is None else (count, scale * (number or 1.0))
    # Divided by hand, by a number that may be anything: trying tells. One item alone is its own mean.
    summed = abs(scale - 1) < 1e-6 and (call.reduction == "sum" or len(own) > 1)
    return (None, 1.0) if summed else None


def _count_giving(call: Call, number: float, inputs: Mapping[str, Any], names: list[str]) -> Count | None:
    """Return the first way to count that gives the number."""
    for count in (*_counts_by_content(call, inputs, names), *(_likely_counts(inputs, names) if number else ())):
        if abs(float(count(inputs)) - number) <= 1e-3 * number:
            return count
    return None


def _counts_by_content(call: Call, inputs: Mapping[str, Any], names: list[str]) -> Iterator[Count]:
    """List ways to count by those targets of the batch that hold what the call was given."""
    target = call.target
    if target is None:
        return
    ignore = call.ignored_label
    options: dict[str, Any] = {"ignore": ignore}
    if call.weights is not None:
        options["weights"] = tuple(call.weights.tolist())
    wide = call.arguments["input"].shape[1:2] if call.has_class_targets else ()
    for key in dict.fromkeys((*names, *inputs)):
        mine = inputs[key]
        if not torch.is_tensor(mine) or mine.numel() == 0 or mine.dtype == torch.bool:
            continue
        if mine.is_floating_point() and call.has_class_targets:
            continue
        if wide == (ignore,) and token_width(inputs) == ignore and _equal(mine.clamp(0, ignore), target):
            yield Count(key, inside=True)
        if _equal(mine, target):
            yield Count(key, **options)
        if mine.dim() > 1 and ignore is not None:
            moved = torch.nn.functional.pad(mine, (0, 1), value=ignore)[..., 1:]
            if _equal(mine[..., 1:], target) or _equal(moved, target):
                yield Count(key, shift=True, **options)


def _equal(mine: torch.Tensor, target: torch.Tensor) -> bool:
    return mine.numel() == target.numel() and torch.equal(mine.reshape(-1).to(target), target.reshape(-1))


def _likely_counts(inputs: Mapping[str, Any], names: list[str]) -> Iterator[Count]:
    """List ways to count, the likelier ones first. Counting padded entries comes last: it fits wherever rows do."""
    targets = {key: inputs[key] for key in names if torch.is_tensor(inputs[key])}
    for key, target in targets.items():
        if target.is_floating_point():
            yield Count(key)
            continue
        yield Count(key, ignore=IGNORED)
        if target.dim() > 1:
            yield Count(key, shift=True, ignore=IGNORED)
    yield Count()
    for key, value in inputs.items():
        if torch.is_tensor(value) and value.dtype == torch.bool and value.dim() == 2:
            yield Count(key, ignore=0)  # what is hidden, of images
    yield from map(Count, targets)


def _differs_in_training(model: Any, loss_of: _Loss, inputs: Mapping[str, Any], task: TaskLoss) -> bool:
    """Tell whether training adds something to the loss that evaluation does not, dropout apart.

    Something drawn at random in training looks the same.
    """
    with suppress(Exception):
        items = task.items(inputs)
        evaluated = loss_of(inputs, items).item()
        with training_without_dropout(model):
            trained = loss_of(inputs, items).item()
        return abs(trained - evaluated) > 1e-2 * abs(evaluated)
    return False


def _warn_of_training() -> None:
    logger.warning(
        "The task's loss is another one in training than in evaluation (an auxiliary part, noise or masks that "
        "training alone has). What it is divided by was found in evaluation: with accumulated micro-batches or "
        "several ranks such a part may weigh otherwise than in one batch"
    )


def _warn_of_coupled_rows() -> None:
    logger.warning(
        "The task's loss does not add up over parts of a batch, whatever it is divided by (it couples rows, brings a "
        "router's loss, or has parts with items of their own): with accumulated micro-batches or several ranks its "
        "gradient is not that of one batch"
    )
