"""The probe of a run that is evaluated at several depths."""

from __future__ import annotations

from hf_stages import AtDepths, Stage
from hf_stages.monitors import TokenCorrelation
from hf_stages.transforms import MakeRecurrent
from tests.support import tiny
from tests.support.runs import staged


def correlations(out, evaluated) -> list[float]:
    recurrent = MakeRecurrent(1, 1, 1, mean_depth=2)
    stage = Stage("a", "3 steps", transforms=[recurrent], monitors=[TokenCorrelation(every=1)])
    trainer = staged(out, [stage], model=tiny.llama(num_hidden_layers=3), eval_dataset=evaluated)
    trainer.train()
    return [log["token_correlation"] for log in trainer.state.log_history if "token_correlation" in log]


def test_the_probe_takes_its_rows_from_a_set_with_depths(tmp_path):
    rows = tiny.lm_data(8, seed=1)
    found = correlations(tmp_path / "depths", AtDepths(rows, (1, 2)))
    assert len(found) == 3
    assert found == correlations(tmp_path / "plain", rows)
