"""Every scenario by its name. The sharded ones run last: accelerate leaves an environment variable behind."""

from __future__ import annotations

from tests.workers import drawing, fsdp, incidents, ladder, ranks, recurrence, stopping, training, watching

SCENARIOS = {
    name: function
    for module in (training, drawing, stopping, recurrence, incidents, watching, ladder, fsdp)
    for name, function in ranks.REGISTERED.items()
    if function.__module__ == module.__name__
}
