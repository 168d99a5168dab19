import torch

from hf_stages.core.micro_batch import MicroBatch, current_micro_batch, in_micro_batch
from hf_stages.core.random_depth import draw_depths


def test_depths_are_distributed_as_stated():
    """Mean, spread, median and tail over 4M draws at a mean of 32."""
    depths = draw_depths(32, 4_000_000, generator=torch.Generator().manual_seed(0)).double()
    assert abs(depths.mean().item() - 33) < 0.05
    assert abs(depths.std().item() - (32 + 32**2 * (torch.e**0.25 - 1)) ** 0.5) < 0.05  # 17.97
    assert depths.median().item() == 29
    assert abs((depths <= 8).double().mean().item() - 0.015) < 0.001
    assert abs((depths > 64).double().mean().item() - 0.058) < 0.001
    assert depths.sort().values[int(0.99 * len(depths))].item() == 94


def test_a_mean_of_zero_is_always_one_cycle():
    assert draw_depths(0, 100).unique().tolist() == [1]


def test_a_place_draws_the_same_again_and_other_places_draw_otherwise():
    def draws(*place):
        return torch.rand(4, generator=MicroBatch(*place).generator("depth")).tolist()

    assert draws(1, 2, 3) == draws(1, 2, 3)
    assert len({tuple(draws(*place)) for place in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3))}) == 4


def test_a_place_holds_within_its_block_alone():
    assert current_micro_batch() is None
    with in_micro_batch(MicroBatch(0, 1, 0)), in_micro_batch(MicroBatch(0, 1, 1)):
        assert current_micro_batch() == MicroBatch(0, 1, 1)
    assert current_micro_batch() is None
