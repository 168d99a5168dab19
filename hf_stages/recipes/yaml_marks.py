"""Reads YAML with the line and column of every value. Plain data only: no tags, no merge keys, no duplicate keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.reader import ReaderError

from hf_stages.core.registry import RecipeError

Marks = dict[tuple[str | int, ...], tuple[int, int]]

_MOST_NODES = 100_000
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
# YAML 1.1 reads 5e-5 as text (it wants 5.0e-5); a learning rate must be a number.
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"
_SCALARS = tuple(_TAG + kind for kind in ("null", "bool", "int", "float"))


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: on, off, yes, no, dates and 1:30 stay text."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text that our loader would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"^<<$"), ["<"])


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    # PyYAML's plain and single-quoted styles fold Unicode's line breaks (NEL, LS, PS) into spaces.
    unusual = value.splitlines() not in ([], [value]) or "\ufeff" in value
    return dumper.represent_scalar(f"{_TAG}str", value, style='"' if unusual else None)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def parse(text: str, file: str = "") -> tuple[Any, Marks]:
    """Return the data and, by path, the line and column (from 1) of each value or its key."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{file or 'recipe'}: expected a mapping with a list of stages, got nothing")
        marks: Marks = {}
        return _Builder(loader, file, marks).build(node, ()), marks
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(file, mark.line, mark.column) if mark else (file or "recipe")
        about = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{place}: cannot read this as YAML: {about}") from error
    except ReaderError as error:
        before = text[: error.position]
        place = _place(file, before.count("\n"), error.position - before.rfind("\n") - 1)
        about = f"the character {error.character:#06x} is not allowed; remove it"
        raise RecipeError(f"{place}: cannot read this as YAML: {about}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file or 'recipe'}: cannot read this as YAML: {error}") from error
    except RecursionError:
        raise RecipeError(f"{file or 'recipe'}: cannot read this as YAML: it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def render(data: Mapping[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _place(file: str, line: int, column: int) -> str:
    return f"{file}:{line + 1}:{column + 1}" if file else f"line {line + 1}, column {column + 1}"


class _Builder:
    def __init__(self, loader: _Loader, file: str, marks: Marks) -> None:
        self.loader, self.file, self.marks, self.count = loader, file, marks, 0
        self.open: set[int] = set()

    def build(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        self.count += 1
        # Anchors are allowed, so a few lines could mean billions of values, or contain themselves.
        if self.count > _MOST_NODES or id(node) in self.open:
            raise self._error(node, "its anchors (&, *) expand without end")
        self.marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            raise self._error(node, f"the tag {node.tag!r} is not allowed; a recipe is plain data")
        self.open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            value: Any = [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        else:
            assert isinstance(node, yaml.MappingNode)
            value = self._mapping(node, path)
        self.open.discard(id(node))
        return value

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in (f"{_TAG}merge", f"{_TAG}str"):
            return node.value
        if node.tag not in _SCALARS:
            raise self._error(node, f"the tag {node.tag!r} is not allowed; a recipe is plain data")
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError) as error:
            raise self._error(node, f"cannot read {node.value!r}: {error}") from error

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise self._error(key_node, "expected text as a key, got a list or a mapping")
            if key_node.tag == f"{_TAG}merge":
                raise self._error(key_node, "merge keys (<<) are not supported; write the keys out")
            if key in mapping:
                message = f"the key {key!r} stands twice (first on line {first[key]}); keep one"
                raise self._error(key_node, message)
            first[key] = key_node.start_mark.line + 1
            self.marks[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            mapping[key] = self.build(value_node, (*path, key))
        return mapping

    def _error(self, node: yaml.Node, message: str) -> RecipeError:
        return RecipeError(f"{_place(self.file, node.start_mark.line, node.start_mark.column)}: {message}")
