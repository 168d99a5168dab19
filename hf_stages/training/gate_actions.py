"""What gates may do to a stage in progress besides ending it: lower its learning rate, go back to a kept state, replay.

The rate is a function of the schedule and the ledger, and what is drawn one of the recipe and the ledger; which state to go back to is part of each checkpoint. So a run that is
cut and resumed does what it would have done.
"""

from __future__ import annotations

from typing import Any

from transformers.utils import logging

from hf_stages.evaluation.start_metrics import as_evaluated
from hf_stages.gates.base import Decision
from hf_stages.planning.domains import earlier_domains
from hf_stages.training.rollback_states import forget, go_back, keep, kept_folder

logger = logging.get_logger(__name__)
FAR = 0.2
"""A loss this much above the parent's is worth a notice."""


class Steering:
    """Of one StageRun, which it serves."""

    def __init__(self, run: Any) -> None:
        self.run = run
        trainer, planned = run.trainer, run.planned
        self.kept: int | None = None
        """After how many of the stage's updates the kept state was taken."""
        self.folder = kept_folder(trainer._runner.out, planned.folder)
        self.keeps = any(gate.keeps for gate in planned.stage.gates)
        plan = trainer._runner.plan
        self.earlier = earlier_domains(plan.resolved, planned.name)
        self.chain = [one.name for one in plan.lineage(planned.name) if one.span_root == planned.span_root]
        """The stages whose cuts lower this stage's rate: those whose schedule it goes on with."""

    def rate(self, step: int) -> float:
        return self.run.ledger.lr_factor(self.chain, self.run.first_step + step)

    def replayed(self) -> tuple[tuple[int, float], ...]:
        """(position, share) of each decision to replay: the ledger, in examples."""
        run = self.run
        entries, batch = run.ledger.select(run.planned.name, "replay"), run.planned.size.global_batch
        return tuple(((e.step - run.first_step) * batch, e.value) for e in entries)

    def begin(self) -> None:
        """Before the first update, moments carried: the state that can always be gone back to."""
        if self.run.trainer.args.should_save:
            forget(self.folder)
        if self.keeps:
            self._keep()
        self._notice_rise(as_evaluated(self.run.start), "at its first step")

    @property
    def before(self) -> dict[str, float]:
        """The losses that forgetting is measured from."""
        return {**as_evaluated(self.run.start), **self.run.before}

    def do(self, decision: Decision, by: str) -> None:
        run = self.run
        if decision.action == "keep":
            self._keep()
            return
        if decision.action == "rollback":
            assert self.kept is not None
            go_back(run.trainer, self.folder, self.kept)
        reason = decision.reason + self._back(decision)
        run.note(decision.action, reason, by=by, value=decision.value)
        logger.warning(f"stage {run.planned.name!r}: {reason}")
        if decision.action == "replay":
            run.refetch.change()
        if decision.action in ("cut_lr", "rollback"):
            self._set_rates()
        if decision.action == "rollback" and decision.value is None and run.over is None:
            run._end(reason, by=by)

    def settle(self, history: Any) -> bool:
        """The gates' last word, on the final metrics. True: the stage went back, measure again."""
        run = self.run
        gates = [gate for gate in run.planned.stage.gates if gate.on == "evaluation"]
        if not gates:
            return False
        answers = run.agreed([gate.at_end for gate in gates], history)
        for gate, decision in zip(gates, answers, strict=True):
            if decision is not None:
                self.do(decision, type(gate).__name__)
        return any(d is not None and d.action == "rollback" for d in answers)

    def after_evaluation(self, logs: list[dict[str, Any]]) -> None:
        last: dict[str, float] = {}
        for log in logs:
            last.update(log)
        self._notice_rise(last, f"after {self.run.steps} updates")

    def _keep(self) -> None:
        self.kept = self.run.steps
        keep(self.run.trainer, self.folder, self.kept)
        self.run.trainer._runner._barrier()

    def _back(self, decision: Decision) -> str:
        if decision.action != "rollback":
            return ""
        return f"; went back to {'the start of the stage' if not self.kept else f'the state after {self.kept} updates'}"

    def _set_rates(self) -> None:
        """Moments of another time bring that time's rate; and the next update's was set before it was cut."""
        trainer = self.run.trainer
        scheduler = trainer.lr_scheduler
        for group, base in zip(trainer.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * self.run.multiplier(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in trainer.optimizer.param_groups]

    def _notice_rise(self, now: dict[str, Any], when: str) -> None:
        """Once per stage: near its boundary a stage should still be close to what its parent was."""
        run = self.run
        if any(e.by == "boundary" for e in run.ledger.select(run.planned.name, "notice")):
            return
        for key, start in run.before.items():
            if key.startswith("eval_") and key.endswith("loss") and now.get(key, start) > start + FAR * abs(start):
                text = f"{when}, {key} is {now[key]:.4g}, far above the {start:.4g} that its parent ended with"
                run.note(
                    "notice",
                    f"{text}: a lower learning rate, a warmup or replay of earlier data keeps it closer",
                    by="boundary",
                )
                logger.warning(f"stage {run.planned.name!r}: {text}")
                return
