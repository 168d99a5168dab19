"""Compute metrics by name. Logits and labels of any usual shape become flat predictions first."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from huggingface_hub import constants

from hf_stages.core.did_you_mean import did_you_mean

OFFLINE = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "matthews_correlation": "MatthewsCorrelation",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
_SKLEARN = ("accuracy", "f1", "matthews_correlation")
_REGRESSION = ("pearson", "spearman", "pearsonr", "spearmanr", "mse", "mae", "r_squared")


@dataclass(frozen=True)
class Metrics:
    """``compute_metrics: [accuracy, f1]`` in a recipe; ``compute_metrics=Metrics(("accuracy", "f1"))`` in Python.

    Classification takes the argmax over the last axis, token by token where there are tokens. Labels of -100 are left
    out. Names that are not built in go to ``evaluate.load``.

    >>> from transformers import EvalPrediction
    >>> logits, labels = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])
    >>> Metrics("accuracy")(EvalPrediction(predictions=logits, label_ids=labels))
    {'accuracy': 0.5}
    """

    names: tuple[str, ...]
    """One name or several: accuracy, f1, matthews_correlation, pearson, spearman, or any of ``evaluate``."""
    shift: bool = False
    """True for a causal language model: position i is compared with the label at i + 1."""

    def __post_init__(self) -> None:
        names = (self.names,) if isinstance(self.names, str) else tuple(self.names)
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"names: expected names of metrics, got {self.names!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"names: a metric stands twice in {list(names)}")
        object.__setattr__(self, "names", names)

    def check(self) -> None:
        """Raise ValueError where a name is no metric, ImportError where a library is missing; called before a run."""
        for name in self.names:
            if name not in OFFLINE:
                _load(name)
                continue
            needed = ("evaluate", "sklearn" if name in _SKLEARN else "scipy")
            if missing := [library for library in needed if importlib.util.find_spec(library) is None]:
                raise _lacking(name, missing[0])

    def load(self) -> dict[str, Any]:
        """Load the ``evaluate`` metrics."""
        return {name: _load(name) for name in self.names}

    def __call__(self, prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        logits = np.asarray(logits[0] if isinstance(logits, tuple | list) else logits)
        labels = np.asarray(labels[0] if isinstance(labels, tuple | list) else labels)
        results: dict[str, float] = {}
        for name, metric in self.load().items():
            predictions, references = _flatten(logits, labels, regression=name in _REGRESSION, shift=self.shift)
            results.update(metric.compute(predictions=predictions, references=references))
        return results


def _flatten(logits: np.ndarray, labels: np.ndarray, *, regression: bool, shift: bool = False) -> tuple[Any, Any]:
    """Return predictions and references, one of each for every item that has a label."""
    if regression:
        if logits.size != labels.size:
            raise ValueError(
                f"metrics: expected one prediction per label, got shapes {logits.shape} and {labels.shape}"
            )
        return logits.reshape(-1), labels.reshape(-1)
    # Already class numbers where preprocess_logits_for_metrics took the argmax.
    done = logits.ndim == labels.ndim and np.issubdtype(logits.dtype, np.integer)
    if not done and (logits.ndim != labels.ndim + 1 or logits.shape[:-1] != labels.shape):
        raise ValueError(
            f"metrics: expected logits with one axis more than the labels, got shapes {logits.shape} and "
            f"{labels.shape}; multi-label targets need a compute_metrics of your own"
        )
    predictions = logits if done else logits.argmax(-1)
    if shift:
        predictions, labels = predictions[..., :-1], labels[..., 1:]
    kept = labels != -100
    if not kept.any():
        raise ValueError("metrics: every label is -100, so there is nothing to judge")
    return predictions[kept], labels[kept].astype(np.int64)


def _load(name: str) -> Any:
    try:
        import evaluate
        from evaluate.utils.file_utils import DownloadConfig

        if name in OFFLINE:
            module = importlib.import_module(f"hf_stages.evaluation.metrics.{name}")
            return getattr(module, OFFLINE[name])(keep_in_memory=True)
    except ImportError as error:
        raise _lacking(name, error.name) from error
    try:
        # evaluate does not know huggingface_hub's offline mode, and tries the network several times.
        local = DownloadConfig(local_files_only=constants.HF_HUB_OFFLINE)
        return evaluate.load(name, keep_in_memory=True, download_config=local)
    except Exception as error:
        raise ValueError(
            f"metric {name!r}: {did_you_mean(name, OFFLINE, there_are='offline there are')} evaluate.load could not "
            f"get it either: that needs the network, or a local path to the metric. {type(error).__name__}: {error}"
        ) from error


def _lacking(name: str, library: str | None) -> ImportError:
    return ImportError(f'the metric {name!r} needs {library}: pip install "hf_stages[metrics]"')
