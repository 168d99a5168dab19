"""Check that an adapter is put on the base that it was trained on. A checkpoint holds the adapter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_stages.core.sealed_folders import SCHEMA, read_json, write_json
from hf_stages.models.adapters import base_names

_FILE = "adapter_base.json"
_SAMPLES = 8
_TOLERANCE = 0.02
"""The relative difference that is accepted.

Other hardware or another dtype change a weight by less than 1 %; a random decomposition that is drawn again changes it
by a third and more.
"""


def note_base(model: Any, folder: Path) -> None:
    """Write a few weights of the base beside a checkpoint."""
    write_json(folder / _FILE, {"schema": SCHEMA, "samples": _samples(model)})


def check_base(model: Any, folder: Path) -> None:
    """Refuse a checkpoint's adapter on another base than the one that it was trained on."""
    if not (folder / _FILE).is_file():
        return
    noted, found = read_json(folder / _FILE, "what an adapter's base was")["samples"], _samples(model)
    for name in noted.keys() & found.keys():
        one, other = torch.tensor(noted[name]), torch.tensor(found[name])
        if len(one) != len(other) or (one - other).norm() > _TOLERANCE * one.norm():
            raise ValueError(
                f"{folder}: its adapter was trained on another base: {name} was {one[0]:.4g}, ... and is "
                f"{other[0]:.4g}, ...; begin with the same model. Where the adapter's start draws at random and "
                "changes the base (pissa_niter), call set_seed before get_peft_model, or use init_lora_weights='pissa'"
            )


def _samples(model: Any) -> dict[str, list[float]]:
    """Return a few values of each weight of the base that is not trained."""
    known, found = base_names(model), {}
    for name, parameter in model.named_parameters():
        if name in known and not parameter.requires_grad and parameter.is_floating_point() and parameter.numel():
            flat = parameter.detach().flatten()
            found[known[name]] = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].float().tolist()
    return dict(sorted(found.items()))
