"""Declares teachers: a model to be loaded (in fewer bits, if asked), or a cache of a model's outputs."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_stages.core.hub_names import explain_hub_lookup
from hf_stages.models.model_source import ModelSource

if TYPE_CHECKING:
    from hf_stages.teachers.cache_folder import CacheFolder

_BITS = ("8bit", "4bit")
_AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForAudioClassification": "AutoModelForAudioClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "Model": "AutoModel",
}
"""Ends of class names, and the auto class that loads such models."""


@dataclass(frozen=True)
class Teacher:
    """Declares a model that teaches: ``Teacher("path", load_in="8bit")``.

    It runs in evaluation mode and is never trained.

    >>> Teacher("bert-large-uncased", dtype="bfloat16")
    Teacher(model='bert-large-uncased', load_in=None, dtype='bfloat16', auto_class=None, revision=None, tokenizer=None)
    """

    model: Any
    """A folder or a name on the Hub, or a model."""
    load_in: str | None = None
    """``8bit`` or ``4bit``: quantized by bitsandbytes as it is loaded."""
    dtype: str | None = None
    """``bfloat16`` halves the memory; None is float32."""
    auto_class: str | None = None
    """The auto class of ``transformers`` that loads it; None is the student's."""
    revision: str | None = None
    """The version on the Hub: a branch, a tag or a commit."""
    tokenizer: Any = None
    """The teacher's tokenizer, or its folder. Its vocabulary is then compared with the student's."""

    def __post_init__(self) -> None:
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        if self.load_in not in (None, *_BITS):
            raise ValueError(f"load_in: expected '8bit', '4bit' or None, got {self.load_in!r}")
        named = isinstance(self.model, str)
        if not named and not hasattr(self.model, "forward"):
            raise ValueError(f"model: expected a path or a model, got {type(self.model).__name__}")
        for key in ("load_in", "dtype", "auto_class", "revision"):
            if not named and getattr(self, key) is not None:
                raise ValueError(f"{key}: this model is loaded already; give its path instead, or leave {key} out")

    def resolve(self, base: str | Path) -> Teacher:
        """Return a copy whose relative paths start at ``base`` (the recipe's folder), where they exist there."""
        found = {key: value for key in ("model", "tokenizer") if isinstance(value := getattr(self, key), str)}
        return replace(self, **{k: str(Path(base) / v) for k, v in found.items() if os.path.exists(Path(base) / v)})

    def load(self, student: Any = None, *, device: Any = None, trust_remote_code: bool = False) -> Any:
        """Load the model.

        Where ``auto_class`` is not given, the class of ``student`` (a model) decides which auto class loads it.
        """
        if not isinstance(self.model, str):
            return self.model
        return self._source(student, trust_remote_code).load(
            trust_remote_code=trust_remote_code, **self._quantized(device)
        )

    def skeleton(self, student: Any = None, *, trust_remote_code: bool = False) -> Any:
        """Build the model on the meta device: its config is read, its weights are not."""
        if not isinstance(self.model, str):
            return self.model
        return self._source(student, trust_remote_code).skeleton(trust_remote_code=trust_remote_code)

    def cache(
        self,
        dataset: Any,
        folder: str | Path,
        *,
        collator: Any = None,
        k: int | None = None,
        hidden: Sequence[int | str] = (),
        logits: bool = True,
        dtype: str = "float32",
        batch_size: int = 32,
        tokenizer: Any = None,
        shard_rows: int | None = None,
        remove_unused_columns: bool = True,
        device: Any = None,
    ) -> CachedTeacher:
        """Run the teacher once over ``dataset`` and store what losses need of it in ``folder``.

        ``k`` logits of each position are stored, or all of them (None). ``hidden`` are layers by number (0 is the input
        of the first block) or by key (``decoder.hidden.3``). ``collator`` and ``tokenizer`` must be those of the
        training. If it was killed, call it again and it goes on. A finished folder is used as it is, if it holds the
        same cache.
        """
        from hf_stages.teachers.cache_writer import CacheJob, logger

        tokenizer = _load_tokenizer(tokenizer if tokenizer is not None else self.tokenizer)
        options: dict[str, Any] = {"k": k, "hidden": hidden, "logits": logits, "dtype": dtype, "batch_size": batch_size}
        options |= {"shard_rows": shard_rows, "remove_unused_columns": remove_unused_columns, "device": device}
        model = self.load(device=device)
        CacheJob(model, dataset, Path(folder), collator=collator, tokenizer=tokenizer, **options).write()
        cached = CachedTeacher(str(folder))
        logger.warning(f"{folder}: {cached.summary()}")
        return cached

    def _source(self, student: Any, trust_remote_code: bool) -> ModelSource:
        auto = self.auto_class
        if auto is None and student is not None:
            auto = auto_class_of(student)
        elif auto is None:
            from transformers import AutoConfig

            options = {"revision": self.revision or "main", "trust_remote_code": trust_remote_code}
            with explain_hub_lookup(self.model):
                config = AutoConfig.from_pretrained(self.model, **options)
            auto = _auto_class_by_name(next(iter(config.architectures or ()), ""))
        return ModelSource(
            self.model, auto_class=auto or "AutoModelForCausalLM", dtype=self.dtype, revision=self.revision
        )

    def _quantized(self, device: Any) -> dict[str, Any]:
        if self.load_in is None:
            return {}
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"load_in={self.load_in!r} needs bitsandbytes: pip install 'hf_stages[bnb]'")
        import torch
        from transformers import BitsAndBytesConfig

        place = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        return {
            "quantization_config": BitsAndBytesConfig(**{f"load_in_{self.load_in}": True}),
            "device_map": {"": torch.device(place)},
        }


@dataclass(frozen=True)
class CachedTeacher:
    """Reads a teacher's outputs for every row of the data from the folder that ``Teacher.cache`` wrote.

    No model is in memory. Batches may be shuffled, cut and padded in any way. A row that the cache does not hold is an
    error.

    >>> CachedTeacher("cache").folder
    'cache'
    """

    folder: str
    """The folder that ``Teacher.cache`` or ``hf-stages cache-teacher`` wrote."""
    of: Any = field(default=None, compare=False)
    """A model or a ``Teacher`` to compare with: it is an error if it is not the one that was cached."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))

    def resolve(self, base: str | Path) -> CachedTeacher:
        """Return a copy whose relative folder starts at ``base`` (the recipe's folder), if it exists there."""
        found = Path(base) / self.folder
        return replace(self, folder=str(found)) if os.path.exists(found) else self

    @cached_property
    def store(self) -> CacheFolder:
        """Open the folder; refuse one that is damaged, unfinished or of another schema."""
        from hf_stages.teachers.cache_folder import CacheFolder

        return CacheFolder(Path(self.folder))

    @property
    def content(self) -> str:
        """Return the fingerprint of the content.

        A run records it, and is not resumed with another cache in the same place.
        """
        return self.store.manifest["address"]

    @cached_property
    def model(self) -> Any:
        """Return the teacher's skeleton, which losses are adapted to."""
        from hf_stages.models.checksums import skeleton_of

        about = self.store.manifest["request"]["teacher"]
        return skeleton_of(about["class"], about["config"])

    def verify(self) -> None:
        """Read the whole cache and check every checksum."""
        self.store.verify()

    def summary(self) -> str:
        """Return rows, size, how many logits are stored and how much probability they hold, as text."""
        found = self.store.manifest
        size, tokens = found["bytes"], found["tokens"]
        parts = [f"{found['rows']} rows, {tokens} tokens", f"{size / 2**20:.1f} MiB"]
        parts.append(f"{size / tokens:.0f} bytes/token" if tokens else f"{size / max(found['rows'], 1):.0f} bytes/row")
        if found["kept"] is not None:
            tail = 2 * (1 - found["kept"])
            parts.append(
                f"k={found['request']['k']} of {found['classes']} logits, probability mass kept: mean "
                f"{found['kept']:.4f}, min {found['least']:.4f} (LogitKL's gradient by a position's logits is off by "
                f"{tail:.1e} at most, on average)"
            )
        elif found["request"]["logits"]:
            parts.append(f"all {found['classes']} logits")
        if found["request"]["hidden"]:
            parts.append(", ".join(found["request"]["hidden"]))
        return "; ".join([*parts, found["request"]["dtype"]])


def auto_class_of(model: Any) -> str | None:
    """Return the auto class of transformers that loads such a model.

    >>> auto_class_of(type("BertForSequenceClassification", (), {})())
    'AutoModelForSequenceClassification'
    """
    base = getattr(model, "get_base_model", lambda: model)()
    return _auto_class_by_name(type(base).__name__)


def _auto_class_by_name(name: str) -> str | None:
    return next((auto for end, auto in _AUTO.items() if re.search(f"{end}$", name)), None)


def _load_tokenizer(tokenizer: Any) -> Any:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer)
