"""Where a recipe was read. An error that is found later, with models and data loaded, can then name its line."""

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
    """The data of a recipe file, with the line and column of each value."""

    data: Any
    """What the file holds, before parts are built of it."""
    marks: Mapping[Path, tuple[int, int]] = field(repr=False)
    """Line and column of each value, by its path."""
    file: str = ""
    """The file's name; empty where the text came from elsewhere."""

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Put file, line and column in front of the message of a ValueError that begins with a place in the recipe."""
        try:
            yield
        except ValueError as error:
            if type(error) is not ValueError:  # a RecipeError has its place already
                raise
            raise RecipeError(self.locate(str(error))) from error

    def locate(self, message: str) -> str:
        """Return a message with the file, line and column of the value that it is about."""
        path = self._path_in(message)
        if not path:
            return f"{self.file}: {message}" if self.file else message
        line, column = self.marks[path]
        return f"{self.file}:{line}:{column}: {message}" if self.file else f"line {line}, column {column}: {message}"

    def _path_in(self, message: str) -> Path:
        """Find the value that a message is about, such as ``stage 'a': loss: HiddenMSE: layers: ...``."""
        path: Path = ()
        stage = _STAGE.match(message)
        if stage is not None:
            message = message[stage.end() :]
            path = self._path_of_stage(stage.group(1))
        deeper, rest = self._walk(path, message)
        if deeper == path and path:  # a value that the stage takes from the recipe
            above, after = self._walk((), message)
            deeper, rest = (above, after) if above else (path, rest)
        return self._quoted_below(deeper, _SOURCE.sub("", rest)) if deeper else ()

    def _path_of_stage(self, name: str) -> Path:
        stages = self.data.get("stages")
        for index, stage in enumerate(stages if isinstance(stages, list) else ()):
            if isinstance(stage, Mapping) and stage.get("name") == name:
                return ("stages", index)
        return ("stages",)

    def _walk(self, path: Path, text: str) -> tuple[Path, str]:
        """Follow the keys, indexes and class names at the beginning of a message; return the path and what is left."""
        while True:
            text = text.removeprefix(": ")
            key, index, part = _KEY.match(text), _INDEX.match(text), _PART.match(text)
            if key is not None and (*path, key.group(1)) in self.marks:
                path, text = (*path, key.group(1)), text[key.end() :]
            elif index is not None:
                path, text = self._path_of_item(path, int(index.group(1))), text[index.end() :]
            elif part is not None and (found := self._path_of_part(path, part.group(1))) is not None:
                path, text = found, text[part.end() :]
            elif (
                part is not None
                and (after := _KEY.match(text[part.end() + 2 :]))
                and (*path, after.group(1)) in self.marks
            ):
                text = text[part.end() :]  # the name of a class that the data do not hold
            else:
                return path, text

    def _path_of_item(self, path: Path, index: int) -> Path:
        return (*path, index) if (*path, index) in self.marks else path  # a single part may be written without a list

    def _path_of_part(self, path: Path, name: str) -> Path | None:
        """Find the part of that class at ``path``, or in the list there."""
        value = self._value_at(path)
        paths = [(*path, i) for i in range(len(value))] if isinstance(value, list) else [path]
        for each in paths:
            found = self._value_at(each)
            if found == name or (isinstance(found, Mapping) and found.get("use") == name):
                return each
        return None

    def _quoted_below(self, path: Path, text: str) -> Path:
        """Go on to the value below ``path`` that the message quotes, if there is only one."""
        for quoted in _QUOTED.findall(text):
            found = [p for p in self.marks if p[: len(path)] == path and quoted in (self._value_at(p), *p[len(path) :])]
            if len(found) == 1:
                return found[0]
        return path

    def _value_at(self, path: Path) -> Any:
        value = self.data
        for key in path:
            value = value[key]
        return value
