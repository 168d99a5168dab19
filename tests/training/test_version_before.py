"""What the version before wrote still loads, resumes and gives equal numbers. Its folders are in tests/version_before.

On the kind of processor that they were made on numbers are compared to the bit, elsewhere closely.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_stages import CachedTeacher, StagedTrainer
from hf_stages.core.fingerprint import fingerprint
from hf_stages.models.stage_models import load_stage
from hf_stages.packing import pack
from hf_stages.recipes import dump, load, loads, part_to_dict, stage_from_dict, to_dict
from hf_stages.training.from_recipe import build_trainer
from tests.version_before import public_parts, runs

pytestmark = pytest.mark.usefixtures("quick_gc")
EXPECTED = json.loads((runs.HERE / "expected.json").read_text())
SAME = EXPECTED["machine"] == runs.machine()
"""Whether numbers are to be equal to the bit here."""
RUNS = ["yaml", "python"]
FINISHED = {"yaml": "01-full", "python": "01-first"}
WRONG = re.compile(r"passed over|trained again|afresh|anew|edited|other content|stale|damaged|changed")
"""What is said where something that is on disk is not taken up."""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def copied(tmp_path):
    """``copied("yaml", "a")``: a fixture's folder in a place of its own; ``fresh=True`` leaves its output out."""

    def copy(name: str, to: str = "copy", *, fresh: bool = False) -> Path:
        if name == "yaml" and not fresh and EXPECTED["foreign"] != runs.foreign(runs.HERE / name):
            pytest.skip(
                "this version of datasets or tokenizers has other fingerprints: to it, the data is not the same"
            )
        left_out = shutil.ignore_patterns(runs.OUT, "augmented") if fresh else None
        return shutil.copytree(runs.HERE / name, tmp_path / to / name, ignore=left_out)

    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made_once(folder: Path) -> set[str]:
    """Augmented rows and orders by difficulty, whose names say what they were made of."""
    found = [*folder.glob("augmented/*/augment.json"), *folder.glob(f"{runs.OUT}/orders/*.npy")]
    return {path.relative_to(folder).as_posix() for path in found}


def expected_weights(kind: str, name: str) -> dict[str, torch.Tensor]:
    places = [
        runs.HERE / f"{kind}-{name}.safetensors",
        runs.HERE / kind / runs.OUT / name / "model.safetensors",
        runs.HERE / "stage" / "model.safetensors",
    ]
    return load_file(next(place for place in places if place.is_file()))


def assert_close(mine: Any, theirs: Any, where: str) -> None:
    """Plain data with numbers that may differ in their last bits, also inside of texts."""
    found, known = dict(runs.leaves(mine)), dict(runs.leaves(theirs))
    assert found.keys() == known.keys(), where
    for path, value in known.items():
        if isinstance(value, float):
            assert found[path] == pytest.approx(value, rel=1e-4, abs=1e-6), f"{where}{path}"
        elif isinstance(value, str):
            assert re.sub(r"[\d.]+", "#", found[path]) == re.sub(r"[\d.]+", "#", value), f"{where}{path}"
        else:
            assert found[path] == value, f"{where}{path}"


def assert_as_expected(kind: str, result: dict[str, Any], out: Path) -> None:
    known = {key: EXPECTED[kind][key] for key in ("weights", "history", "ledger", "metrics")}
    if SAME:
        for key in known:  # one by one: pytest says where they differ
            assert result[key] == known[key]
        return
    for key in ("history", "ledger", "metrics"):
        assert_close(result[key], known[key], key)
    weights = runs.weights_of(out)
    assert weights.keys() == known["weights"].keys()
    for name, tensors in weights.items():
        theirs = expected_weights(kind, name)
        assert tensors.keys() == theirs.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(
                tensor, theirs[key], rtol=1e-4, atol=1e-5, msg=lambda m, n=name, k=key: f"{n} {k}: {m}"
            )


def assert_same_tensors(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    assert [name for name, tensor in theirs.items() if not torch.equal(mine[name], tensor)] == []


def close_logits(model: Any, name: str) -> None:
    torch.testing.assert_close(runs.logits_of(model), torch.tensor(EXPECTED[name]), rtol=1e-4, atol=1e-4)


# ---- runs that were cut ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_was_cut_goes_on(kind, copied, caplog):
    folder = copied(kind)
    out = folder / runs.OUT
    finished, made = contents(out / FINISHED[kind]), made_once(folder)
    checkpoint = next(out.glob("checkpoint-*"))
    saved = load_file(checkpoint / "model.safetensors")
    with runs.inside(folder):
        trainer, watch = runs.trained(kind, resume=True)
    assert [text for text in caplog.messages if WRONG.search(text)] == []
    assert [list(update) for update in watch.updates] == EXPECTED[kind]["updates"][EXPECTED[kind]["cut"] :]
    assert_same_tensors({name: watch.loaded[name] for name in saved}, saved)
    assert contents(out / FINISHED[kind]) == finished
    if kind == "yaml":  # the other's order is by a function, and named after its bytecode: it is Python's version, too
        assert made_once(folder) == made  # found again, not made once more
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert_as_expected(kind, runs.result_of(trainer, out), out)


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_of_today_comes_to_the_same(kind, copied):
    folder = copied(kind, fresh=True)
    with runs.inside(folder):
        trainer, watch = runs.trained(kind)
    assert [list(update) for update in watch.updates] == EXPECTED[kind]["updates"]
    assert_as_expected(kind, runs.result_of(trainer, folder / runs.OUT), folder / runs.OUT)


@pytest.mark.parametrize(("kind", "stop"), [("yaml", ("ternary", 2)), ("python", ("second", 2))])
def test_cut_once_more_and_resumed_is_the_same_to_the_bit(kind, stop, copied):
    """On any machine: both begin with the same files."""
    once, twice = copied(kind, "once"), copied(kind, "twice")
    with runs.inside(once):
        trainer, _ = runs.trained(kind, resume=True)
        whole = runs.result_of(trainer, runs.OUT)
    with runs.inside(twice):
        runs.trained(kind, resume=True, stop=stop)
        trainer, _ = runs.trained(kind, resume=True)
        assert runs.result_of(trainer, runs.OUT) == whole


@pytest.mark.parametrize("name", ["full", "distil"])
def test_an_edit_is_still_seen(name, copied):
    """Else nothing would have been compared above."""
    folder = copied("yaml")
    place = folder / "recipe.yaml"
    edits = {"full": ('"Linear(12, 20)"', '"Linear(12, 24)"'), "distil": ("temperature: 2", "temperature: 3")}
    assert edits[name][0] in place.read_text()
    place.write_text(place.read_text().replace(*edits[name]))
    with (
        runs.inside(folder),
        pytest.raises(ValueError, match=f"stage '{name}' is (finished|begun) and was edited since"),
    ):
        runs.trained("yaml", resume=True)


# ---- recipes and the names in them -----------------------------------------------------------------------------------


def test_recipes_read_and_are_written_as_before():
    text = (runs.HERE / "yaml" / "recipe.yaml").read_text()
    assert dump(loads(text)) == EXPECTED["dump"]
    assert loads(EXPECTED["dump"]) == loads(text)
    assert [stage.name for stage in load(runs.HERE / "yaml" / "recipe.yaml").stages] == ["full", "distil", "ternary"]


@pytest.mark.parametrize("key", sorted(EXPECTED["parts"]))
def test_parts_keep_their_names_and_fingerprints(key):
    parts, known = public_parts.parts()[key], EXPECTED["parts"][key]
    assert [part_to_dict(part, key) for part in parts] == [about["written"] for about in known]
    assert [fingerprint(part) for part in parts] == [about["fingerprint"] for about in known]


@pytest.mark.parametrize("key", sorted(EXPECTED["parts"]))
def test_parts_are_read_from_what_was_written(key):
    several = key in ("gates", "transforms", "exporters")
    for about in EXPECTED["parts"][key]:
        if (isinstance(about["written"], list) and key == "train_dataset") or "in_memory" in json.dumps(
            about["written"]
        ):
            continue  # rows
        stage = {"name": "a", "until": "1 steps", key: [about["written"]] if several else about["written"]}
        written = to_dict(stage_from_dict(stage, trust_remote_code=True))[key]
        assert _with_use(written[0] if several else written) == _with_use(about["written"])


def _with_use(written: Any) -> Any:
    """A source and plain metrics have a shorter form in a stage."""
    if isinstance(written, dict) and written.get("use") == "Source":
        return {name: value for name, value in written.items() if name != "use"}
    return (
        {"use": "Metrics", "names": written} if isinstance(written, list) and written[:1] == ["accuracy"] else written
    )


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_packed_folder_loads():
    close_logits(AutoModelForCausalLM.from_pretrained(runs.HERE / "packed"), "packed")


def test_a_stage_folder_loads_and_packs(copied, tmp_path):
    folder = copied("stage")
    stored = load_file(folder / "model.safetensors")
    model, tokenizer = load_stage(folder)
    assert tokenizer.get_vocab()["cat"] == 6
    assert_same_tensors({name: model.state_dict()[name] for name in stored}, stored)
    close_logits(model, "stage")
    close_logits(AutoModelForCausalLM.from_pretrained(folder), "stage by AutoModel")
    pack(folder, tmp_path / "again")
    again, before = (load_file(place / "model.safetensors") for place in (tmp_path / "again", runs.HERE / "packed"))
    assert again.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-6)


def test_adapters_on_a_changed_base_load(copied):
    folder = copied("lora")
    model, _ = load_stage(folder)
    close_logits(model, "lora")
    trainer = StagedTrainer.from_stage(folder)
    assert any("lora_A" in name for name, _ in trainer.model.named_parameters())
    close_logits(trainer.model, "lora")
    close_logits(AutoModelForCausalLM.from_pretrained(folder), "lora by AutoModel")


def test_a_cache_teaches(copied, caplog):
    folder = copied("cached")
    CachedTeacher(folder / "cache").verify()
    before = contents(folder / "cache")
    trainer = build_trainer(load(folder / "recipe.yaml"), output_dir=str(folder / "out"))
    trainer.train()
    assert [text for text in caplog.messages if WRONG.search(text)] == []
    assert contents(folder / "cache") == before
    assert_as_expected("cached", runs.result_of(trainer, folder / "out"), folder / "out")
