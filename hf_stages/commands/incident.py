"""``hf-stages incident``: which rows made an update bad, and what it does without them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_stages.commands.command_line import OK, Mistake, Parents


def add_parser(commands: Any, parents: Parents) -> None:
    incident = commands.add_parser(
        "incident",
        parents=[parents.shared],
        help="which rows made an update bad; run that update again with and without them",
        description="List the incidents of a run. Of one step: show the rows of its update, the worst first, and run "
        "the update again, forward and backward, from what was kept beside them: its loss, and its gradient with and "
        "without each of the worst rows. Neither the recipe nor the dataset is needed.",
        epilog="e.g. hf-stages incident out 1200 --rows 50",
    )
    incident.add_argument("out", metavar="OUT", help="the run's output_dir")
    incident.add_argument("step", metavar="STEP", nargs="?", type=int, help="the update, as the log counts them")
    incident.add_argument("--rows", type=int, default=20, metavar="N", help="rows to show (20)")
    incident.add_argument("--without", type=int, default=5, metavar="N", help="rows to leave out in turn (5)")
    incident.add_argument("--no-replay", action="store_true", help="only show the rows")
    incident.add_argument("--json", action="store_true", help="print JSON instead")
    incident.add_argument("--trust-remote-code", action="store_true", help="let code that the run names be imported")
    incident.set_defaults(command=_incident)


def _incident(options: argparse.Namespace) -> int:
    try:
        for name in ("rows", "without"):
            if getattr(options, name) < 0:
                raise ValueError(f"--{name}: expected at least 0, got {getattr(options, name)}")
        _list(options) if options.step is None else _show(options)
    except (ValueError, OSError) as error:
        raise Mistake from error
    return OK


def _list(options: argparse.Namespace) -> None:
    from hf_stages.reports.incidents import read_incidents
    from hf_stages.reports.tables.incident_table import incidents_table

    _check_run(options.out)
    incidents = read_incidents(options.out)
    if options.json:
        print(json.dumps([incident.header() for incident in incidents], indent=2))
    elif not incidents:
        print(f"{options.out}: no incident was recorded; OnSpike and detectors with rows=True record them")
    else:
        print(
            f"{incidents_table(incidents)}\nhf-stages incident {options.out} STEP shows the rows of one and replays it"
        )


def _show(options: argparse.Namespace) -> None:
    from hf_stages.reports.incidents import incident_file, incident_steps, read_incident
    from hf_stages.reports.tables.incident_table import incident_text, replay_text

    _check_run(options.out)
    known = incident_steps(options.out)
    if options.step not in known:
        there = f"there are {', '.join(map(str, known))}" if known else "it has none"
        raise ValueError(f"{options.out}: no incident was recorded at step {options.step}; {there}")
    incident = read_incident(incident_file(Path(options.out), options.step))
    if not options.json:
        print(incident_text(incident, most=options.rows))
    replay = None if options.no_replay else _replay(options, incident)
    if options.json:
        rows = [row.to_dict() for row in incident.rows]
        replayed = {} if replay is None else {"replay": replay.to_dict()}
        print(json.dumps({**incident.header(), "rows": rows, **replayed}, indent=2))
    elif replay is not None:
        print(f"\n{replay_text(replay)}")


def _replay(options: argparse.Namespace, incident: Any) -> Any:
    from hf_stages.training.incidents.replay import replay_incident  # torch and transformers take seconds

    given = {"most": options.without, "trust_remote_code": options.trust_remote_code}
    return replay_incident(options.out, incident, **given)


def _check_run(out: str) -> None:
    from hf_stages.core.sealed_folders import RUN_FILE
    from hf_stages.reports.incidents import FOLDER

    folder = Path(out)
    if not (folder / RUN_FILE).is_file() and not (folder / FOLDER).is_dir():
        raise ValueError(f"{out}: expected a run's folder, but it has neither {RUN_FILE} nor {FOLDER}/")
