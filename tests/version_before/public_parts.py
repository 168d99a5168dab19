"""Parts as the version before wrote them and took their fingerprints."""

from __future__ import annotations

from typing import Any

from hf_stages import CachedTeacher
from hf_stages.core.curves import WSD, Cosine, Join, Linear, Step
from hf_stages.data import (
    Augment,
    ByDifficulty,
    ByLength,
    BySource,
    Collator,
    CompletionOnly,
    DynamicMLM,
    Lengths,
    Mixture,
    ModelLoss,
    Ordered,
    Packed,
    Preferences,
    Replay,
    Source,
    ToolCallsOnly,
)
from hf_stages.evaluation.metrics.metrics import Metrics
from hf_stages.gates import Above, Below, Budget, Expect, Forgetting, Plateau
from hf_stages.losses import (
    DPO,
    AttentionKL,
    AttentionMSE,
    AttentionRelation,
    Balanced,
    EmbeddingCosine,
    HiddenMSE,
    LogitKL,
    LogitMSE,
    TaskLoss,
)
from hf_stages.packing.formats import Gguf, Onnx
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.transforms import (
    AddLora,
    Binarize,
    Freeze,
    InsertSubLN,
    MergeLora,
    ReduceLayers,
    ReduceWidth,
    ResizeVocab,
    SetTask,
    SplitTernary,
    Ternarize,
    Unfreeze,
)
from tests.version_before.runs import collate, difficulty, right, rows


def parts() -> dict[str, list[Any]]:
    """One of every public part, by the key that it stands under in a recipe: how it is written and its fingerprint may
    not change."""
    return {
        "data_collator": [
            Lengths(8),
            Lengths(Linear(4, 8), longer="split"),
            Packed(16),
            Packed(Linear(8, 16), Lengths(8)),
            CompletionOnly(),
            ToolCallsOnly(),
            DynamicMLM(Linear(0.3, 0.1)),
            Preferences(8),
            BySource({"a": Lengths(8), "b": None}),
            Collator("DataCollatorForLanguageModeling", {"mlm": False}),
            collate,
        ],
        "train_dataset": [
            Mixture({"a": Linear(1, 0), "b": 0.5}),
            Mixture(["a", "b"], temperature=2.0),
            Ordered(["a", "b"]),
            ByLength("a", tokens=32),
            ByDifficulty("a", by=ModelLoss("out/01-a")),
            ByDifficulty("a", by=difficulty),
            Replay("a", 0.1, into="b"),
            Replay("a", Linear(0.1, 0.2), into=ByLength("b")),
            Source("json", data_files="a.jsonl", text="text"),
            Source("a", text="t", augment=Augment(method="embeddings", vectors="v.txt", text="t", cache="c")),
            rows(3),
            rows(100),
        ],
        "loss": [
            TaskLoss(),
            LogitKL(temperature=Linear(2, 1)),
            0.5 * LogitMSE() + HiddenMSE(layers={1: 2}),
            AttentionMSE(),
            AttentionKL(),
            AttentionRelation(),
            EmbeddingCosine(),
            DPO(),
            Balanced(TaskLoss() + Cosine(1, 0) * LogitKL()),
            WSD(decay=0.2) * TaskLoss(),
            Join((Linear(0, 1), Step(((0, 1), (0.5, 10)))), until=(0.3,)) * TaskLoss(),
            {"a": TaskLoss(), "b": 2 * LogitKL()},
        ],
        "gates": [
            Plateau(),
            Below("eval_loss", 1.0),
            Above("eval_f1", 0.5),
            Budget("1 hours"),
            Expect("eval_loss", high=2.0),
            Forgetting("2%", action="replay", source="a"),
        ],
        "schedule": [
            Fresh(warmup=3, shape=Cosine(1, 0)),
            Resume(optimizer="reset"),
            Rewarm(to=1e-3, then=Linear(1, 0)),
        ],
        "transforms": [
            AddLora(4),
            MergeLora(),
            Freeze("a"),
            Unfreeze("a"),
            SetTask("AutoModelForMaskedLM"),
            ResizeVocab(to=40),
            ReduceLayers([1]),
            ReduceWidth(0.5),
            InsertSubLN(),
            Ternarize(strength=Linear(0, 1)),
            Binarize("a"),
            SplitTernary(),
        ],
        "exporters": [Gguf(), Onnx()],
        "compute_metrics": [Metrics(("accuracy", "f1")), Metrics("accuracy", shift=True), right],
        "teacher": [CachedTeacher("cache")],
    }
