"""The page that ``hf-stages recipe --reference`` prints: every key of a recipe, read from the code that takes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from hf_stages.core.duration import MULTIPLES, SCALES, UNITS
from hf_stages.core.registry import list_parts
from hf_stages.core.source_docs import DocumentedArgument, DocumentedClass
from hf_stages.core.source_sketch import module_doc
from hf_stages.planning.args_by_stage import KINDS, ONE_RUN, REASONS
from hf_stages.reports.markdown import table

_INTRO = """# Every key of a recipe

This page is made from the code that reads recipes: `hf-stages recipe --reference` prints it for the version that is
installed.

A recipe is YAML: the keys of the run, and a list of stages. A part (a loss, a gate, a transform, ...) is its class
name, or `{use: ClassName, argument: value}`. Types and defaults stand here as in Python: `None`, `True` and `False` are
`null`, `true` and `false` in a file, and `(1, 2)` is `[1, 2]`. A dash means that the key must be given. Errors name the
line, and what was expected.

```yaml
model: {path: distilbert-base-uncased, auto_class: AutoModelForSequenceClassification}
tokenizer: distilbert-base-uncased
args: {output_dir: out, learning_rate: 5e-5}
sources:
  reviews: {path: csv, data_files: reviews.csv, text: review, label: stars}
train_dataset: reviews
stages:
  - {name: warm, until: 200 steps}
  - name: main
    until: 2 epochs
    loss: [TaskLoss, {use: HiddenMSE, weight: "Linear(1, 0)"}]
    schedule: Resume
    gates: [{use: Plateau, patience: 3}]
```"""
_BASES = ("Curriculum", "BaseCollator")


def recipe_reference() -> str:
    """Return the page, as Markdown."""
    sections = [
        _INTRO,
        _section("The run", "The keys at the top of the file.", _class("hf_stages.core.stage", "Recipe")),
        _section("A stage", "The keys of each entry of `stages`.", _class("hf_stages.core.stage", "Stage")),
        _section("Durations", _durations()),
        _section("Curves", _CURVES, *_parts("curves", lambda part: "Curve" in part.bases)),
        _section("args", _args()),
        _section("model", _MODEL, _class("hf_stages.models.model_source", "ModelSource")),
        _section("teacher", _TEACHER, *_parts("teachers")),
        _section("sources", _SOURCES, _class("hf_stages.data.source", "Source")),
        _section("Curricula", *_parts("data", lambda part: "Curriculum" in part.bases)),
        _section("Collators", _COLLATORS, *_parts("data", lambda part: "BaseCollator" in part.bases)),
        _section("Other parts of data", *_parts("data", _is_other)),
        _section("Losses", _LOSSES, *_parts("losses")),
        _section("Transforms", *_parts("transforms")),
        _section("Schedules", *_parts("schedules")),
        _section("Gates", *_parts("gates")),
        _section("Actions of detectors", _ACTIONS, *_parts("actions")),
        _section("notify", _NOTIFY, *_parts("notifiers")),
        *([_section("Monitors", *_parts("monitors"))] if list_parts("monitors") else []),
        _section("Metrics", _METRICS, _metrics()),
        _section("Exporters", *_parts("exporters")),
        _section("Ready recipes", _READY, _ready()),
    ]
    return "\n\n".join(sections) + "\n"


_CURVES = """Wherever a number may change over a stage, a curve is taken: as text, `"Linear(1, 0)"`, or as a part,
`{use: Linear, start: 1, end: 0}`. It runs over the stage's progress, from 0 to 1."""
_MODEL = "A folder or a name on the Hub, or these keys: `path` or `config`, exactly one of the two."
_TEACHER = """A folder or a name on the Hub; the keys of [model](#model); `base`, a LoRA student's own base with its
adapter off; `stage:NAME`, what an earlier stage made; or one of these parts."""
_SOURCES = """`{name: {path: ..., ...}}`: datasets by name, which `train_dataset`, `eval_dataset` and curricula refer
to. [Data from files](data.md) has examples. An entry may be a curriculum as well: `{use: Mixture, ...}`."""
_COLLATORS = """`data_collator` takes these, and every collator of transformers by its name:
`{use: DataCollatorForLanguageModeling, mlm: false}`."""
_LOSSES = """A list is a sum. `weight`, a number or a curve, is taken by each of them: `{use: LogitKL, weight: 0.5}`. A
mapping gives each source a loss of its own: `{language: TaskLoss, code: {use: TaskLoss, weight: 0.5}}`."""
_ACTIONS = """A detector (a gate that finds what is wrong with a run) does these one after the other:
`{use: OnSpike, then: [CutRate, {use: Rollback, steps: 200}]}`."""
_NOTIFY = """What a run's gates decide (alerts, skipped updates, cut rates, rollbacks, ends) is handed to these as it
happens, by the main process: `notify: {use: Webhook, url_from: TEAM_WEBHOOK}`, or a list. In Python a function serves
as well. A message that is not delivered never stops a run."""
_METRICS = """`compute_metrics: [accuracy, f1]`. These are computed offline, with the extra `metrics`; other names go to
`evaluate.load`, which needs the network. `{use: Metrics, names: [accuracy], shift: true}` sets what stands below."""
_READY = "`stages: {use: three_stage, until: 9 epochs}`. `hf-stages recipe NAME` prints the stages, to be edited."


def _section(title: str, *texts: str) -> str:
    return "\n\n".join([f"## {title}", *texts])


def _parts(folder: str, wanted: Callable[[DocumentedClass], bool] = lambda part: True) -> list[str]:
    found = [DocumentedClass(module, name) for module, name in list_parts(folder)]
    return [f"### {part.name}\n\n{_class(part.module, part.name)}" for part in found if wanted(part)]


def _is_other(part: DocumentedClass) -> bool:
    elsewhere = part.name in ("Source", "Collator")  # the latter is how a recipe holds a collator of transformers
    return not elsewhere and not set(part.bases) & set(_BASES)


def _class(module: str, name: str) -> str:
    part = DocumentedClass(module, name)
    return "\n\n".join(filter(None, [_prose(part.doc), _arguments(part.arguments)]))


def _arguments(arguments: Iterable[DocumentedArgument]) -> str:
    rows = [
        (f"`{a.name}`", f"`{a.hint}`", "-" if a.default is None else f"`{a.default}`", _prose(a.doc)) for a in arguments
    ]
    return "\n".join(table(["key", "type", "default", "what it is"], rows)) if rows else ""


def _prose(text: str) -> str:
    """Turn a docstring into Markdown: code stands between two backticks there, and between one here."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _durations() -> str:
    rows = [(f"`{unit}`", _code(spelled)) for unit, spelled in UNITS.items()]
    scales = ", ".join(f"`{letter}` ({scale:,})" for letter, scale in SCALES.items() if letter)
    return "\n\n".join(
        [
            "A number and a unit: `200 steps`, `3 epochs`, `1.5B tokens`, `90 minutes`, `6 %`. `until` takes steps, "
            "epochs or tokens; a limit in time is a gate, [Budget](#budget); `warmup` of a schedule takes steps or "
            "percent.",
            "\n".join(table(["unit", "spelled"], rows)),
            f"Time is also given in {_code(MULTIPLES)}. A number may end in {scales}.",
        ]
    )


def _args() -> str:
    allowed = [(kind, _code(names)) for kind, names in KINDS.items()]
    refused = [(f"`{name}`", reason) for name, reason in REASONS.items()]
    return "\n\n".join(
        [
            "At the top, any field of transformers' `TrainingArguments`; `output_dir` is needed, here or as "
            "`--output-dir`. In a stage, those that may differ from stage to stage:",
            "\n".join(table(["for", "fields"], allowed)),
            "These are refused in a stage:",
            "\n".join(table(["field", "because"], refused)),
            f"So is every other field: {ONE_RUN}.",
        ]
    )


def _metrics() -> str:
    found = [(module, name) for module, name in list_parts("metrics") if name != "Metrics"]
    rows = [(f"`{module.rsplit('.', 1)[1]}`", _prose(DocumentedClass(module, name).doc)) for module, name in found]
    return (
        "\n".join(table(["name", "what it is"], rows))
        + "\n\n"
        + _class("hf_stages.evaluation.metrics.metrics", "Metrics")
    )


def _ready() -> str:
    rows = [(f"`{name}`", _prose(module_doc(module).split("\n")[0])) for module, name in list_parts("recipes")]
    return "\n".join(table(["name", "what it is"], rows))
