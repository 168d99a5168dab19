"""Models of our own type: a plain model is built, then the transforms that its config records are applied again."""

from __future__ import annotations

from typing import Any

from hf_stages.core.parts import part_from_dict
from hf_stages.core.randomness import preserve_random_state
from hf_stages.layers.own_type import record_of, unmarked


def build(kind: Any, config: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Build a model with random weights, as ``kind._from_config`` does, and apply what a marked config records."""
    record = record_of(config)
    if record is None:
        return kind._from_config(config, **options)
    model = kind._from_config(unmarked(config), **options)
    return _replay(model, record, trust_remote_code)


def read(kind: Any, path: Any, *args: Any, config: Any, **options: Any) -> Any:
    """Load a model as ``kind.from_pretrained`` does; of a marked config, with the structure that it records."""
    record: Any = record_of(config)
    if record is None:
        return kind.from_pretrained(path, *args, config=config, **options)
    trust = bool(options.get("trust_remote_code"))

    class Built(kind):
        def __init__(self, config: Any, *args: Any, **options: Any) -> None:
            super().__init__(unmarked(config), *args, **options)
            _replay(self, record, trust)

    # transformers looks up by class and module how weights are named on disk.
    Built.__name__, Built.__qualname__, Built.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    made = Built.from_pretrained(path, *args, config=config, **options)
    model = made[0] if isinstance(made, tuple) else made
    model.__class__ = kind
    return made


def _replay(model: Any, record: dict[str, Any], trust_remote_code: bool) -> Any:
    with preserve_random_state():
        for part in record["transforms"]:
            transform = part_from_dict(part, "transforms", trust_remote_code=trust_remote_code)
            model = transform.as_loaded(model)(model)
    return model
