"""Train low-rank additions to frozen weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hf_stages.core.did_you_mean import list_names, sort_by_likeness
from hf_stages.layers.quantized import WithStrength
from hf_stages.transforms._parameters import as_names
from hf_stages.transforms._peft import base_name, import_peft, refuse_adapters
from hf_stages.transforms.base import Transform

# PEFT's task decides which head trains in full (SEQ_CLS and TOKEN_CLS: "classifier", "score") and what generate() does.
_TASK_OF_CLASS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
_ALPHA = float("16")
"""The default is an object of its own, so that a given 16 can be told from it."""


@dataclass(frozen=True)
class AddLora(Transform):
    """``W x`` becomes ``W x + alpha / r * B A x`` with W frozen (LoRA, https://arxiv.org/abs/2106.09685), through PEFT.

    B starts at zero, so the function is kept (in evaluation mode, where dropout is off). All else freezes, except
    ``modules_to_save``; for sequence and token classifiers PEFT adds the head there, other fresh heads must be named.
    ``MergeLora`` makes trainable again what was so before. Learning rates are about 10 times those of full training.

    >>> AddLora(target_modules="q_proj").target_modules
    ('q_proj',)
    """

    r: int = 8
    """The rank of what is added."""
    alpha: float = _ALPHA
    """``lora_alpha``, as PEFT calls it, is taken too."""
    target_modules: str | Sequence[str] | None = field(default=None, kw_only=True)
    """PEFT's rule: module names or their ends, ``"all-linear"``, or a regex of the whole name. None: PEFT's choice."""
    dropout: float = field(default=0.0, kw_only=True)
    """Dropout of what enters the additions."""
    modules_to_save: str | Sequence[str] | None = field(default=None, kw_only=True)
    """Modules trained in full beside the additions, such as a fresh head."""
    task_type: str | None = field(default=None, kw_only=True)
    """PEFT's task, such as ``"CAUSAL_LM"``; None infers it from the model's class, or leaves it out."""
    use_rslora: bool = field(default=False, kw_only=True)
    """Scale by ``alpha / sqrt(r)``: steadier at ranks of 64 and more (https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = field(default=False, kw_only=True)
    """Learn each column's length apart (DoRA, https://arxiv.org/abs/2402.09353); keeps the function up to rounding."""
    lora_alpha: float | None = field(default=None, kw_only=True, repr=False, compare=False)
    """PEFT's name of ``alpha``: what is given here is found there."""
    keeps_function = True

    def __post_init__(self) -> None:
        if self.lora_alpha is not None:
            if self.alpha is not _ALPHA and self.alpha != self.lora_alpha:
                raise ValueError(
                    f"AddLora: alpha and lora_alpha are two names of one number: got {self.alpha!r} and "
                    f"{self.lora_alpha!r}; give one"
                )
            object.__setattr__(self, "alpha", self.lora_alpha)
            object.__setattr__(self, "lora_alpha", None)
        if not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"AddLora: r: expected a whole number, at least 1, got {self.r!r}")
        if self.alpha <= 0:
            raise ValueError(f"AddLora: alpha: expected more than 0, got {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"AddLora: dropout: expected 0 or more and less than 1, got {self.dropout!r}")
        for key in ("target_modules", "modules_to_save"):
            value = getattr(self, key)
            if value is not None and not (key == "target_modules" and _is_rule(value)):
                object.__setattr__(self, key, as_names(value, where=f"AddLora: {key}"))

    def __call__(self, model: nn.Module) -> nn.Module:
        peft = import_peft("AddLora")
        refuse_adapters(model, where="AddLora")
        self._check(model, peft)
        trainable = frozenset(n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad)
        config = peft.LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=_plain(self.target_modules),
            modules_to_save=_plain(self.modules_to_save),
            task_type=self.task_type or _task_of(model),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )
        adapted = peft.get_peft_model(model, config)
        adapted._trainable_before_lora = trainable
        return adapted

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """Moments go to the same weight under its PEFT name; for ``modules_to_save`` to the copy that trains."""
        known = set(before)
        return {base: [name] for name in after if (base := base_name(name)) is not None and base in known}

    def _check(self, model: nn.Module, peft: Any) -> None:
        tasks = [task.value for task in peft.TaskType]
        if self.task_type is not None and self.task_type not in tasks:
            raise ValueError(f"AddLora: task_type: expected one of {', '.join(tasks)}, got {self.task_type!r}")
        if self.use_dora and any(
            getattr(m, "transposed", False) for m in model.modules() if isinstance(m, WithStrength)
        ):
            raise ValueError(
                f"AddLora: use_dora: PEFT measures the columns of {type(model).__name__}'s quantized Conv1D layers "
                "along the wrong side; leave use_dora out"
            )
        for key in ("target_modules", "modules_to_save"):
            targets = getattr(self, key)
            for target in (targets,) if isinstance(targets, str) else targets or ():
                _check_target(model, target, key)
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if self.target_modules is None and kind not in peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise ValueError(
                f"AddLora: target_modules: PEFT has no default for {type(model).__name__} (model_type {kind!r}); "
                'say which, for instance target_modules="all-linear"'
            )


def _is_rule(targets: Any) -> bool:
    """Tell whether it is ``"all-linear"`` or a regex. A lone name counts as a list of one name."""
    return isinstance(targets, str) and re.fullmatch(r"[\w.]*", targets) is None


def _check_target(model: nn.Module, target: str, key: str) -> None:
    """Refuse a target that matches nothing. PEFT refuses only where all do, and drops one misspelt among four."""
    names = [name for name, _ in model.named_modules() if name]
    if target == "all-linear" or any(f".{name}".endswith(f".{target}") for name in names):
        return
    if key == "target_modules" and _is_rule(target) and any(re.fullmatch(target, name) for name in names):
        return
    # Adapters go beside weights, so these are named first.
    heavy = [name for name, module in model.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) > 1]
    ends = dict.fromkeys(name.rpartition(".")[2] for name in (heavy or names) if name and not name[-1].isdigit())
    raise ValueError(
        f"AddLora: {key}: expected the end of a module's name in {type(model).__name__}, got {target!r}, which matches "
        f"none; there are modules such as {list_names(target, sort_by_likeness(target, ends))}"
    )


def _task_of(model: nn.Module) -> str | None:
    name = type(model).__name__
    task = next((task for suffix, task in _TASK_OF_CLASS.items() if name.endswith(suffix)), None)
    # PEFT's sequence-to-sequence wrapper passes input_ids on by name, which speech models do not take.
    text = getattr(model, "main_input_name", None) == "input_ids"
    if name.endswith("ForConditionalGeneration") and text and getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return task


def _plain(targets: str | Sequence[str] | None) -> str | list[str] | None:
    """Return a list where PEFT would not read a tuple."""
    return targets if targets is None or isinstance(targets, str) else list(targets)
