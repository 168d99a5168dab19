"""Whom a run tells: what is posted, and that a secret URL is written nowhere."""

from __future__ import annotations

import json
import sys
import threading
import types
from enum import Enum
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hf_stages.core.ledger import Entry
from hf_stages.core.parts import part_from_dict, part_to_dict
from hf_stages.gates import Alert, TrackioAlerts, Webhook

ALERT = Alert("out", "code", 9, "cut_lr", "Divergence", "the loss doubled; the rate is cut", 0.5)


@pytest.fixture
def server():
    """A server that keeps what is posted to it; ``/broken`` answers with an error, ``/slow`` too late."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.posted.append((self.path, json.loads(body)))
            if self.path.startswith("/slow"):
                self.server.patience.wait(5)
            self.send_response(500 if self.path.startswith("/broken") else 200)
            self.end_headers()

        def log_message(self, *args):
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.posted, made.patience = [], threading.Event()
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.patience.set()
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_webhook_posts_all_of_an_alert(server, monkeypatch):
    monkeypatch.setenv("TEAM_WEBHOOK", f"{server.url}/services/T0/SECRET \n")
    Webhook("TEAM_WEBHOOK")(ALERT)
    assert server.posted == [
        (
            "/services/T0/SECRET",
            {
                **{"run": "out", "stage": "code", "step": 9, "kind": "cut_lr", "by": "Divergence", "value": 0.5},
                "reason": "the loss doubled; the rate is cut",
                "level": "warn",
                "title": "cut lr in stage code at step 9 (Divergence)",
                "text": "out: cut lr in stage code at step 9 (Divergence): the loss doubled; the rate is cut",
            },
        )
    ]


@pytest.mark.parametrize(("style", "key"), [("slack", "text"), ("discord", "content")])
def test_chats_get_the_text_alone(style, key, server, monkeypatch):
    monkeypatch.setenv("TEAM_WEBHOOK", server.url)
    Webhook("TEAM_WEBHOOK", style=style)(ALERT)
    assert [list(body) for _, body in server.posted] == [[key]]


@pytest.mark.parametrize(
    ("path", "says"),
    [("/broken/SECRET", "status 500"), ("/slow/SECRET", "TimeoutError"), (" /SECRET\x01", "InvalidURL")],
)
def test_an_error_names_the_variable_and_never_the_url(path, says, server, monkeypatch):
    monkeypatch.setenv("TEAM_WEBHOOK", server.url + path)
    with pytest.raises(ConnectionError, match="the URL in TEAM_WEBHOOK was not reached") as caught:
        Webhook("TEAM_WEBHOOK", timeout=0.2)(ALERT)
    assert says in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"), [(None, "is not set"), ("", "is not set"), ("file:///etc/SECRET", r"holds no http\(s\) URL")]
)
def test_a_variable_without_a_url_is_refused(value, message, monkeypatch):
    monkeypatch.delenv("TEAM_WEBHOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("TEAM_WEBHOOK", value)
    with pytest.raises(ValueError, match=message) as caught:
        Webhook("TEAM_WEBHOOK").check()
    assert "SECRET" not in str(caught.value)


def test_a_url_in_the_place_of_the_variable_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="expected the name of an environment variable") as caught:
        Webhook("https://hooks.example.com/services/SECRET")
    assert "SECRET" not in str(caught.value)
    with pytest.raises(ValueError, match="url_from") as caught:
        part_from_dict({"use": "Webhook", "url_from": "https://hooks.example.com/SECRET"}, "notify")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: Webhook(style="xml"), "Webhook: style"), (lambda: Webhook(timeout=0), "Webhook: timeout")],
)
def test_other_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_holds_the_name_of_the_variable(monkeypatch):
    monkeypatch.setenv("TEAM_WEBHOOK", "https://hooks.example.com/SECRET")
    part = Webhook("TEAM_WEBHOOK", style="slack")
    written = part_to_dict(part, "notify")
    assert written == {"use": "Webhook", "url_from": "TEAM_WEBHOOK", "style": "slack"}
    assert part_from_dict(written, "notify") == part
    assert "SECRET" not in repr(part)


class Levels(Enum):
    INFO, WARN, ERROR = "info", "warn", "error"


@pytest.mark.parametrize(
    ("kind", "level"), [("alert", Levels.WARN), ("rollback", Levels.ERROR), ("incident", Levels.INFO)]
)
def test_trackio_gets_title_text_and_level(kind, level, monkeypatch):
    given = []
    module = types.SimpleNamespace(
        AlertLevel=Levels, alert=lambda title, text=None, level=None: given.append((title, text, level))
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    TrackioAlerts()(Alert("out", "code", 9, kind, "OnSpike", "why"))
    assert given == [(f"{kind} in stage code at step 9 (OnSpike)", "why", level)]


def test_trackio_is_asked_for_before_the_run(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="trackio is not installed"):
        TrackioAlerts().check()


@pytest.mark.parametrize(
    ("kind", "by", "told"),
    [
        *((kind, "OnSpike", True) for kind in ("alert", "skip", "cut_lr", "rollback", "stop", "incident", "replay")),
        *[("end", "Overthinking", True), ("end", "until", False), ("end", "callback", False)],
        *((kind, "plan", False) for kind in ("begin", "notice", "resume")),
    ],
)
def test_decisions_are_told_and_the_course_of_the_run_is_not(kind, by, told):
    assert (Alert.of(Entry(9, "code", kind, "why", by), "out") is not None) == told
