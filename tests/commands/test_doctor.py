from __future__ import annotations

import configparser
import json
from pathlib import Path

import pytest

from hf_stages.commands import cli, doctor

SETUP = Path(__file__).resolve().parents[2] / "setup.cfg"


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions (None: not installed)."""

    def pretend(**changed):
        real = doctor._version
        changed = {name.replace("_", "-"): version for name, version in changed.items()}
        monkeypatch.setattr(doctor, "_version", lambda name: changed[name] if name in changed else real(name))

    return pretend


def test_ranges_are_those_of_setup_cfg():
    config = configparser.ConfigParser()
    config.read(SETUP)
    required = config["options"]["install_requires"].split()
    assert required == [name + wanted for name, wanted in doctor.REQUIRED.items()]
    assert config["options"]["python_requires"] == doctor.PYTHON
    extras = config["options.extras_require"]
    for name, (extra, wanted, _) in doctor.OPTIONAL.items():
        assert name + wanted in extras[extra].split()
    assert {extra for extra, _, _ in doctor.OPTIONAL.values()} == set(extras) - {"dev"}


def test_the_readme_names_every_extra():
    config = configparser.ConfigParser()
    config.read(SETUP)
    readme = (SETUP.parent / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("| extra |") : readme.index("## Run")]
    assert [extra for extra in config["options.extras_require"] if f"`{extra}`" not in table] == []


def test_a_sound_machine_is_called_sound(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "transformers" in shown
    assert "not tested" in shown


def test_a_version_out_of_range_is_flagged(versions, capsys):
    versions(transformers="6.0.1")
    assert cli.main(["doctor"]) == 1
    assert 'OUT OF RANGE, expected >=5.19,<6: pip install "transformers>=5.19,<6"' in capsys.readouterr().out


def test_a_missing_required_part_fails_and_a_missing_optional_one_does_not(versions, capsys):
    versions(peft=None)
    assert cli.main(["doctor"]) == 0
    assert 'pip install "hf_stages[lora]"' in capsys.readouterr().out
    versions(xxhash=None)
    assert cli.main(["doctor"]) == 1
    assert "MISSING" in capsys.readouterr().out


def test_json_tells_what_is_too_old(versions, capsys):
    versions(matplotlib="1.0")
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    entry = next(package for package in found["packages"] if package["name"] == "matplotlib")
    assert found["ok"]
    assert not entry["ok"]
    assert entry["fix"] == 'pip install "hf_stages[report]"'


def test_a_broken_torch_is_reported():
    assert "unknown" in doctor._device_lines({"error": "no libgomp"})[0]
