"""A name that is no local folder is looked up on the Hub. An error then says so: the name may be misspelt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explain_hub_lookup(name: str) -> Iterator[None]:
    """Add to an error that ``name`` was taken for a name on the Hub, where no folder of that name exists."""
    try:
        yield
    except (OSError, ValueError) as error:
        wrong = isinstance(error, OSError) or type(error).__name__ == "HFValidationError"
        if os.path.exists(name) or not wrong:
            raise
        raise ValueError(f"there is no folder {name!r} here; it was taken for a name on the Hub: {error}") from error
