"""Sketches of classes and functions: their names and arguments, read from source files without importing them.

A sketch is a class with the same name, arguments and plain type hints that does nothing. With sketches, a misspelt word
in a recipe is found in a fraction of a second. To import the parts themselves, and torch with them, takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_stages.core.curves import Curve
from hf_stages.core.duration import Duration

_PACKAGE = Path(__file__).parents[1]
_KNOWN = {**vars(typing), "Mapping": Mapping, "Sequence": Sequence, "Callable": Callable, "Curve": Curve}
_KNOWN |= {"Duration": Duration, "Path": Path}
"""The names that a type hint may use. Other hints are left out: they only help to convert and check."""
_POSITIONAL, _KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
_ANY_ARGUMENTS = (inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD),)
Parameters = tuple[inspect.Parameter, ...]


@lru_cache(maxsize=256)
def sketch(module: str, name: str) -> type:
    """Return the sketch of a class or function in any module."""
    tree = parse_module(module)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)
    if node is None:
        return sketch_of_anything(name)
    parameters = _function_parameters(node) if isinstance(node, ast.FunctionDef) else _class_parameters(module, node)
    return _sketch_class(name, parameters or ())


def sketch_of_anything(name: str) -> type:
    """Return a sketch that takes any arguments, for a user's own code, which is not read."""
    return _sketch_class(name, _ANY_ARGUMENTS)


def classes_and_functions(module: str) -> list[str]:
    """List the names of a module's classes and functions, in the order of its file."""
    return [node.name for node in parse_module(module).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


def module_doc(module: str) -> str:
    """Return a module's docstring."""
    return ast.get_docstring(parse_module(module)) or ""


def dataclass_fields(module: str, name: str) -> list[str]:
    """List the fields of a dataclass, such as transformers' TrainingArguments."""
    return list(inspect.signature(sketch(module, name)).parameters)


def _sketch_class(name: str, parameters: Parameters) -> type:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        pass

    __init__.__annotations__ = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    signature = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
    return type(name, (), {"__init__": __init__, "__signature__": signature})


@lru_cache(maxsize=256)
def parse_module(module: str) -> ast.Module:
    """Parse the source of any module, without importing it."""
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    """Find a module's file without importing the packages above it, as ``find_spec`` of a submodule would."""
    top, *rest = module.split(".")
    if top == "hf_stages":
        root = _PACKAGE
    else:
        spec = importlib.util.find_spec(top)
        if spec is None or spec.origin is None:
            raise ImportError(f"{top} is not installed")
        root = Path(spec.origin).parent
    path = root.joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _class_parameters(module: str, node: ast.ClassDef) -> Parameters | None:
    """Return the constructor's parameters; None where neither the class nor a base declares any."""
    own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if own is not None:
        return _function_parameters(own)[1:]
    inherited = next((found for base in node.bases if (found := _base_parameters(module, base)) is not None), None)
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return inherited
    fields = {
        parameter.name: parameter for parameter in inherited or () if parameter.kind is not _ANY_ARGUMENTS[0].kind
    }
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            fields.update(_field_parameter(line.target.id, line))
    return tuple(sorted(fields.values(), key=lambda p: p.kind))  # as ``dataclass`` does: keyword-only ones last


def _base_parameters(module: str, base: ast.expr) -> Parameters | None:
    return _named_class_parameters(module, base.id) if isinstance(base, ast.Name) else _ANY_ARGUMENTS


def _named_class_parameters(module: str, name: str) -> Parameters | None:
    """Return the parameters of a class that the module defines or imports from its own package."""
    for line in parse_module(module).body:
        if isinstance(line, ast.ClassDef) and line.name == name:
            return _class_parameters(module, line)
        if isinstance(line, ast.ImportFrom) and any((a.asname or a.name) == name for a in line.names):
            found = next(a.name for a in line.names if (a.asname or a.name) == name)
            near = (line.module or "").split(".")[0] == module.split(".")[0] and not line.level
            return _named_class_parameters(line.module or "", found) if near else _ANY_ARGUMENTS
    return _ANY_ARGUMENTS


def _field_parameter(name: str, line: ast.AnnAssign) -> dict[str, inspect.Parameter]:
    hint, value = ast.unparse(line.annotation), line.value
    if "ClassVar" in hint:
        return {}
    options: dict[str, ast.expr] = {}
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field":
        options = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
        if _is(options.get("init"), False):
            return {}
        given = "default" in options or "default_factory" in options
    else:
        given = value is not None
    kind = _KEYWORD if _is(options.get("kw_only"), True) else _POSITIONAL
    return {name: _parameter(name, kind, given, line.annotation)}


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _function_parameters(node: ast.FunctionDef) -> Parameters:
    own = node.args
    places = [*own.posonlyargs, *own.args]
    first = len(places) - len(own.defaults)
    found = [_parameter(a.arg, _POSITIONAL, i >= first, a.annotation) for i, a in enumerate(places)]
    found += [
        _parameter(a.arg, _KEYWORD, default is not None, a.annotation)
        for a, default in zip(own.kwonlyargs, own.kw_defaults, strict=True)
    ]
    return (*found, *_ANY_ARGUMENTS) if own.kwarg is not None else tuple(found)


def _parameter(name: str, kind: Any, given: bool, annotation: ast.expr | None) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    return inspect.Parameter(name, kind, default=None if given else empty, annotation=_hint(annotation))


def _hint(annotation: ast.expr | None) -> Any:
    if annotation is None:
        return inspect.Parameter.empty
    try:
        return eval(compile(ast.Expression(annotation), "<hint>", "eval"), {"__builtins__": {}, **_BUILTINS, **_KNOWN})
    except Exception:
        return inspect.Parameter.empty


_BUILTINS = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, tuple, set, frozenset, object, type)}
