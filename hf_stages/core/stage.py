"""The two nouns: a Stage says what one stretch of training is; a Recipe is a sequence of stages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_stages.core.duration import Duration

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNTIL = ("steps", "epochs", "tokens")


@dataclass(frozen=True)
class Stage:
    """One stretch of training, in the Trainer's own words. What is left out is the trainer's.

    >>> Stage("language", until="200 steps").until
    Duration(amount=200.0, unit='steps')
    """

    name: str
    """Names the folder (``out/01-name``) and the seed: a stage reseeds from (seed, name)."""
    until: str | Duration
    """A cap in steps, epochs or tokens; it defines progress t. What may end the stage earlier stands in ``gates``."""
    train_dataset: Any = field(default=None, kw_only=True)
    """A dataset, or the name of one of the recipe's sources."""
    eval_dataset: Any = field(default=None, kw_only=True)
    """The same, or ``{name: dataset}``: every one of them is measured. None: the recipe's."""
    data_collator: Any = field(default=None, kw_only=True)
    """Makes a batch of rows: one of ours, or one of transformers' by its name. None: the recipe's, or Trainer's choice."""
    compute_metrics: Any = field(default=None, kw_only=True)
    """Names of metrics such as ``[accuracy, f1]``, or a function. None: the recipe's."""
    teacher: Any = field(default=None, kw_only=True)
    """A model, a ``Teacher``, a ``CachedTeacher``, ``"stage:<name>"``, or ``"base"``: a LoRA student's own."""
    loss: Any = field(default=None, kw_only=True)
    """A loss or a sum of losses; None is the model's own (``TaskLoss()``)."""
    transforms: Sequence[Any] = field(default=(), kw_only=True)
    """What the model becomes before the first step, in order."""
    schedule: Any = field(default=None, kw_only=True)
    """How the stage takes over learning rate and optimizer; None is ``Fresh()``."""
    args: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """TrainingArguments fields that differ in this stage (an allow-list; others are refused with the reason)."""
    monitors: Sequence[Any] = field(default=(), kw_only=True)
    """Parts of your own that watch the stage; hf_stages has none."""
    gates: Sequence[Any] = field(default=(), kw_only=True)
    """What may end the stage early, go back, or stop the run."""
    exporters: Sequence[Any] = field(default=(), kw_only=True)
    """Other formats to write the finished stage in, to ``out/NN-name-exports``."""
    pack_on_save: bool = field(default=False, kw_only=True)
    """Write the finished stage packed, too, to ``out/NN-name-exports/packed``."""
    parents: Sequence[str] | str | None = field(default=None, kw_only=True)
    """Where it starts: None is the stage before it, ``[]`` the initial model, ``"name"`` another stage (a branch)."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"Stage name {self.name!r}: expected letters, digits, '.', '_' or '-', starting with a letter or digit, "
                "64 at most (it names a folder)"
            )
        object.__setattr__(self, "until", _until(self.name, self.until))
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
    """A class in the place of a part would fail much later, in words of Python's."""
    for part in parts:
        if isinstance(part, type):
            raise ValueError(f"{where}: expected a part, got the class {part.__name__}; write {part.__name__}()")


def _until(name: str, until: str | Duration) -> Duration:
    try:
        duration = Duration.parse(until)
    except ValueError as error:
        raise ValueError(f"stage {name!r}: until: {error}") from None
    if duration.unit not in _UNTIL:
        raise ValueError(
            f"stage {name!r}: until: expected steps, epochs or tokens, got {str(duration)!r}; "
            "a limit in time is a gate: gates=[Budget('2 hours')]"
        )
    return duration


@dataclass(frozen=True)
class Recipe:
    """A sequence of stages with what they share. Python and YAML are the same thing (see ``hf_stages.recipes``)."""

    stages: Sequence[Stage]
    """A list of stages, or a ready recipe: ``{use: three_stage, until: 9 epochs}``."""
    model: Any = field(default=None, kw_only=True)
    """What the first stage starts from: a folder or a Hub name, ``{path: ...}`` or ``{config: ...}``."""
    tokenizer: Any = field(default=None, kw_only=True)
    """A folder or a name on the Hub."""
    args: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """TrainingArguments fields for the whole run (``output_dir`` among them)."""
    sources: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Named datasets; a stage's ``train_dataset`` and ``eval_dataset`` name them."""
    train_dataset: Any = field(default=None, kw_only=True)
    """For stages that name none: a source's name, a source, or a curriculum over sources."""
    eval_dataset: Any = field(default=None, kw_only=True)
    """For stages that name none: one, or ``{name: dataset}``."""
    data_collator: Any = field(default=None, kw_only=True)
    """For stages that name none."""
    compute_metrics: Any = field(default=None, kw_only=True)
    """For stages that name none."""
    teacher: Any = field(default=None, kw_only=True)
    """For stages that name none and whose loss reads a teacher."""
    origin: ClassVar[Any] = None
    """The text that it was read from, if any (``hf_stages.core.origins``): later errors name its lines."""

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
        _check_names(stages)
        parents_of(stages)

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def _check_names(stages: Sequence[Stage]) -> None:
    seen: dict[str, str] = {}
    for stage in stages:
        # Folders of names that differ only in case are one folder on macOS and Windows.
        other = seen.setdefault(stage.name.lower(), stage.name)
        if other is not stage.name or sum(s.name == stage.name for s in stages) > 1:
            raise ValueError(f"stages: the names {other!r} and {stage.name!r} collide; every stage needs its own")


def parents_of(stages: Sequence[Stage]) -> dict[str, str | None]:
    """The stage each stage starts from (None: the initial model). Refuses unknown parents and cycles.

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
                f"stage {stage.name!r}: parents {list(declared)}: a stage starts from one model; expected one name at most"
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
