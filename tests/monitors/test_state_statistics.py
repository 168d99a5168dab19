"""Numbers of hidden states against their definitions, written out with a matrix of all pairs."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_stages.monitors.state_statistics import effective_rank, state_change, state_norm, token_correlation
from tests.monitors.all_pairs import by_all_pairs


@pytest.mark.parametrize("seed", range(8))
def test_correlation_is_that_of_all_pairs(seed):
    draw = torch.Generator().manual_seed(seed)
    rows, tokens, width = 4, 30 + 90 * seed, 24
    states = torch.randn(rows, tokens, width, generator=draw) + 2 * torch.randn(rows, 1, width, generator=draw)
    states = states * 10 ** (torch.rand(rows, tokens, 1, generator=draw) * 4 - 2) + seed
    real = torch.rand(rows, tokens, generator=draw) < torch.tensor([0.9, 0.5, 0.1, 0.0])[:, None]
    assert float(token_correlation(states, real)) == pytest.approx(by_all_pairs(states, real), abs=2e-6)


def test_equal_tokens_correlate_fully_and_independent_ones_not():
    same = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(1)).expand(3, 200, 64)
    free = torch.randn(3, 500, 256, generator=torch.Generator().manual_seed(2))
    assert float(token_correlation(same, torch.ones(3, 200))) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(token_correlation(free, torch.ones(3, 500)))) < 0.01
    assert float(effective_rank(same, torch.ones(3, 200))) == pytest.approx(1.0, abs=1e-5)
    assert float(effective_rank(free, torch.ones(3, 500))) > 100


def test_opposite_tokens_correlate_negatively():
    one = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0))
    assert float(token_correlation(torch.cat([one, -one], 1), torch.ones(1, 2))) == pytest.approx(-1.0, abs=1e-6)


def test_padding_does_not_count_whatever_is_there():
    states = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    real = torch.arange(40).expand(2, 40) < torch.tensor([[25], [31]])
    for there in (1e6, float("nan"), float("inf")):
        spoilt = torch.where(real[..., None], states, torch.full_like(states, there))
        for number in (token_correlation, state_norm, effective_rank):
            assert float(number(spoilt, real)) == pytest.approx(float(number(states, real)), rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-25, 1e-19])
def test_states_too_small_to_have_a_direction_correlate_with_nothing(size):
    states = size * torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(1, 6, 8)
    assert float(token_correlation(states, torch.ones(1, 6))) == 0.0


def test_rows_of_less_than_two_tokens_do_not_count():
    states = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[1] * 9, [1] + [0] * 8])
    assert float(token_correlation(states, real)) == pytest.approx(by_all_pairs(states[:1], real[:1]), abs=1e-6)


def test_half_precision_is_measured_in_single():
    states = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = token_correlation(states, torch.ones(2, 64))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(by_all_pairs(states.float(), torch.ones(2, 64)), abs=1e-6)


def test_effective_rank_counts_directions():
    directions = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    directions = torch.linalg.qr((directions - directions.mean(-1, keepdim=True)).t())[0].t()
    states = directions.repeat_interleave(16, 0)[None]
    assert float(effective_rank(states, torch.ones(1, 64))) == pytest.approx(4.0, rel=1e-4)


def test_a_state_that_settles_changes_less():
    after = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    assert float(state_change(after, after, torch.ones(1, 8))) == 0.0
    assert float(state_change(0.5 * after, after, torch.ones(1, 8))) == pytest.approx(0.5)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that is made, but for views of the given one."""

    elements = 0

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given = given.data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if torch.is_tensor(one) and one.untyped_storage().data_ptr() != self.given:
                self.elements = max(self.elements, one.numel())
        return made


@pytest.mark.parametrize("number", [token_correlation, effective_rank, state_norm])
def test_no_matrix_of_tokens_by_tokens_is_made(number):
    states, real = torch.randn(1, 4096, 16), torch.ones(1, 4096)
    with LargestTensor(states) as made:
        number(states, real)
    assert made.elements <= states.numel() // 8
