"""Hand alerts to trackio."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from hf_stages.gates.notify.base import Alert, Notifier


@dataclass(frozen=True)
class TrackioAlerts(Notifier):
    """Hands each alert to ``trackio.alert``: it stands in the run's dashboard, and goes where trackio sends alerts.

    The run must be one that trackio follows: ``report_to="trackio"``, or ``trackio.init`` before. It needs the package
    ``trackio``.

    >>> TrackioAlerts()
    TrackioAlerts()
    """

    def check(self) -> None:
        """Refuse to begin without trackio."""
        if importlib.util.find_spec("trackio") is None:
            raise ValueError("TrackioAlerts: trackio is not installed: pip install trackio")

    def __call__(self, alert: Alert) -> None:
        import trackio

        trackio.alert(title=alert.title, text=alert.reason, level=getattr(trackio.AlertLevel, alert.level.upper()))
