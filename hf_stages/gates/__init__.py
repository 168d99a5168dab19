"""Gates: from a stage's history to a decision (an alert, its end, a lower rate, a way back) or none. One file each.

``detectors`` holds gates that find what is wrong with a run, ``actions`` what they may have done about it, ``notify``
whom a run tells of all that.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.gates.above import Above as Above
    from hf_stages.gates.actions.base import Action as Action
    from hf_stages.gates.actions.cut_rate import CutRate as CutRate
    from hf_stages.gates.actions.end_stage import EndStage as EndStage
    from hf_stages.gates.actions.rollback import Rollback as Rollback
    from hf_stages.gates.actions.stop_run import StopRun as StopRun
    from hf_stages.gates.base import Decision as Decision
    from hf_stages.gates.base import Gate as Gate
    from hf_stages.gates.base import History as History
    from hf_stages.gates.below import Below as Below
    from hf_stages.gates.budget import Budget as Budget
    from hf_stages.gates.detectors.base import Detector as Detector
    from hf_stages.gates.detectors.base import Finding as Finding
    from hf_stages.gates.detectors.callback import DetectorCallback as DetectorCallback
    from hf_stages.gates.detectors.dead_heads import DeadHeads as DeadHeads
    from hf_stages.gates.detectors.dead_layers import DeadLayers as DeadLayers
    from hf_stages.gates.detectors.dead_recurrence import DeadRecurrence as DeadRecurrence
    from hf_stages.gates.detectors.divergence import Divergence as Divergence
    from hf_stages.gates.detectors.non_finite import NonFinite as NonFinite
    from hf_stages.gates.detectors.on_spike import OnSpike as OnSpike
    from hf_stages.gates.detectors.overthinking import Overthinking as Overthinking
    from hf_stages.gates.detectors.stalled_loader import StalledLoader as StalledLoader
    from hf_stages.gates.detectors.token_collapse import TokenCollapse as TokenCollapse
    from hf_stages.gates.detectors.unshifted_labels import UnshiftedLabels as UnshiftedLabels
    from hf_stages.gates.expect import Expect as Expect
    from hf_stages.gates.forgetting import Forgetting as Forgetting
    from hf_stages.gates.notify.base import Alert as Alert
    from hf_stages.gates.notify.base import Notifier as Notifier
    from hf_stages.gates.notify.trackio_alerts import TrackioAlerts as TrackioAlerts
    from hf_stages.gates.notify.webhook import Webhook as Webhook
    from hf_stages.gates.plateau import Plateau as Plateau

_EXPORTS = Exports(
    __name__,
    ("gates", "actions", "notifiers"),
    more={
        "Action": "hf_stages.gates.actions.base",
        "Alert": "hf_stages.gates.notify.base",
        "Decision": "hf_stages.gates.base",
        "Detector": "hf_stages.gates.detectors.base",
        "DetectorCallback": "hf_stages.gates.detectors.callback",
        "Finding": "hf_stages.gates.detectors.base",
        "Gate": "hf_stages.gates.base",
        "History": "hf_stages.gates.base",
        "Notifier": "hf_stages.gates.notify.base",
    },
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
