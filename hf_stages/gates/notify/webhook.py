"""Post alerts to a URL."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal

from hf_stages.gates.notify.base import Alert, Notifier

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Webhook(Notifier):
    """Posts each alert as JSON to the URL that an environment variable holds.

    Such a URL is a secret: whoever has it can post. It is read when an alert is sent and is written nowhere; a recipe,
    a log and an error name the variable only.

    >>> Webhook("TEAM_WEBHOOK", style="slack").body(Alert("out", "code", 9, "alert", "Divergence", "the loss doubled"))
    {'text': 'out: alert in stage code at step 9 (Divergence): the loss doubled'}
    """

    url_from: str = "HF_STAGES_WEBHOOK"
    """The environment variable that holds the URL."""
    style: Literal["json", "slack", "discord"] = "json"
    """What is posted: all fields of the alert with its text, or the text as Slack or Discord take it."""
    timeout: float = 5.0
    """Seconds after which a delivery is given up; training waits for it."""

    def __post_init__(self) -> None:
        if not isinstance(self.url_from, str) or not _VARIABLE.fullmatch(self.url_from):
            raise ValueError(
                "Webhook: url_from: expected the name of an environment variable such as HF_STAGES_WEBHOOK, got "
                "something else (not shown, since it may be the URL itself, which is a secret): export the URL under "
                "that name"
            )
        if self.style not in ("json", "slack", "discord"):
            raise ValueError(f"Webhook: style: expected 'json', 'slack' or 'discord', got {self.style!r}")
        if not isinstance(self.timeout, int | float) or isinstance(self.timeout, bool) or not 0 < self.timeout <= 60:
            raise ValueError(f"Webhook: timeout: expected seconds above 0 and at most 60, got {self.timeout!r}")

    def check(self) -> None:
        """Refuse a variable that is not set, or holds no URL."""
        if not self._url.startswith(("http://", "https://")):
            state = "holds no http(s) URL" if self._url else "is not set"
            raise ValueError(f"Webhook: url_from: the environment variable {self.url_from} {state}; export it")

    def body(self, alert: Alert) -> dict[str, Any]:
        """Return what is posted."""
        if self.style == "json":
            return {**alert.as_dict(), "title": alert.title, "text": alert.text}
        return {"text" if self.style == "slack" else "content": alert.text[:1900]}  # Discord takes 2000 characters

    def __call__(self, alert: Alert) -> None:
        self.check()
        problem = ""
        try:
            request = urllib.request.Request(
                self._url,
                data=json.dumps(self.body(alert), allow_nan=False, default=str).encode(),
                headers={"Content-Type": "application/json", "User-Agent": "hf_stages"},
            )
            with urllib.request.urlopen(request, timeout=self.timeout):
                return
        except urllib.error.HTTPError as error:
            problem = f"status {error.code}"
        except Exception as error:  # whose text may hold the URL
            problem = type(error).__name__
        raise ConnectionError(f"the URL in {self.url_from} was not reached ({problem})")

    @property
    def _url(self) -> str:
        return os.environ.get(self.url_from, "").strip()
