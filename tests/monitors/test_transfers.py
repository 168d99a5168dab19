"""What a run waits for: no value comes to the host in an update, and all of a log's come at once."""

from __future__ import annotations

import sys

import pytest
import torch

from hf_stages import Stage
from hf_stages.monitors import AttentionEntropy, RunHealth
from hf_stages.transforms import Ternarize
from tests.support.runs import staged

READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu")


def asked_by_monitors() -> str:
    """The function of a monitor that reads; nothing where a model's own forward does, or none of ours."""
    frame = sys._getframe(2)
    while frame is not None and "transformers/masking_utils" not in frame.f_code.co_filename:
        if "hf_stages/monitors/" in frame.f_code.co_filename:
            return frame.f_code.co_name
        frame = frame.f_back
    return ""


@pytest.fixture
def reads(monkeypatch):
    """Notes who among the monitors brings a tensor's value to the host."""
    found: list[str] = []
    for name in READS:
        own = getattr(torch.Tensor, name)

        def read(self, *args, _own=own, **kwargs):
            if who := asked_by_monitors():
                found.append(who)
            return _own(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    return found


def test_one_transfer_for_each_log_and_none_for_an_update(tmp_path, reads):
    monitors = [RunHealth(), AttentionEntropy()]
    stages = [Stage("a", "6 steps", transforms=[Ternarize()], monitors=monitors)]
    trainer = staged(tmp_path, stages, args={"logging_steps": 3, "gradient_accumulation_steps": 2})
    run, at_begin = trainer.training_step, []

    def training_step(*args, **kwargs):
        at_begin.append(len(reads))
        return run(*args, **kwargs)

    trainer.training_step = training_step
    trainer.train()
    logs = [log for log in trainer.state.log_history if "token_correlation" in log]
    assert len(logs) == 2
    assert reads[at_begin[0] :] == ["as_floats"] * 2
