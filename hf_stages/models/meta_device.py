"""Models on the meta device, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hf_stages.core.errors import NeedsWeights


@contextmanager
def report_missing_weights() -> Iterator[None]:
    """Raise ``NeedsWeights`` where torch refuses to compute with values that a meta tensor does not have.

    torch has no class of its own for that, so its text is read here, and nowhere else.

    >>> import torch
    >>> with report_missing_weights():
    ...     torch.ones(1, device="meta").item()  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    hf_stages.core.errors.NeedsWeights: ...
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        raise NeedsWeights(str(error)) from error
