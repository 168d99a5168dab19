import sys

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_stages.metrics import Metrics

rng = np.random.default_rng(0)
LABELS = rng.integers(0, 2, 50)
LOGITS = rng.normal(size=(50, 2)) + 2 * np.eye(2)[LABELS]


def judge(names, logits, labels, **options):
    return Metrics(names, **options)(EvalPrediction(predictions=logits, label_ids=labels))


def test_binary_against_counts():
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
def test_correlations(shape):
    x, y = rng.normal(size=50), rng.normal(size=50)
    rank = lambda v: v.argsort().argsort().astype(float)  # noqa: E731
    expected = {"pearson": np.corrcoef(x, y)[0, 1], "spearman": np.corrcoef(rank(x), rank(y))[0, 1]}
    assert judge(["pearson", "spearman"], x.reshape(shape), y) == pytest.approx(expected)


def test_correlation_of_a_constant():
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
def test_refuses_shapes(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        judge("accuracy", logits, labels)


def test_regression_needs_one_prediction_per_label():
    with pytest.raises(ValueError, match="expected one prediction per label"):
        judge("pearson", np.zeros((4, 3)), np.zeros(4))


def test_metrics_are_values():
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
        match=r"metric 'rouge': it is none of those that work offline \(accuracy, f1.*network, or a local path",
    ):
        Metrics("rouge").load()


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r'pip install "hf_stages\[metrics\]"'):
        Metrics("accuracy").load()
