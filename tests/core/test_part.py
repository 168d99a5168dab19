"""The optional methods of a part: its own data and its relative paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_stages.core.curves import Const
from hf_stages.core.part import own_data, resolve_part
from hf_stages.core.parts import write_value


@dataclass(frozen=True)
class Located:
    path: str

    def to_data(self, write):
        return {"use": "Located", "path": write(self.path)}

    def resolve(self, base):
        return Located(f"{base}/{self.path}")


def test_a_part_with_data_of_its_own_is_written_by_it():
    assert own_data(Located("a.csv"), write_value) == (True, {"use": "Located", "path": "a.csv"})
    assert write_value(Located("a.csv")) == {"use": "Located", "path": "a.csv"}
    assert own_data(Const(1.0), write_value) == (False, None)


def test_relative_paths_are_resolved_where_a_part_has_some():
    assert resolve_part(Located("a.csv"), "recipes") == Located("recipes/a.csv")
    assert resolve_part(Const(1.0), "recipes") == Const(1.0)
    assert resolve_part(Path("a.csv"), "recipes") == Path("a.csv")
