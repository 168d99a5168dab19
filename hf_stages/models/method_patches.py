"""Methods that a trainer replaced on the model itself when it was made (TRL's fused head), put on a model built anew.

Such a method is a function made by another one from the model and a few settings. It is made again for the new model, by the
same function with the same settings, which stand in its closure.
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
    """What stands on a model's object, and not in its class or config."""

    methods: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    input_grads: bool = False
    """Whether embeddings were told to give outputs that require a gradient (checkpointing under an adapter)."""

    @classmethod
    def read(cls, model: Any) -> Patches:
        base = base_of(model)
        return cls(_methods(base), tuple(vars(base).get(_TAGS) or ()), _INPUT_GRADS in vars(base))

    def apply(self, model: Any) -> None:
        """Make again what is not there, or belongs to another model."""
        base = base_of(model)
        for name, method in self.methods.items():
            if name in vars(base) and not _of_another(vars(base)[name], base):
                continue
            if (made := _maker(method)) is not None:
                vars(base).pop(name, None)
                made[0](base, **made[1])
        if self.tags:
            base.add_model_tags([tag for tag in self.tags if tag not in (vars(base).get(_TAGS) or ())])
        if self.input_grads and _INPUT_GRADS not in vars(base):
            base.enable_input_require_grads()

    def check(self, model: Any, where: str = "") -> None:
        """Refuse a model that lacks one of them: it would be trained as another function than the initial model."""
        if lacking := sorted(self.methods.keys() - _methods(base_of(model)).keys()):
            raise ValueError(
                f"{where}model: `{lacking[0]}` was replaced on the initial model itself, by the trainer or by hand, and a model built "
                "anew lacks it; override prepare_model(self, model) in the trainer to replace it there too"
            )


def _methods(base: Any) -> dict[str, Any]:
    """Attributes of the object that hide methods of its class; not those of accelerate, which places what it dispatches."""
    if "_hf_hook" in vars(base):
        return {}
    own = vars(base).items()
    return {
        name: value for name, value in own if callable(value) and inspect.isroutine(getattr(type(base), name, None))
    }


def _cells(method: Any) -> dict[str, Any]:
    function = getattr(method, "__func__", method)
    if not isinstance(function, types.FunctionType):
        return {}
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def _of_another(method: Any, base: Any) -> bool:
    """Whether it runs another model: a deep copy takes the function along, which goes on with the old one."""
    held = [method, *_cells(method).values()]
    owners = [one.__self__ for one in held if isinstance(one, types.MethodType)]
    return any(isinstance(owner, type(base)) and owner is not base for owner in owners)


def _maker(method: Any) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The function that makes such methods, and its settings; None where these cannot be told."""
    function = getattr(method, "__func__", method)
    if not isinstance(function, types.FunctionType):
        return None
    near = [one for one in function.__globals__.values() if isinstance(one, types.FunctionType)]
    maker = next((one for one in near if function.__code__ in one.__code__.co_consts), None)
    if maker is None:
        return None
    cells, (first, *settings) = _cells(method), inspect.signature(maker).parameters or ("",)
    known = first == "model" and cells.keys() >= set(settings)
    return (maker, {name: cells[name] for name in settings}) if known else None


def check_rebuilt_model(trainer: Any, plan: Any) -> None:
    """A branch starts from a model that is built anew: before the first step, see that it gets what was replaced on the first."""
    before = [None, *(planned.name for planned in plan.stages)]
    branch = next((p for p, last in zip(plan.stages, before, strict=False) if p.parent != last), None)
    if branch is None or not trainer._patches.methods or not trainer.blueprint.buildable:
        return
    skeleton = trainer.blueprint.build("meta")
    trainer.prepare_model(skeleton)
    trainer._patches.check(skeleton, f"stage {branch.name!r}: ")
