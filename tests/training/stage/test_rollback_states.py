"""States on the disk hold what can be read back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hf_stages.training.stage.rollback_states import RollbackStates


class Projector:
    """An object that an optimizer of one's own keeps for a weight."""


def trainer_of(state) -> SimpleNamespace:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.weight] = {"momentum_buffer": torch.ones(2, 2), **state}
    args = SimpleNamespace(should_save=True, world_size=1, device=torch.device("cpu"))
    return SimpleNamespace(model=model, optimizer=optimizer, args=args)


def test_an_object_in_an_optimizers_state_is_refused_when_it_is_saved(tmp_path):
    states = RollbackStates(trainer_of({"projector": Projector()}), tmp_path)
    with pytest.raises(ValueError, match=r"the optimizer keeps an object \('projector': Projector\) in its state"):
        states.save(3, {}, ())
    assert not list(tmp_path.iterdir())


def test_numbers_lists_and_nothing_come_back(tmp_path):
    trainer = trainer_of({"step": 3, "none": None, "sizes": [1, 2]})
    states = RollbackStates(trainer, tmp_path)
    states.save(3, {"windows": [1.0]}, ())
    held = trainer.model.weight.clone()
    with torch.no_grad():
        trainer.model.weight.zero_()
    trainer.optimizer.state.clear()
    assert states.go_back(3) == {"windows": [1.0]}
    assert torch.equal(trainer.model.weight, held)
    kept = trainer.optimizer.state[trainer.model.weight]
    assert {name: kept[name] for name in ("step", "none", "sizes")} == {
        "step": 3, "none": None, "sizes": [1, 2],
    }  # fmt: skip
