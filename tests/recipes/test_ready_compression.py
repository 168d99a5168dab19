"""The compressing recipes: which boxes they hold, in which order, and what they refuse."""

from __future__ import annotations

import pytest

from hf_stages import Stage
from hf_stages.core.curves import Linear
from hf_stages.losses import AttentionMSE, AttentionRelation, HiddenMSE, LogitKL
from hf_stages.losses.objective.terms import terms_of
from hf_stages.recipes import bitdistill, dump, loads, multi_stage, single_stage
from hf_stages.transforms import Binarize, ReduceLayers, SetTask, SplitTernary, Ternarize

FEATURES, LOGITS = ["HiddenMSE", "AttentionMSE"], ["LogitKL"]


def boxes(recipe) -> dict[str, tuple[list[str], list[str]]]:
    """Stage -> what the model becomes, what it learns."""
    return {
        s.name: ([type(t).__name__ for t in s.transforms], [term.name for term in terms_of(s.loss)])
        for s in recipe.stages
    }


def test_the_long_way_holds_every_box_of_the_figure():
    recipe = multi_stage(
        "40 steps",
        general="1000 steps",
        corpus="wiki",
        general_teacher="base",
        set_task=["no", "yes"],
        reduce=[2, 4, 6],
        learning_rate=[2.5e-5, 1e-5, 1.25e-4, 5e-5],
    )
    assert boxes(recipe) == {
        "general": (["ReduceLayers"], FEATURES),
        "ternary-features": (["SetTask", "Ternarize"], FEATURES),
        "ternary-logits": ([], LOGITS),
        "binary-features": (["SplitTernary"], FEATURES),
        "binary-logits": ([], LOGITS),
    }
    general, *task = recipe.stages
    assert (general.train_dataset, general.teacher, str(general.until)) == ("wiki", "base", "1000 steps")
    assert [stage.args["learning_rate"] for stage in task] == [2.5e-5, 1e-5, 1.25e-4, 5e-5]
    assert [stage.teacher for stage in task] == [None] * 4  # the run's
    assert [str(stage.until) for stage in task] == ["10 steps"] * 4
    assert general.loss.losses[0].layers == {0: 0, 1: 2, 2: 4, 3: 6}


def test_the_short_way_is_one_stage():
    (stage,) = single_stage(reduce=[1, 3]).stages
    assert stage.transforms == (ReduceLayers([1, 3]), Binarize())
    assert [term.name for term in terms_of(stage.loss)] == FEATURES + LOGITS
    (stage,) = single_stage(bits=2, method="absmean", per=64, strength="Linear(0, 1)").stages
    assert stage.name == "ternary"
    assert stage.transforms[0].method == "absmean"
    assert stage.transforms[0].strength(0.5) == 0.5


def test_without_general_distillation_the_run_begins_smaller_and_ternary():
    first = multi_stage(reduce=[1], set_task=3, method="absmean", activations=None).stages[0]
    head = SetTask("AutoModelForSequenceClassification", num_labels=3)
    assert first.transforms == (ReduceLayers([1]), head, Ternarize(method="absmean", activations=None))


def test_features_may_stay_where_logits_are_learned():
    assert boxes(multi_stage(keep_features=True))["binary-logits"] == ([], FEATURES + LOGITS)


def test_half_the_heads_are_compared_by_their_relations():
    losses = multi_stage(width=0.5).stages[0].loss.losses
    assert losses == (HiddenMSE(), AttentionRelation(layers="uniform"))
    assert multi_stage().stages[0].loss.losses == (HiddenMSE(), AttentionMSE())
    assert multi_stage(width=0.5, attention=0).stages[0].loss == HiddenMSE()
    fading = multi_stage(width=0.5, hidden=0, attention="Linear(1, 0)").stages[0].loss
    assert fading == Linear(1, 0) * AttentionRelation(layers="uniform")


def test_a_decoder_goes_on_with_its_pretraining_first():
    recipe = bitdistill(corpus="text", sub_norm=False, relation=60.0)
    assert boxes(recipe) == {
        "pretrain": (["Ternarize"], ["TaskLoss"]),
        "distil": ([], ["LogitKL", "TaskLoss", "AttentionRelation"]),
    }
    ternary = recipe.stages[0].transforms[0]
    assert (ternary.method, ternary.per, ternary.embeddings) == ("absmean", "tensor", False)
    logits, _, near = terms_of(recipe["distil"].loss)
    assert (logits.weight(0.0), near.weight(0.0)) == (1, 60)
    assert logits.loss == LogitKL()
    as_published = terms_of(bitdistill(logits=10, temperature=5, sub_norm=False)["distil"].loss)[0]
    assert (as_published.weight(0.0), as_published.loss) == (10, LogitKL(temperature=5))
    assert boxes(bitdistill(pretrain=None, sub_norm=False, logits=0, relation=0)) == {
        "distil": (["Ternarize"], ["TaskLoss"])
    }


def test_a_weight_may_be_a_curve_and_keeps_the_temperature():
    loss = (
        bitdistill(pretrain=None, sub_norm=False, relation=0, task=0, logits="Linear(1, 0)", temperature=5)
        .stages[0]
        .loss
    )
    assert loss == Linear(1, 0) * LogitKL(temperature=5)


def test_written_down_and_read_back_they_are_the_same():
    for recipe in (multi_stage(set_task=["a", "b"]), single_stage(reduce=[2]), bitdistill(sub_norm=False)):
        again = loads(dump(recipe))
        assert again.stages == recipe.stages
        assert all(isinstance(stage, Stage) for stage in again.stages)


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        (multi_stage, {"general": "1 epochs"}, "general: expected corpus="),
        (multi_stage, {"corpus": "wiki"}, "expected general= beside"),
        (multi_stage, {"learning_rate": [1, 2]}, "learning_rate: expected one, or one for each of 4"),
        (multi_stage, {"set_task": "labels"}, "set_task: expected the labels"),
        (multi_stage, {"until": "2 epochs"}, "until: '2 epochs' does not split into 4"),
        (multi_stage, {"method": "mean"}, "Ternarize: method: expected one of 'twn'"),
        (single_stage, {"bits": 4}, "bits: expected 1 .binary. or 2"),
        (single_stage, {"hidden": 0, "attention": 0, "logits": 0}, "every part of its loss has weight 0"),
        (bitdistill, {"set_task": 3}, "set_task: expected corpus="),
        (bitdistill, {"relation": True}, "relation: expected a weight"),
        (multi_stage, {"width": 0.5, "attention": True}, "attention: expected a weight"),
        (bitdistill, {"pretrain": None, "corpus": "text"}, "corpus: expected pretrain="),
    ],
)
def test_what_does_not_fit_is_refused(make, given, said):
    with pytest.raises(ValueError, match=said):
        make(**given)


def test_splitting_is_the_only_thing_that_happens_to_the_binary_model():
    assert multi_stage()["binary-features"].transforms == (SplitTernary(),)
