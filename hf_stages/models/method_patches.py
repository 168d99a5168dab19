"""Methods that a trainer replaced on the model object (TRL's fused head), replaced again on a model that is rebuilt.

Such a method is a function that another function made from the model and a few settings. It is made again for the new
model by the same function with the same settings, which are in its closure.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_stages.layers.blocks import base_of

_TAGS = "model_tags"
_INPUT_GRADS = "_require_grads_hook"


@dataclass(frozen=True)
class Patches:
    """What was changed on a model object, and is neither in its class nor in its config."""

    methods: Mapping[str, Any]
    """The replaced methods by name."""
    tags: tuple[str, ...] = ()
    """The tags of the model card."""
    input_grads: bool = False
    """Whether outputs of the embeddings require a gradient (gradient checkpointing under an adapter)."""

    @classmethod
    def read(cls, model: Any) -> Patches:
        """Read the patches of a model."""
        base = base_of(model)
        return cls(_methods(base), tuple(vars(base).get(_TAGS) or ()), _INPUT_GRADS in vars(base))

    def apply(self, model: Any) -> None:
        """Apply the patches that a model lacks, or that run another model."""
        base = base_of(model)
        for name, method in self.methods.items():
            if name in vars(base) and not _runs_another_model(vars(base)[name], base):
                continue
            if (made := _maker_of(method)) is not None:
                vars(base).pop(name, None)
                made[0](base, **made[1])
        if self.tags:
            base.add_model_tags([tag for tag in self.tags if tag not in (vars(base).get(_TAGS) or ())])
        if self.input_grads and _INPUT_GRADS not in vars(base):
            base.enable_input_require_grads()

    def check(self, model: Any, where: str = "") -> None:
        """Refuse a model that lacks a patch: it would train as another function than the initial model."""
        if lacking := sorted(self.methods.keys() - _methods(base_of(model)).keys()):
            raise ValueError(
                f"{where}model: `{lacking[0]}` was replaced on the initial model itself, by the trainer or by hand, "
                "and a model built anew lacks it; override prepare_model(self, model) in the trainer to replace it "
                "there too"
            )


def _methods(base: Any) -> dict[str, Any]:
    """Return attributes of the object that hide methods of its class, but not those of accelerate's dispatch."""
    if "_hf_hook" in vars(base):
        return {}
    own = vars(base).items()
    return {
        name: value for name, value in own if callable(value) and inspect.isroutine(getattr(type(base), name, None))
    }


def _closure_values(method: Any) -> dict[str, Any]:
    function = getattr(method, "__func__", method)
    if not isinstance(function, types.FunctionType):
        return {}
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def _runs_another_model(method: Any, base: Any) -> bool:
    """Whether a method runs another model: a deep copy copies the function, which still runs the old model."""
    held = [method, *_closure_values(method).values()]
    owners = [one.__self__ for one in held if isinstance(one, types.MethodType)]
    return any(isinstance(owner, type(base)) and owner is not base for owner in owners)


def _maker_of(method: Any) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """Return the function that makes such methods, and its settings; None where they are not known."""
    function = getattr(method, "__func__", method)
    if not isinstance(function, types.FunctionType):
        return None
    near = [one for one in function.__globals__.values() if isinstance(one, types.FunctionType)]
    maker = next((one for one in near if function.__code__ in one.__code__.co_consts), None)
    if maker is None:
        return None
    cells, (first, *settings) = _closure_values(method), inspect.signature(maker).parameters or ("",)
    known = first == "model" and cells.keys() >= set(settings)
    return (maker, {name: cells[name] for name in settings}) if known else None


def check_rebuilt_model(trainer: Any, plan: Any) -> None:
    """Refuse, before the first step, a branch whose rebuilt model would lack a method that was replaced."""
    before = [None, *(planned.name for planned in plan.stages)]
    branch = next((p for p, last in zip(plan.stages, before, strict=False) if p.parent != last), None)
    if branch is None or not trainer._patches.methods or not trainer.blueprint.buildable:
        return
    skeleton = trainer.blueprint.build("meta")
    trainer.prepare_model(skeleton)
    trainer._patches.check(skeleton, f"stage {branch.name!r}: ")
