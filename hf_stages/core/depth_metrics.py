"""Names of what is measured at a number of cycles of a recurrent model: ``eval_ppl_at_32``, ``loss_at_4``."""

from __future__ import annotations

import re

MEASURES = ("loss", "ppl", "bits_per_byte")
"""What is measured at each depth. The last two are of language models alone."""
_AT_DEPTH = re.compile(rf"(?P<what>(?:.*_)?(?:{'|'.join(MEASURES)}))_at_(?P<depth>[1-9][0-9]*)")


def metric_at(what: str, depth: int) -> str:
    """Name a metric at a depth.

    >>> metric_at("eval_ppl", 32)
    'eval_ppl_at_32'
    """
    return f"{what}_at_{depth}"


def split_depth(metric: str) -> tuple[str, int] | None:
    """Split such a name into the metric and the depth; None where it is another name.

    >>> split_depth("eval_prose_ppl_at_32"), split_depth("eval_loss"), split_depth("eval_look_at_3")
    (('eval_prose_ppl', 32), None, None)
    """
    found = _AT_DEPTH.fullmatch(metric)
    return (found["what"], int(found["depth"])) if found else None
