"""A name that is no folder here is looked for on the Hub: an error says that this was done, as a slip of the pen may be the cause."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explain_hub_lookup(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        wrong = isinstance(error, OSError) or type(error).__name__ == "HFValidationError"
        if os.path.exists(name) or not wrong:
            raise
        raise ValueError(f"there is no folder {name!r} here; it was taken for a name on the Hub: {error}") from error
