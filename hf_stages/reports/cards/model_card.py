"""Writes a short model card from folders: the initial model, the stages, metrics, and how to load the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_stages.core.depth_metrics import split_depth
from hf_stages.core.lineage import lineage
from hf_stages.core.sealed_folders import STAGE_FILE, read_json
from hf_stages.reports.cards.how_to_load import has_adapter, how_to_load, needs_rebuilding
from hf_stages.reports.decisions import decisions
from hf_stages.reports.markdown import table
from hf_stages.reports.tables.depth_table import depth_rows
from hf_stages.reports.text import bits, count, rate, size

_HEADS = (
    *("stage", "transforms", "until", "steps", "tokens"),
    *("loss", "teacher", "learning rate", "schedule", "ended by"),
)
_QUIET = ("runtime", "per_second", "_items")
_DECISIONS, _MOST_ROWS = ("alert", "skip", "cut_lr", "rollback", "replay", "end", "stop"), 20
"""What a card tells of the ledger: decisions of gates, the first twenty of them."""
_HUB = re.compile(r"[\w.-]*[A-Za-z][\w.-]*(/[\w.-]+)?")


def stage_card(folder: Path, shown: str) -> str:
    """Write the card of a stage folder, which also tells of the stages before it. ``shown`` is the folder's path."""
    stages = summaries_up_to(folder)
    return _card(shown, folder, stages, how_to_load(folder, shown, stages[-1]), {})


def run_card(out: Path, stage: str | None, given: Mapping[str, Any]) -> str:
    """Write the card of a run's folder.

    Its model is that of ``stage`` (a folder in it; None where no stage is done).
    """
    name = out.resolve().name
    if stage is None:
        return _card(name, out, [], how_to_load(out, name), given)
    stages, folder = summaries_up_to(out / stage), out / stage
    saved = (out / "config.json").is_file() and not needs_rebuilding(folder, stages[-1])
    load = how_to_load(out, name) if saved else how_to_load(folder, f"{name}/{stage}", stages[-1])
    return _card(name, out, stages, load, given)


def packed_card(folder: Path, shown: str, source: Path | None, weights: Mapping[str, Any]) -> str:
    """Write the card of packed weights; ``source`` is the stage folder that they were made from, if there is one."""
    known = source is not None and (source / STAGE_FILE).is_file()
    stages = summaries_up_to(source) if source is not None and known else []
    title = f"{source.resolve().name}, packed" if source is not None else shown
    says = f"Its weights are packed: {size(weights['bytes'])}, {bits(weights['bits_per_weight'])} bits a weight."
    return _card(title, folder, stages, how_to_load(folder, shown), {}, says)


def summaries_up_to(folder: Path) -> list[dict[str, Any]]:
    """Read ``stage.json`` of the stages below that lie beside the folder, from the first, and its own last."""

    def parent_of(folder: Path) -> Path | None:
        parents = _summary(folder).get("parents") or []
        before = folder.parent / parents[0]["folder"] if parents else None
        return before if before is not None and (before / STAGE_FILE).is_file() else None

    return [_summary(one) for one in lineage(folder, parent_of)]


def _summary(folder: Path) -> dict[str, Any]:
    return read_json(folder / STAGE_FILE, "a stage folder")


def _card(
    title: str,
    folder: Path,
    stages: Sequence[Mapping[str, Any]],
    load: Sequence[str],
    given: Mapping[str, Any],
    says: str = "",
) -> str:
    begun = (stages[0].get("began_with") if stages else None) or {}
    base = given.get("finetuned_from") or (begun.get("name") if begun.get("on_hub") else None)
    lines = [f"# {given.get('model_name') or title}", "", _introduction(stages, base or begun.get("name"), says)]
    if names := [*_as_list(given.get("dataset")), *_as_list(given.get("dataset_args"))]:
        lines += ["", f"Data: {', '.join(names)}."]
    lines += ["", "## How to load it", "", "```python", *load, "```"]
    if stages:
        lines += ["", "## Stages", "", *table(_HEADS, map(_row, stages))]
        lines += _decisions(stages)
        lines += _metrics(stages[-1], " before packing" if says else "")
        lines += ["", "## Versions", "", ", ".join(f"{k} {v}" for k, v in stages[-1]["versions"].items())]
    return "\n".join([_metadata(folder, base, given), *lines, ""])


def _metadata(folder: Path, base: str | None, given: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    adapter = has_adapter(folder) and not (folder / "config.json").is_file()
    tasks = _as_list(given.get("tasks"))
    data = ModelCardData(
        base_model=base,
        datasets=_as_list(given.get("dataset_tags")) or None,
        language=given.get("language"),
        library_name="peft" if adapter else "transformers",
        license=given.get("license"),
        pipeline_tag=tasks[0] if len(tasks) == 1 else None,
        tags=list(dict.fromkeys(["hf_stages", *_as_list(given.get("tags")), *(tasks if len(tasks) > 1 else [])])),
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _introduction(stages: Sequence[Mapping[str, Any]], base: str | None, says: str) -> str:
    if not stages:
        return says or "Trained with hf_stages; no stage of the run is finished."
    first = stages[0]
    words = f"{len(stages)} stage{'s' * (len(stages) > 1)}"
    after = "".join(f" after {parent['name']}" for parent in first.get("parents") or [])
    made = [_part_call(part) for part in first["base"].get("transforms") or []]
    start = f"from {base or 'a ' + first['base']['class'].rpartition(':')[2] + ' without a name'}"
    before = f", which {', '.join(made)} had made" if made else ""
    return f"Trained with hf_stages in {words}{after}, {start}{before}." + (f" {says}" if says else "")


def _row(stage: Mapping[str, Any]) -> list[str]:
    declared, peak = stage["declared"], stage.get("lr_peak")
    rates = f"{rate(peak)} -> {rate(stage['lr_end'])}" if peak is not None else f"-> {rate(stage['lr_end'])}"
    schedule = declared.get("schedule")
    taught = stage.get("taught_by")
    return [
        stage["name"],
        ", ".join(map(_part_call, declared.get("transforms") or [])) or "-",
        str(declared["until"]),
        f"{stage['steps']:,}",
        count(stage["tokens"] or None),
        _loss(declared.get("loss")),
        "-" if taught is None else _teacher_name(taught),
        rates,
        _part_call(schedule) if schedule is not None else _trainer_schedule(declared["args"]),
        str(stage["ended_by"] or "-"),
    ]


def _metrics(stage: Mapping[str, Any], when: str) -> list[str]:
    """Write the metrics of the folder's weights, as measured when the stage ended."""
    found = {
        name: value
        for name, value in stage["metrics"].items()
        if name.startswith("eval_") and isinstance(value, int | float) and not name.endswith(_QUIET)
    }
    rows = [[name, f"{value:.4g}"] for name, value in sorted(found.items()) if split_depth(name) is None]
    lines = ["", f"## Metrics{when}", "", *table(("metric", "value"), rows)] if rows else []
    if by_depth := depth_rows(found):
        lines += ["", "By depth (cycles of the recurrent part):", "", *table(by_depth[0], by_depth[1:])]
    return lines


def _decisions(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write what gates decided while the model was trained: which updates were skipped, when it went back."""
    names = {stage["name"] for stage in stages}
    own = [entry for entry in stages[-1].get("ledger") or () if entry.get("stage") in names]
    rows = [[f"{step:,}", stage, words] for step, stage, words in decisions(own, _DECISIONS)]
    more = [["", "", f"and {len(rows) - _MOST_ROWS} more"]] if len(rows) > _MOST_ROWS else []
    return ["", "## Decisions", "", *table(("step", "stage", "what"), rows[:_MOST_ROWS] + more)] if rows else []


def _trainer_schedule(args: Mapping[str, Any]) -> str:
    warmup = args.get("warmup_steps") or 0
    return f"{args['lr_scheduler_type']}, warmup {warmup:g}" if warmup else str(args["lr_scheduler_type"])


def _loss(value: Any) -> str:
    if value is None:
        return "TaskLoss"
    if isinstance(value, list):
        return " + ".join(map(_loss, value))
    if isinstance(value, Mapping) and "use" not in value:
        return ", ".join(f"{source}: {_loss(loss)}" for source, loss in value.items())
    if isinstance(value, Mapping) and "weight" in value:
        rest = {key: item for key, item in value.items() if key != "weight"}
        return f"{value['weight']} * {_part_call(rest)}"
    return _part_call(value)


def _part_call(value: Any) -> str:
    """Write a part as its call; paths in it are shortened to their last name."""
    if isinstance(value, Mapping) and "use" in value:
        arguments = [f"{key}={_part_call(item)}" for key, item in value.items() if key != "use"]
        return f"{value['use']}({', '.join(arguments)})" if arguments else str(value["use"])
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_part_call(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_part_call, value)) + "]"
    return _short_name(value) if isinstance(value, str) else str(value)


def began_with(declared: Any, config: Any) -> dict[str, Any] | None:
    """Return the initial model's name, from the recipe or its config.

    The run records it, because paths exist only there.
    """
    path = declared.get("path") if isinstance(declared, Mapping) else declared
    name = path or getattr(config, "_name_or_path", None)
    return None if not name else {"name": _short_name(str(name)), "on_hub": _on_hub(str(name))}


def _teacher_name(value: Any) -> str:
    """Return a teacher's declared name, without paths of one machine."""
    if isinstance(value, Mapping) and "in_memory" in value:
        return "a model in memory"
    if isinstance(value, Mapping) and "use" in value:
        held = [_teacher_name(item) for key, item in value.items() if key in ("model", "folder", "path")]
        return f"{value['use']} {held[0]}" if held else str(value["use"])
    if isinstance(value, Mapping):
        return _short_name(str(value.get("path", "a model of a config")))
    return _short_name(str(value))


def _short_name(text: str) -> str:
    """Keep a name on the Hub; shorten a path to its last part."""
    return text if not {"/", "\\"} & set(text) or _on_hub(text) else re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _on_hub(name: str) -> bool:
    return _HUB.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
