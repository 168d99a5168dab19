"""Names a data collator of transformers, which is built once the tokenizer is known."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_stages.core.part import Writer
from hf_stages.core.parts import SUPPLIED_ARGUMENTS


@dataclass(frozen=True)
class Collator:
    """A data collator of transformers by name; in a recipe ``{use: DataCollatorForLanguageModeling, mlm: false}``.

    >>> Collator("DataCollatorForLanguageModeling", {"mlm": False}).use
    'DataCollatorForLanguageModeling'
    """

    use: str
    """The name of a class in ``transformers``."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of that class."""

    def to_data(self, write: Writer) -> dict[str, Any]:
        return {"use": self.use, **{name: write(argument) for name, argument in self.args.items()}}

    def build(self, tokenizer: Any = None, model: Any = None) -> Any:
        """Return the collator of transformers; it gets the tokenizer and the model if it takes them."""
        import transformers

        cls = getattr(transformers, self.use, None)
        if cls is None:
            raise ValueError(f"data_collator: transformers has no {self.use!r}")
        given = {"tokenizer": tokenizer, "processing_class": tokenizer, "model": model}
        parameters = inspect.signature(cls).parameters
        extra = {k: v for k, v in given.items() if k in parameters and k not in self.args and v is not None}
        lacking = [k for k in SUPPLIED_ARGUMENTS if k in parameters and k not in {**extra, **self.args}]
        if any(parameters[k].default is inspect.Parameter.empty for k in lacking):
            raise ValueError(
                f"data_collator: {self.use} needs a {lacking[0]}; give the recipe or the trainer a tokenizer"
            )
        return cls(**extra, **self.args)
