"""A new head on the same body."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.ties import rename_ties
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms.base import Transform

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SetTask(Transform):
    """The model becomes the ``auto_class`` model of its architecture: the body is copied, the head is new and random.

    Use it to classify after pretraining, or to train one task after another. The body is what stands under the model's
    ``base_model_prefix``. Its parameters keep their values, dtypes and layers (ternary ones too), and frozen ones stay
    frozen. Nothing of the old head is used, even where names and shapes agree. A part of the body that the old model
    lacked (BERT for masked language has no pooler) is new as well; the log names all that is new. A later ``AddLora``
    would freeze such a random pooler: keep it training by ``modules_to_save=["pooler"]``.

    >>> SetTask("AutoModelForSequenceClassification", id2label={0: "no", 1: "yes"}).id2label
    ('no', 'yes')
    """

    auto_class: str
    """A name such as ``"AutoModelForTokenClassification"``, or the class."""
    num_labels: int | None = field(default=None, kw_only=True)
    """None: as many as ``id2label``, or what the model's config says (2 where it says nothing)."""
    id2label: Mapping[int, str] | Sequence[str] | None = field(default=None, kw_only=True)
    """Names of the labels: a list, or ``{number: name}``."""
    problem_type: str | None = field(default=None, kw_only=True)
    """``"regression"``, ``"single_label_classification"`` or ``"multi_label_classification"``; None: by the labels."""
    sets_task = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "auto_class", _auto_class(self.auto_class))
        object.__setattr__(self, "id2label", _labels(self.id2label))
        if self.num_labels is not None and self.num_labels < 1:
            raise ValueError(f"SetTask: num_labels: expected at least 1, got {self.num_labels!r}")
        if self.id2label is not None and self.num_labels not in (None, len(self.id2label)):
            raise ValueError(f"SetTask: num_labels is {self.num_labels}, but id2label names {len(self.id2label)}")
        kinds = (None, "regression", "single_label_classification", "multi_label_classification")
        if self.problem_type not in kinds:
            raise ValueError(f"SetTask: problem_type: expected one of {kinds}, got {self.problem_type!r}")

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="SetTask")
        if not isinstance(model, transformers.PreTrainedModel):
            raise ValueError(f"SetTask: expected a model of transformers, got {type(model).__name__}")
        new = self._build(model)
        # One memo for the whole body, so that weights tied inside it stay tied and modules see the new config.
        memo: dict[int, Any] = {id(model.config): new.config}
        _adopt(new.base_model, model.base_model, "", memo)
        copies = {id(copied) for copied in memo.values()}
        with place_errors("SetTask"):
            rename_ties(new)
        new.tie_weights()
        new.to(model.device).train(model.training)
        names = [name for name, parameter in new.named_parameters() if id(parameter) not in copies]
        logger.info("SetTask: %s: new and random: %s", type(new).__name__, ", ".join(names) or "nothing")
        return new

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """Moments of the body go to the same parameter; those of the head are dropped, even for a head of its name."""
        old, new = _body_prefixes(before, after)
        known = set(after)
        pairs = {name: new + name.removeprefix(old) for name in before if name.startswith(old)}
        return {name: [moved] for name, moved in pairs.items() if moved in known}

    def _build(self, model: Any) -> Any:
        config = copy.deepcopy(model.config)
        if self.id2label is not None:
            config.id2label = dict(enumerate(self.id2label))
            config.label2id = {label: i for i, label in enumerate(self.id2label)}
        elif self.num_labels is not None:
            config.num_labels = self.num_labels
        config.problem_type = self.problem_type
        # Drawn on the CPU, the head's numbers do not depend on the device the model happens to be on.
        device = "meta" if model.device.type == "meta" else "cpu"
        try:
            with torch.device(device):
                return getattr(transformers, self.auto_class).from_config(
                    config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
                )
        except ValueError as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"SetTask: {self.auto_class} from a {type(model).__name__}: {reason}") from error


def _auto_class(value: Any) -> str:
    name = value.__name__ if isinstance(value, type) else value
    if not (isinstance(name, str) and name.startswith("AutoModel") and hasattr(transformers, name)):
        known = [known for known in dir(transformers.models.auto) if known.startswith("AutoModel")]
        raise ValueError(
            f"SetTask: auto_class: expected an AutoModel class of transformers, got {name!r}; "
            f"{did_you_mean(name, known)}"
        )
    return name


def _labels(value: Mapping[Any, str] | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the labels in the order of their ids, which JSON and YAML may give as strings."""
    if isinstance(value, Mapping):
        by_id = {int(key): label for key, label in value.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(f"SetTask: id2label: expected the ids 0 to {len(by_id) - 1}, got {sorted(by_id)}")
        value = [by_id[i] for i in range(len(by_id))]
    if value is None:
        return None
    labels = () if isinstance(value, str) else tuple(value)
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"SetTask: id2label: expected different labels in a list or a mapping from ids, got {value!r}")
    return labels


def _adopt(new: nn.Module, old: nn.Module, path: str, memo: dict[int, Any]) -> None:
    """Give ``new`` copies of all of ``old`` that it has a place for.

    Where an earlier transform replaced a module by one of another class (TernaryLinear for Linear), the module itself
    is copied.
    """
    # At its top a body may have more modules or fewer (pooler, decoder); deeper, weights would be lost or random.
    odd = {name for name, _ in new.named_children()} ^ {name for name, _ in old.named_children()}
    if path and odd:
        raise ValueError(
            f"SetTask: {path.rstrip('.')} of the model and of a {type(new).__name__} built from its config differ in "
            f"{', '.join(sorted(odd))}; a transform that changes the architecture must change the config, or set its "
            "own model_type"
        )
    mine, theirs = _parts(new), _parts(old)
    for name, part in mine.items():
        other = theirs.get(name)
        if other is None:
            continue
        if isinstance(part, nn.ModuleList) and _reshaped(part, other):
            # Half the heads of a BERT: no config says so, and attributes of the blocks do (ReduceWidth).
            setattr(new, name, copy.deepcopy(other, memo))
            continue
        if isinstance(part, nn.Module) and type(part) is type(other):
            _adopt(part, other, f"{path}{name}.", memo)
            continue
        if isinstance(part, torch.Tensor) and part.shape != other.shape:
            raise ValueError(
                f"SetTask: {path}{name} is {tuple(other.shape)}, but the config says {tuple(part.shape)}; the "
                "transform that changed it must change the config too"
            )
        setattr(new, name, copy.deepcopy(other, memo))


def _reshaped(new: nn.ModuleList, old: Any) -> bool:
    """Tell whether equally many blocks of the same classes hold tensors of other shapes."""
    if not isinstance(old, nn.ModuleList) or [type(block) for block in new] != [type(block) for block in old]:
        return False
    theirs = dict(old.named_parameters())
    return any(name in theirs and part.shape != theirs[name].shape for name, part in new.named_parameters())


def _parts(module: nn.Module) -> dict[str, Any]:
    parts = {**module._modules, **module._parameters, **module._buffers}
    return {name: part for name, part in parts.items() if part is not None}


def _body_prefixes(before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    """Return the prefix of the body's names in both models: the pair under which most names agree.

    No prefix at all, ("", ""), always agrees most, since it counts heads of the same name too; so it must be right by
    a quarter more (T5: ``shared``, ``encoder`` and ``decoder`` stand at the top).

    >>> body = [f"bert.{i}" for i in range(9)]
    >>> _body_prefixes([*body, "head.w"], [*body, "head.w", "head.b"])
    ('bert.', 'bert.')
    >>> _body_prefixes(["encoder.a", "decoder.b", "lm_head.w"], ["transformer.encoder.a", "score.w"])
    ('', 'transformer.')
    """

    def under(names: Sequence[str]) -> dict[str, set[str]]:
        tops = Counter(name.partition(".")[0] + "." for name in names if "." in name)
        return {top: {n.removeprefix(top) for n in names if n.startswith(top)} for top in ["", *tops]}

    shared = {(p, q): len(a & b) for p, a in under(before).items() for q, b in under(after).items()}
    whole = shared.pop(("", ""))
    best = max(shared, key=lambda pair: shared[pair], default=("", ""))
    return ("", "") if best == ("", "") or whole > 1.25 * shared[best] else best
