"""The documentation of a class, read from its source file without importing it.

It consists of the docstring, and of each argument's type hint, default and the string under it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from hf_stages.core.source_sketch import parse_module


@dataclass(frozen=True)
class DocumentedArgument:
    """One argument of a class, as its source has it."""

    name: str
    hint: str
    """The type hint."""
    default: str | None
    """The default as source text; None where the argument must be given."""
    doc: str
    """The string under the argument, on one line."""


@dataclass(frozen=True)
class DocumentedClass:
    """A class of hf_stages as its file documents it.

    >>> DocumentedClass("hf_stages.gates.below", "Below").arguments[0].name
    'metric'
    """

    module: str
    """The module that defines it."""
    name: str
    """The class's name."""

    @property
    def doc(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join((ast.get_docstring(self._node) or "").split("\n\n")[0].split())

    @property
    def bases(self) -> list[str]:
        """The base classes, as source text."""
        return [ast.unparse(base) for base in self._node.bases]

    @property
    def arguments(self) -> list[DocumentedArgument]:
        """The arguments in the order of the dataclass: inherited ones first, keyword-only ones last."""
        fields = self._fields()
        return [argument for last in (False, True) for keyword, argument in fields.values() if keyword is last]

    @property
    def _node(self) -> ast.ClassDef:
        return next(n for n in parse_module(self.module).body if isinstance(n, ast.ClassDef) and n.name == self.name)

    def _fields(self) -> dict[str, tuple[bool, DocumentedArgument]]:
        node, found = self._node, {}
        for base in node.bases:
            if isinstance(base, ast.Name) and (module := _defining_module(self.module, base.id)) is not None:
                found.update(DocumentedClass(module, base.id)._fields())
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            found.update(self._own())
        return found

    def _own(self) -> Iterator[tuple[str, tuple[bool, DocumentedArgument]]]:
        body = self._node.body
        for line, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                continue
            options = _options(line.value)
            if "ClassVar" in ast.unparse(line.annotation) or ast.unparse(options.get("init", _TRUE)) == "False":
                continue
            keyword = ast.unparse(options.get("kw_only", _TRUE)) == "True" and "kw_only" in options
            argument = DocumentedArgument(
                line.target.id, self._hint(line.annotation), self._default(options), _text(following)
            )
            yield argument.name, (keyword, argument)

    def _hint(self, hint: ast.expr) -> str:
        return ast.unparse(_constant(self.module, hint) or hint)

    def _default(self, options: dict[str, ast.expr]) -> str | None:
        if "default_factory" in options:
            made = options["default_factory"]
            return (
                ast.unparse(made.body) if isinstance(made, ast.Lambda) else "{}"
            )  # ``dict`` is the only other factory
        if "default" not in options:
            return None
        value = _constant(self.module, options["default"]) or options["default"]
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "float":
            return str(float(ast.literal_eval(value.args[0])))
        return ast.unparse(value)


_TRUE = ast.Constant(True)


def _options(value: ast.expr | None) -> dict[str, ast.expr]:
    """Return the options of ``field(...)``; a plain default becomes the option ``default``."""
    if value is None:
        return {}
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        return {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
    return {"default": value}


def _text(node: ast.stmt | None) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return " ".join(str(node.value.value).split()) if is_text else ""  # type: ignore[union-attr]


def _constant(module: str, node: ast.expr) -> ast.expr | None:
    """Return the value of a constant, defined in the module or in one of ours that it is imported from."""
    if not isinstance(node, ast.Name):
        return None
    home = _defining_module(module, node.id)
    for line in parse_module(home).body if home is not None else ():
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == node.id:
            return line.value
    return None


def _defining_module(module: str, name: str) -> str | None:
    """Find the module of ours that defines a class or a constant, following imports."""
    for line in parse_module(module).body:
        if isinstance(line, ast.ClassDef) and line.name == name:
            return module
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name:
            return module
        if isinstance(line, ast.ImportFrom) and name in [alias.name for alias in line.names]:
            ours = line.module is not None and line.module.split(".")[0] == "hf_stages"
            return _defining_module(line.module, name) if ours and line.module else None
    return None
