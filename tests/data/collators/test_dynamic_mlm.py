from __future__ import annotations

import pytest
import torch

from hf_stages.core.curves import Linear
from hf_stages.data import DynamicMLM, Packed
from hf_stages.recipes import dump, loads
from tests.support import tiny

TOKENIZER = tiny.tokenizer()
TEXT = torch.randint(3, 259, (200, 100), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": [2, *row.tolist()], "labels": 7} for row in TEXT]


def masked(collator: DynamicMLM, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return collator.build(TOKENIZER)(ROWS)


def test_shares_are_berts() -> None:
    """Within five standard deviations of a binomial over 20,000 tokens."""
    batch = masked(DynamicMLM(0.3))
    ids = torch.tensor([row["input_ids"] for row in ROWS])
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], ids[chosen])
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    assert not chosen[:, 0].any()  # a special token
    n, picked = TEXT.numel(), int(chosen.sum())
    assert abs(picked - 0.3 * n) < 5 * (n * 0.3 * 0.7) ** 0.5
    new = batch["input_ids"][chosen]
    for share, count in {0.8: new.eq(1).sum(), 0.1: (new.eq(ids[chosen])).sum() - picked * 0.1 / 259}.items():
        assert abs(int(count) - share * picked) < 5 * (picked * share * (1 - share)) ** 0.5


def test_rate_follows_progress_and_masks_are_nested_in_it() -> None:
    curve = DynamicMLM(Linear(0.5, 0.1))
    shares = []
    for t in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        shares.append(curve.build(TOKENIZER).at(t)(ROWS)["labels"].ne(-100))
    assert [round(float(s[:, 1:].float().mean()), 1) for s in shares] == [0.5, 0.3, 0.1]
    assert bool((shares[2] <= shares[1]).all())
    assert bool((shares[1] <= shares[0]).all())


def test_draws_are_of_the_seed_or_of_the_tokens() -> None:
    dynamic, fixed = DynamicMLM(), DynamicMLM(fixed=True)
    assert torch.equal(masked(dynamic, 1)["labels"], masked(dynamic, 1)["labels"])
    assert not torch.equal(masked(dynamic, 1)["labels"], masked(dynamic, 2)["labels"])
    assert torch.equal(masked(fixed, 1)["labels"], masked(fixed, 2)["labels"])
    evaluating = dynamic.build(TOKENIZER).at(None)
    assert torch.equal(evaluating(ROWS)["labels"], masked(fixed)["labels"])


def test_packed_masks() -> None:
    """The same tokens have the same labels, packed or not."""
    packing = Packed(400, DynamicMLM(fixed=True), shift=False, mask="blocks").build(TOKENIZER)
    packed, apart = packing(ROWS), masked(DynamicMLM(fixed=True))
    for key in ("input_ids", "labels"):
        assert torch.equal(packed[key].flatten().sort().values[-20_000:], apart[key].flatten().sort().values[-20_000:])
    assert int(packed["labels"].ne(-100).sum()) == int(apart["labels"].ne(-100).sum())
    assert packed["input_ids"].shape == (67, 303)


@pytest.mark.parametrize(
    "arguments",
    [{"rate": 0}, {"rate": 1.5}, {"rate": Linear(0.2, 0)}, {"masked": 0.9, "replaced": 0.2}, {"masked": -1}],
)
def test_bad_arguments(arguments) -> None:
    with pytest.raises(ValueError, match=r"DynamicMLM: (rate|masked)"):
        DynamicMLM(**arguments)


def test_bad_rows_and_tokenizers() -> None:
    with pytest.raises(ValueError, match="expected one with a mask token, none was given"):
        DynamicMLM().build()
    with pytest.raises(ValueError, match="has none"):
        DynamicMLM().build(tiny.tokenizer(mask_token=None))
    with pytest.raises(ValueError, match="tokenizer: missing"):
        DynamicMLM()(ROWS)
    with pytest.raises(ValueError, match="without a single token"):
        DynamicMLM().build(TOKENIZER)([{"input_ids": []}])


RECIPE = """\
stages:
- name: a
  until: 2 steps
  data_collator:
    use: Packed
    length: Linear(64, 512)
    collator:
      use: DataCollatorForLanguageModeling
      mlm: false
    longer: split
- name: b
  until: 2 steps
  data_collator:
    use: Packed
    length: 512
    collator:
      use: DynamicMLM
      rate: Linear(0.3, 0.15)
- name: c
  until: 2 steps
  data_collator:
    use: Lengths
    length: 128
    collator:
      use: CompletionOnly
      last: true
    widths: [64, 128]
- name: d
  until: 2 steps
  data_collator:
    use: ToolCallsOnly
    collator: default_data_collator
"""


def test_recipes_round_trip() -> None:
    recipe = loads(RECIPE)
    assert recipe["b"].data_collator == Packed(512, DynamicMLM(Linear(0.3, 0.15)))
    assert recipe["a"].data_collator.collator.use == "DataCollatorForLanguageModeling"
    assert recipe["a"].data_collator.length == Linear(64, 512)
    again = loads(dump(recipe))
    assert [stage.data_collator for stage in again.stages] == [stage.data_collator for stage in recipe.stages]
    ready = recipe["a"].data_collator.build(TOKENIZER)
    assert type(ready.collator).__name__ == "DataCollatorForLanguageModeling"
    for wrong, said in {
        "lenght": "Packed takes no argument 'lenght'; did you mean 'length'",
        "collatr": "did you mean 'collator'",
    }.items():
        with pytest.raises(ValueError, match=said):
            loads(RECIPE.replace("length: 512", f"{wrong}: 512"))
    with pytest.raises(ValueError, match=r"data_collator\.collator: unknown part 'DynamicMLN'"):
        loads(RECIPE.replace("DynamicMLM", "DynamicMLN"))
