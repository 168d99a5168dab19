"""Where a recipe was read, so that an error found later, with models and data at hand, still names the line of its cause."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hf_stages.core.registry import RecipeError

Path = tuple[str | int, ...]
_STAGE = re.compile(r"stage '([^']+)': ")
_KEY = re.compile(r"\.?(\w[\w-]*)(?=[.:\[ ])")
_INDEX = re.compile(r"\[(\d+)\]")
_PART = re.compile(r" ?([A-Z]\w*)(?=: )")
_SOURCE = re.compile(r"source '[^']*'(, split '[^']*')?: ")
_QUOTED = re.compile(r"'([^']+)'")


@dataclass(frozen=True)
class Origin:
    """A recipe's data as its text has them, with the line and column of each value."""

    data: Any
    marks: Mapping[Path, tuple[int, int]] = field(repr=False)
    file: str = ""

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Put file, line and column in front of a ValueError whose message begins with a place, as all of ours do."""
        try:
            yield
        except ValueError as error:
            if type(error) is not ValueError:  # a RecipeError has its place already
                raise
            raise RecipeError(self.locate(str(error))) from error

    def locate(self, message: str) -> str:
        path = self._path_in(message)
        if not path:
            return f"{self.file}: {message}" if self.file else message
        line, column = self.marks[path]
        return f"{self.file}:{line}:{column}: {message}" if self.file else f"line {line}, column {column}: {message}"

    def _path_in(self, message: str) -> Path:
        """The value that a message is about: ``stage 'a': loss: HiddenMSE: layers: ...`` and the like."""
        path: Path = ()
        stage = _STAGE.match(message)
        if stage is not None:
            message = message[stage.end() :]
            path = self._stage(stage.group(1))
        deeper, rest = self._walk(path, message)
        if deeper == path and path:  # what a stage takes from the recipe
            above, after = self._walk((), message)
            deeper, rest = (above, after) if above else (path, rest)
        return self._named(deeper, _SOURCE.sub("", rest)) if deeper else ()

    def _stage(self, name: str) -> Path:
        stages = self.data.get("stages")
        for index, stage in enumerate(stages if isinstance(stages, list) else ()):
            if isinstance(stage, Mapping) and stage.get("name") == name:
                return ("stages", index)
        return ("stages",)

    def _walk(self, path: Path, text: str) -> tuple[Path, str]:
        while True:
            text = text.removeprefix(": ")
            key, index, part = _KEY.match(text), _INDEX.match(text), _PART.match(text)
            if key is not None and (*path, key.group(1)) in self.marks:
                path, text = (*path, key.group(1)), text[key.end() :]
            elif index is not None:
                path, text = self._item(path, int(index.group(1))), text[index.end() :]
            elif part is not None and (found := self._part(path, part.group(1))) is not None:
                path, text = found, text[part.end() :]
            elif (
                part is not None
                and (after := _KEY.match(text[part.end() + 2 :]))
                and (*path, after.group(1)) in self.marks
            ):
                text = text[part.end() :]  # the class of a model
            else:
                return path, text

    def _item(self, path: Path, index: int) -> Path:
        return (*path, index) if (*path, index) in self.marks else path  # one part may stand without its list

    def _part(self, path: Path, name: str) -> Path | None:
        """The part of that class at a place, or in the list there."""
        value = self._at(path)
        places = [(*path, i) for i in range(len(value))] if isinstance(value, list) else [path]
        for place in places:
            found = self._at(place)
            if found == name or (isinstance(found, Mapping) and found.get("use") == name):
                return place
        return None

    def _named(self, path: Path, text: str) -> Path:
        """A value below the place that the message quotes, if only one is meant."""
        for quoted in _QUOTED.findall(text):
            found = [p for p in self.marks if p[: len(path)] == path and quoted in (self._at(p), *p[len(path) :])]
            if len(found) == 1:
                return found[0]
        return path

    def _at(self, path: Path) -> Any:
        value = self.data
        for key in path:
            value = value[key]
        return value
