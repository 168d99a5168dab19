"""The modules that Ternarize and Binarize quantize, and why some cannot be quantized."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_stages.layers.experts import QuantizedExperts
from hf_stages.layers.quantizable import kind_of, routers_of, weights_of, word_embeddings_of
from hf_stages.layers.quantized import Quantized, WithStrength
from hf_stages.transforms._patterns import match_names

logger = logging.get_logger(__name__)


def choose_modules(transform: Any, model: Any) -> dict[str, nn.Module]:
    """Choose modules, by name; ValueError where none is left, or where one cannot become what the transform makes."""
    modules = dict(model.named_modules())
    found = {path: module for path, module in modules.items() if kind_of(module) is not None}
    name, kind = type(transform).__name__, type(model).__name__
    made: list[str] = []
    if transform.modules is not None:
        for pattern in transform.modules:
            _explain_unknown(pattern, modules, found, where=f"{name}: modules")
        paths = match_names(transform.modules, found, where=f"{name}: modules")
    else:
        paths = _default_paths(model, found)
        made = [path for path in paths if _needs_no_change(transform, found[path])]
        paths = [path for path in paths if path not in made]
    if transform.embeddings is False:
        paths = [path for path in paths if not isinstance(found[path], nn.Embedding)]
    elif transform.embeddings:
        words = word_embeddings_of(model)
        paths += [path for path, module in found.items() if id(module) in words and path not in paths]
    if transform.exclude:
        out = set(match_names(transform.exclude, found, where=f"{name}: exclude"))
        paths = [path for path in paths if path not in out]
    paths = _without_shared_weights(transform, modules, paths)
    if not paths:
        for path in made:
            if found[path].split or found[path].levels != transform.levels:
                _refuse_twice(transform, path, found[path])
        raise ValueError(f"{name}: {kind}: nothing left to quantize; name linear layers or embeddings in modules=")
    for path in paths:
        _refuse_twice(transform, path, found[path])
    return {path: found[path] for path in paths}


def _default_paths(model: Any, found: dict[str, nn.Module]) -> list[str]:
    base = model.base_model if isinstance(model, PreTrainedModel) else model
    inner = {id(module) for module in base.modules()}
    head = getattr(model, "get_output_embeddings", lambda: None)()  # of T5 it stands inside
    words, left_out = word_embeddings_of(model), routers_of(model) | {id(head)}
    unknown = [type(m).__name__ for m in base.modules() if kind_of(m) is None and _multiplies_unknown(m)]
    if unknown:
        logger.warning_once(
            f"left in full precision, because their forward pass is not known: {', '.join(set(unknown))}"
        )
    return [
        path
        for path, module in found.items()
        if (id(module) in words if isinstance(module, nn.Embedding) else id(module) in inner - left_out)
    ]


def _multiplies_unknown(module: Any) -> bool:
    """Tell whether a module multiplies with a matrix of its own in a way that is not known."""
    matrices = [p for p in module.parameters(recurse=False) if p.dim() >= 2]
    experts = type(module).__name__.endswith(("Experts", "ExpertGLU")) and bool(matrices)
    return experts or (isinstance(module, nn.Linear) and not isinstance(module, Quantized))


def _explain_unknown(pattern: str, modules: dict[str, Any], found: dict[str, nn.Module], *, where: str) -> None:
    """Say why, where a pattern matches only what cannot be quantized."""
    try:
        match_names([pattern], found, where=where)
    except ValueError:
        named = [m for path, m in modules.items() if path and path.rpartition(".")[2] == pattern.rpartition(".")[2]]
        named += [modules[pattern]] if pattern in modules else []
        odd = next((m for m in named if next(m.parameters(recurse=False), None) is not None), None)
        if odd is None:
            raise
        raise ValueError(
            f"{where}: {pattern!r} is a {type(odd).__name__}, whose forward pass is not known; expected nn.Linear, "
            "Conv1D, nn.Embedding (not subclasses of them) or experts in stacks; leave it out"
        ) from None


def _without_shared_weights(transform: Any, modules: dict[str, nn.Module], paths: list[str]) -> list[str]:
    """Leave out modules whose weight is used elsewhere in full precision: it is quantized everywhere, or nowhere."""
    users: dict[int, list[str]] = {}
    for path, module in modules.items():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(path)
    chosen = set(paths)
    kept = []
    for path in paths:
        left = sorted({user for w in weights_of(modules[path]) for user in users[id(w)]} - chosen)
        if not left:
            kept.append(path)
        elif transform.modules is not None or transform.embeddings:
            name = type(transform).__name__
            # Ready recipes pass embeddings= on, but not modules=.
            way = "name both in modules=, or neither"
            if transform.embeddings:
                way = f"leave embeddings=True out, or name both in {name}(modules=...)"
            raise ValueError(f"{name}: {path} shares its weight with {left[0]}, which is not to be quantized; {way}")
    return kept


def _needs_no_change(transform: Any, module: Any) -> bool:
    """Tell whether an earlier transform made it and this one has nothing to change: the default skips it."""
    return isinstance(module, WithStrength) and (module.split or module.levels in (transform.levels, "binary"))


def _refuse_twice(transform: Any, path: str, module: Any) -> None:
    if not isinstance(module, Quantized | QuantizedExperts):
        return
    name = type(transform).__name__
    if module.split:
        raise ValueError(
            f"{name}: {path} was split into two binary halves already, and stays so; leave this transform out, or name "
            "other modules"
        )
    if module.levels == "binary" and transform.levels == "ternary":
        raise ValueError(
            f"{name}: {path} is binary already; ternary comes before binary (Ternarize, train, SplitTernary)"
        )
    if module.levels == transform.levels:
        raise ValueError(f"{name}: {path} is {module.levels} already; leave this transform out, or name other modules")
