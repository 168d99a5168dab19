"""Errors that a caller may have to tell apart. It does so by the class, never by the text."""

from __future__ import annotations


class LossNotFinite(ValueError):
    """A loss became infinite or NaN. No update was made with it."""


class NeedsWeights(RuntimeError):
    """Something was to be computed with a model on the meta device, which has shapes and no values."""
