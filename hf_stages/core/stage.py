"""Stages and recipes: a ``Stage`` describes one stage of a training, a ``Recipe`` is a sequence of stages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_stages.core.duration import Duration
from hf_stages.core.placed_errors import place_errors

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNTIL_UNITS = ("steps", "epochs", "tokens")


@dataclass(frozen=True)
class Stage:
    """One stage of a training, in the words of Trainer. What it leaves out it takes from the recipe or the trainer.

    >>> Stage("language", until="200 steps").until
    Duration(amount=200.0, unit='steps')
    """

    name: str
    """The stage's name. It names the folder (``out/01-name``), and the stage's seed is made of it."""
    until: str | Duration
    """The length in steps, epochs or tokens, which defines the progress t. ``gates`` may end the stage earlier."""
    train_dataset: Any = field(default=None, kw_only=True)
    """A dataset, or the name of one of the recipe's sources."""
    eval_dataset: Any = field(default=None, kw_only=True)
    """The same, or ``{name: dataset}`` to evaluate on each of them. None: the recipe's."""
    data_collator: Any = field(default=None, kw_only=True)
    """A collator of ours, or one of transformers' by its name. None: the recipe's, or Trainer's choice."""
    compute_metrics: Any = field(default=None, kw_only=True)
    """Names of metrics such as ``[accuracy, f1]``, or a function. None: the recipe's."""
    teacher: Any = field(default=None, kw_only=True)
    """A model, a ``Teacher``, a ``CachedTeacher``, ``"stage:<name>"``, or ``"base"`` for the base of a LoRA student."""
    loss: Any = field(default=None, kw_only=True)
    """A loss or a sum of losses. None: the model's own loss (``TaskLoss()``)."""
    transforms: Sequence[Any] = field(default=(), kw_only=True)
    """How the model is changed before the first step, in this order."""
    schedule: Any = field(default=None, kw_only=True)
    """The learning rates, and whether the optimizer's moments are carried over. None: ``Fresh()``."""
    args: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Fields of TrainingArguments that differ in this stage. Fields that cannot differ are refused, with the reason."""
    monitors: Sequence[Any] = field(default=(), kw_only=True)
    """Parts that add numbers to the training log: how gradients, hidden states, weights and speed are."""
    gates: Sequence[Any] = field(default=(), kw_only=True)
    """Parts that may end the stage early, go back to an earlier state, or stop the run."""
    exporters: Sequence[Any] = field(default=(), kw_only=True)
    """Further formats in which the finished stage is written, to ``out/NN-name-exports``."""
    pack_on_save: bool = field(default=False, kw_only=True)
    """True: the finished stage is also written packed, to ``out/NN-name-exports/packed``."""
    parents: Sequence[str] | str | None = field(default=None, kw_only=True)
    """Where it starts. None: the stage before it. ``[]``: the initial model. ``"name"``: another stage (a branch)."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"Stage name {self.name!r}: expected letters, digits, '.', '_' or '-', starting with a letter or "
                "digit, 64 at most (it names a folder)"
            )
        object.__setattr__(self, "until", _parse_until(self.name, self.until))
        for key in ("transforms", "monitors", "gates", "exporters"):
            value = getattr(self, key)
            parts = tuple(value) if isinstance(value, list | tuple) else (() if value is None else (value,))
            object.__setattr__(self, key, parts)
        for key in ("loss", "schedule", "transforms", "monitors", "gates", "exporters"):
            value = getattr(self, key)
            _refuse_classes(f"stage {self.name!r}: {key}", value if isinstance(value, tuple) else (value,))
        if isinstance(self.parents, str):
            object.__setattr__(self, "parents", (self.parents,))
        elif self.parents is not None:
            object.__setattr__(self, "parents", tuple(self.parents))
        if not isinstance(self.args, Mapping):
            raise ValueError(
                f"stage {self.name!r}: args: expected a mapping of TrainingArguments fields, got {self.args!r}"
            )
        object.__setattr__(self, "args", dict(self.args))


def _refuse_classes(where: str, parts: Sequence[Any]) -> None:
    """Refuse a class where a part belongs: it would fail much later, with a message of Python's own."""
    for part in parts:
        if isinstance(part, type):
            raise ValueError(f"{where}: expected a part, got the class {part.__name__}; write {part.__name__}()")


def _parse_until(name: str, until: str | Duration) -> Duration:
    with place_errors(f"stage {name!r}: until"):
        duration = Duration.parse(until)
    if duration.unit not in _UNTIL_UNITS:
        raise ValueError(
            f"stage {name!r}: until: expected steps, epochs or tokens, got {str(duration)!r}; "
            "a limit in time is a gate: gates=[Budget('2 hours')]"
        )
    return duration


@dataclass(frozen=True)
class Recipe:
    """A sequence of stages, with what they share. A YAML file holds the same (see ``hf_stages.recipes``).

    >>> recipe = Recipe([Stage("language", "200 steps"), Stage("task", "1 epochs")], model="bert-base-uncased")
    >>> recipe["task"].until
    Duration(amount=1.0, unit='epochs')
    """

    stages: Sequence[Stage]
    """A list of stages, or a ready recipe: ``{use: three_stage, until: 9 epochs}``."""
    model: Any = field(default=None, kw_only=True)
    """What the first stage starts from: a folder or a name on the Hub, ``{path: ...}`` or ``{config: ...}``."""
    tokenizer: Any = field(default=None, kw_only=True)
    """A folder or a name on the Hub."""
    args: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """TrainingArguments fields for the whole run (``output_dir`` among them)."""
    sources: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Datasets by name; ``train_dataset`` and ``eval_dataset`` of a stage may be such a name."""
    train_dataset: Any = field(default=None, kw_only=True)
    """The default of stages: a source's name, a source, or a curriculum over sources."""
    eval_dataset: Any = field(default=None, kw_only=True)
    """The default of stages: a dataset, or ``{name: dataset}``."""
    data_collator: Any = field(default=None, kw_only=True)
    """The default of stages."""
    compute_metrics: Any = field(default=None, kw_only=True)
    """The default of stages."""
    teacher: Any = field(default=None, kw_only=True)
    """The default of stages whose loss reads a teacher."""
    notify: Any = field(default=(), kw_only=True)
    """Whom to tell what gates decide: a function of an ``Alert``, ``Webhook()``, ``TrackioAlerts()``, or a list."""
    origin: ClassVar[Any] = None
    """The text that the recipe was read from, if any (``hf_stages.core.origins``): errors name its lines."""

    def __post_init__(self) -> None:
        if isinstance(self.stages, Stage):
            raise ValueError(f"stages: expected a list, got one Stage; write stages=[Stage({self.stages.name!r}, ...)]")
        stages = tuple(self.stages)
        if not stages:
            raise ValueError("stages: expected at least one Stage, got none")
        for stage in stages:
            if not isinstance(stage, Stage):
                raise ValueError(f"stages: expected Stage objects, got {type(stage).__name__}: {stage!r}")
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "args", dict(self.args))
        object.__setattr__(self, "sources", dict(self.sources))
        object.__setattr__(self, "notify", _told(self.notify))
        _check_names(stages)
        parents_of(stages)

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def _told(notify: Any) -> tuple[Any, ...]:
    """Return those whom a run tells what its gates decide as a tuple."""
    told = tuple(notify) if isinstance(notify, list | tuple) else (() if notify is None else (notify,))
    _refuse_classes("notify", told)
    return told


def _check_names(stages: Sequence[Stage]) -> None:
    seen: dict[str, str] = {}
    for stage in stages:
        # On macOS and Windows two folders cannot differ only in upper and lower case.
        other = seen.setdefault(stage.name.lower(), stage.name)
        if other is not stage.name or sum(s.name == stage.name for s in stages) > 1:
            raise ValueError(f"stages: the names {other!r} and {stage.name!r} collide; every stage needs its own")


def parents_of(stages: Sequence[Stage]) -> dict[str, str | None]:
    """Return the stage that each stage starts from (None: the initial model). Refuse unknown parents and cycles.

    >>> parents_of([Stage("a", "1 steps"), Stage("b", "1 steps"), Stage("c", "1 steps", parents="a")])
    {'a': None, 'b': 'a', 'c': 'a'}
    """
    names = [stage.name for stage in stages]
    parents: dict[str, str | None] = {}
    for before, stage in zip([None, *names], stages, strict=False):
        declared = stage.parents
        if declared is None:
            parents[stage.name] = before
        elif len(declared) > 1:
            raise ValueError(
                f"stage {stage.name!r}: parents {list(declared)}: a stage starts from one model; expected one "
                "name at most"
            )
        else:
            parents[stage.name] = declared[0] if declared else None
        parent = parents[stage.name]
        if parent is not None and parent not in names:
            raise ValueError(
                f"stage {stage.name!r}: parents: no stage is called {parent!r}; there are {', '.join(names)}"
            )
    for name in names:
        path = [name]
        while (parent := parents[path[-1]]) is not None:
            if parent in path:
                raise ValueError(f"stages: the parents form a cycle: {' <- '.join([*path, parent])}")
            path.append(parent)
    late = [n for i, n in enumerate(names) if parents[n] in names[i + 1 :]]
    if late:
        raise ValueError(f"stage {late[0]!r}: its parent {parents[late[0]]!r} stands after it; list the parent first")
    return parents


def own_or_shared(stage: Stage, key: str, shared: Any) -> Any:
    """Return a stage's own value, or the one that ``shared`` (a recipe) holds for stages that say none.

    >>> recipe = Recipe([Stage("a", "1 steps"), Stage("b", "1 steps", teacher="other")], teacher="some/model")
    >>> [own_or_shared(stage, "teacher", recipe) for stage in recipe.stages]
    ['some/model', 'other']
    """
    own = getattr(stage, key)
    return own if own is not None else getattr(shared, key)
