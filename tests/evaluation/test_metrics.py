import sys

import numpy as np
import pytest
from transformers import EvalPrediction, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.evaluation.metrics import Metrics
from tests.support import tiny

rng = np.random.default_rng(0)
LABELS = rng.integers(0, 2, 50)
LOGITS = rng.normal(size=(50, 2)) + 2 * np.eye(2)[LABELS]


def judge(names, logits, labels, **options):
    return Metrics(names, **options)(EvalPrediction(predictions=logits, label_ids=labels))


def test_binary_metrics_equal_those_by_counting():
    p = LOGITS.argmax(-1)
    tp, tn = (p * LABELS).sum(), ((1 - p) * (1 - LABELS)).sum()
    fp, fn = (p * (1 - LABELS)).sum(), ((1 - p) * LABELS).sum()
    matthews = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    expected = {"accuracy": (p == LABELS).mean(), "f1": 2 * tp / (2 * tp + fp + fn), "matthews_correlation": matthews}
    assert judge(list(expected), LOGITS, LABELS) == pytest.approx(expected)


def test_f1_of_many_classes_is_the_mean_over_classes():
    labels, predictions = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2])
    per_class = [
        2 * ((predictions == c) & (labels == c)).sum() / ((predictions == c).sum() + (labels == c).sum())
        for c in range(3)
    ]
    assert judge("f1", np.eye(3)[predictions], labels) == pytest.approx({"f1": np.mean(per_class)})


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_correlations_equal_those_of_numpy(shape):
    x, y = rng.normal(size=50), rng.normal(size=50)
    rank = lambda v: v.argsort().argsort().astype(float)  # noqa: E731
    expected = {"pearson": np.corrcoef(x, y)[0, 1], "spearman": np.corrcoef(rank(x), rank(y))[0, 1]}
    assert judge(["pearson", "spearman"], x.reshape(shape), y) == pytest.approx(expected)


def test_the_correlation_of_a_constant_is_zero():
    assert judge(["pearson", "spearman"], np.ones(3), np.arange(3.0)) == {"pearson": 0.0, "spearman": 0.0}


def test_tokens_without_a_label_are_left_out():
    labels = np.array([[0, 1, -100], [2, -100, -100]])
    logits = np.eye(3)[[[0, 2, 1], [2, 0, 0]]]
    assert judge("accuracy", logits, labels) == pytest.approx({"accuracy": 2 / 3})
    assert judge("accuracy", (logits, "hidden states"), labels) == pytest.approx({"accuracy": 2 / 3})
    assert judge("accuracy", logits.argmax(-1), labels) == pytest.approx({"accuracy": 2 / 3})


def test_causal_models_are_shifted():
    tokens = np.array([[1, 2, 0, 2]])
    logits = np.eye(3)[[[2, 0, 1, 0]]]  # says the next token: right, right, wrong, not judged
    assert judge("accuracy", logits, tokens, shift=True) == pytest.approx({"accuracy": 2 / 3})


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 3)), r"shapes \(4, 3\) and \(4, 3\); multi-label"),
        (np.zeros((4, 3)), np.full(4, -100), "every label is -100"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        judge("accuracy", logits, labels)


def test_regression_needs_one_prediction_per_label():
    with pytest.raises(ValueError, match="expected one prediction per label"):
        judge("pearson", np.zeros((4, 3)), np.zeros(4))


def test_metrics_with_the_same_names_are_equal():
    assert Metrics(["accuracy"]) == Metrics(["accuracy"]) == Metrics("accuracy")
    with pytest.raises(ValueError, match="stands twice"):
        Metrics(("f1", "f1"))
    with pytest.raises(ValueError, match="expected names of metrics"):
        Metrics(())


def test_other_metrics_need_the_network(monkeypatch):
    import evaluate

    def offline(name, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(evaluate, "load", offline)
    with pytest.raises(
        ValueError,
        match=r"metric 'rouge': offline there are accuracy, f1.*network, or a local path",
    ):
        Metrics("rouge").load()


@pytest.mark.parametrize("offline", [True, False])
def test_offline_mode_of_the_hub_is_kept(monkeypatch, offline):
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("evaluate.utils.file_utils.http_head", lambda url, **_: asked.append(url) or _no_network())
    with pytest.raises(ValueError, match="metric 'acuracy': did you mean 'accuracy'"):
        Metrics("acuracy").load()
    assert any("s3.amazonaws" not in url for url in asked) is not offline  # evaluate counts loads elsewhere, once


def _no_network():
    raise ConnectionError("no network")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r'pip install "hf_stages\[metrics\]"'):
        Metrics("accuracy").load()


@pytest.mark.parametrize("places", [("recipe",), ("stage",)])
def test_a_plan_finds_a_metric_that_does_not_exist(monkeypatch, tmp_path, places):
    import evaluate

    def unknown(name, **kwargs):
        raise FileNotFoundError(f"there is no {name}")

    monkeypatch.setattr(evaluate, "load", unknown)
    own, of_stage = (None, Metrics("acc")) if places == ("stage",) else (Metrics("acc"), None)
    trainer = StagedTrainer(
        tiny.bert(),
        TrainingArguments(tmp_path, use_cpu=True, report_to="none"),
        stages=[Stage("a", "1 steps", compute_metrics=of_stage)],
        train_dataset=tiny.class_data(4),
        compute_metrics=own,
    )
    where = "stage 'a': compute_metrics" if of_stage else "compute_metrics"
    with pytest.raises(ValueError, match=f"^{where}: metric 'acc': did you mean 'accuracy'"):
        trainer.train()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "library"), [("accuracy", "evaluate"), ("f1", "sklearn"), ("pearson", "scipy")])
def test_a_plan_finds_a_missing_library(monkeypatch, name, library):
    Metrics(name).check()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"the metric '{name}' needs {library}"):
        Metrics(name).check()
