"""What a gate reads, what it may answer, and what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Literal

from hf_stages.core.ledger import Entry
from hf_stages.core.part import Derived
from hf_stages.core.stage_context import StageContext


@dataclass(frozen=True)
class History:
    """What happened in the stage so far."""

    step: int
    """Updates done in this stage."""
    tokens: int = 0
    seconds: float = 0.0
    logs: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """The stage's own entries of ``state.log_history``, oldest first."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Metrics where the stage began: its parent's last ones, or those of the model it started from."""
    earlier: Sequence[str] = ()
    """Names of evaluation sets that stages before this one trained on."""
    entries: Sequence[Entry] = ()
    """The ledger's entries of this stage. Their steps count from the run's start, as those of the log do."""
    first_step: int = 0
    """Updates that the run had done before this stage."""
    since: int = -1
    """The step of the run up to which the log was acted on already; a detector judges what was logged after it."""
    update: Any = None
    """How the newest update was judged, where a gate judges updates (``OnSpike``)."""

    @property
    def global_step(self) -> int:
        """Updates of the whole run so far: what the steps of ``logs`` and ``entries`` compare with."""
        return self.first_step + self.step

    def values(self, metric: str) -> list[float]:
        return [log[metric] for log in self.logs if metric in log]

    def series(self, metric: str) -> list[tuple[int, float]]:
        """Return (step of the run, value) of each log entry after ``since`` that has the metric.

        >>> logs = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}]
        >>> History(step=20, logs=logs, since=10).series("loss")
        [(20, 2.0)]
        """
        return list(self.newest(metric))[::-1]

    def newest(self, metric: str) -> Iterator[tuple[int, float]]:
        """Yield what ``series`` returns, the newest first: a long log need not be read to its start."""
        for log in reversed(self.logs):
            if log["step"] <= self.since:
                return
            if metric in log:
                yield log["step"], log[metric]


@dataclass(frozen=True)
class Decision:
    """What a gate wants done.

    - ``alert`` writes the reason to the ledger.
    - ``end`` ends the stage, ``stop`` ends the run before the next stage.
    - ``cut_lr`` multiplies the learning rate by ``value`` from here on.
    - ``keep`` stores this state. ``rollback`` goes back to the last one stored (with ``steps_back``, to a healthy one
      at least that many updates old) and continues at ``value`` times the rate, or ends the stage where ``value`` is
      None.
    - ``replay`` takes the share ``value`` of the examples from earlier data from here on.
    """

    action: Literal["alert", "end", "stop", "cut_lr", "keep", "rollback", "replay"]
    reason: str
    """In words, for the ledger and the log."""
    value: float | None = None
    steps_back: int | None = None
    """For ``rollback``: how many updates old the state must be at least. None: the last one stored."""
    skip_data: bool = False
    """For ``rollback``: go on with the data behind those that were drawn since, instead of drawing them again."""


class Gate:
    """Base of all gates: a frozen dataclass that reads a stage's history and may answer with a decision.

    A gate of your own is a subclass with ``__call__(history)``:

    >>> @dataclass(frozen=True)
    ... class Diverged(Gate):
    ...     def __call__(self, history):
    ...         losses = history.values("loss")
    ...         return Decision("end", "the loss doubled") if losses and losses[-1] > 2 * losses[0] else None
    >>> Diverged()(History(step=20, logs=[{"loss": 2.0}, {"loss": 4.5}])).reason
    'the loss doubled'
    """

    on: Literal["step", "update", "log", "evaluation", "end"] = "log"
    """When it is asked: after each update (``step``), log entry or evaluation of all sets, or once at the stage's end.
    ``update`` is for ``OnSpike`` and its subclasses, which are asked about updates that were judged bad."""
    reads_clock: bool = False
    """True: the answer depends on the wall clock, so a resumed run may differ from an uncut one."""

    @Derived
    def keeps(self) -> bool:
        """True: it may answer ``rollback``, so the stage stores states to go back to. Default: what ``action`` says."""
        return getattr(self, "action", None) == "rollback"

    @Derived
    def replays(self) -> bool:
        """True: it may answer ``replay``, so what may be replayed is planned. Default: what ``action`` says."""
        return getattr(self, "action", None) == "replay"

    @Derived
    def most_replayed(self) -> float:
        """The largest share of the examples that it may replay. Default: ``most``, where ``action`` is to replay."""
        return getattr(self, "most", 0.0) if getattr(self, "action", None) == "replay" else 0.0

    @Derived
    def replay_source(self) -> Any:
        """What it replays: a source's name, a curriculum or a dataset. None: what the stages before this one drew.

        Default: ``source``, where ``action`` is to replay.
        """
        return getattr(self, "source", None) if getattr(self, "action", None) == "replay" else None

    def __post_init__(self) -> None:
        """Check that numbers are numbers: a limit that is NaN would never be reached, and nobody would notice."""
        own: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        for field_ in own:
            kinds = [kind.strip() for kind in str(getattr(field_.type, "__name__", field_.type)).split("|")]
            if not {"int", "float"} & set(kinds) or set(kinds) - {"int", "float", "None"}:
                continue
            value, whole = getattr(self, field_.name), "float" not in kinds
            if value is None and "None" in kinds:
                continue
            number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not number or value != value:
                expected = "a whole number" if whole else "a number"
                raise ValueError(f"{type(self).__name__}: {field_.name}: expected {expected}, got {value!r}")

    @property
    def metric_read(self) -> str | None:
        """The name in the log that it needs; by default its field ``metric``, if it has one that is text."""
        metric = getattr(self, "metric", None)
        return metric if isinstance(metric, str) else None

    def check_stage(self, context: StageContext) -> None:
        """Raise ValueError where it could never fire in this stage. Asked before the first step."""
        metric = self.metric_read
        if self.on == "log" and metric is not None and metric.startswith("eval_") and not context.evaluates:
            raise ValueError(
                f'{metric} is never measured inside the stage, because eval_strategy is "no"; set '
                'eval_strategy="steps" and eval_steps'
            )
        if self.on != "evaluation":
            return
        if not isinstance(context.eval_sets, Mapping):
            raise ValueError(
                'eval_dataset: expected named sets, such as {"prose": ..., "code": ...}, whose losses are compared'
            )
        if not context.evaluates:
            raise ValueError(
                'it is asked after evaluations, but eval_strategy is "no"; set eval_strategy="steps" and eval_steps'
            )
        self._check_domains(context)
        if self.keeps and context.args.load_best_model_at_end:
            raise ValueError(
                "action: 'rollback' and load_best_model_at_end both choose what the stage ends with; leave one of them "
                "out"
            )
        if self.keeps and context.sharded:
            raise ValueError("action: 'rollback' is not supported under FSDP; use 'cut_lr' or 'end'")

    def _check_domains(self, context: StageContext) -> None:
        """Check the evaluation sets that its field ``of`` names; None names those that earlier stages trained on."""
        if not hasattr(self, "of"):
            return
        of, known = self.of, ", ".join(context.domains)
        names = [of] if isinstance(of, str) else of
        if isinstance(names, Collection) and (unknown := [name for name in names if name not in context.domains]):
            raise ValueError(f"of: no evaluation set is called {unknown[0]!r}; there are {known}")
        if of is None and not context.earlier:
            raise ValueError(
                f"of: no evaluation set ({known}) is named as an earlier stage or its data are, so it cannot tell what "
                "is not to be forgotten; say of=[...]"
            )

    def at_end(self, history: History) -> Decision | None:
        """Answer once more, on the stage's last evaluation, before its folder is written: ``alert`` or ``rollback``."""
        return None

    def refuse_infinite(self, *names: str) -> None:
        """Refuse infinite numbers that something is compared with: no value would ever be beyond them."""
        for name in names:
            if math.isinf(getattr(self, name)):
                value = getattr(self, name)
                raise ValueError(f"{type(self).__name__}: {name}: expected a finite number, got {value!r}")

    def __call__(self, history: History) -> Decision | None:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(history)")
