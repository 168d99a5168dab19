"""Damaged files and full disks: noticed, said, passed over; and nothing that was saved before is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_stages.core.sealed_folders import (
    find_damage,
    is_disk_error,
)
from tests.support.damage import DAMAGES, damage
from tests.support.sameness import assert_same

KEPT = {"save_total_limit": 2, "save_steps": 2}

# ---- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut(driver, tmp_path_factory):
    """``cut(update)`` is a copy of a run that was killed as that update began; two checkpoints are kept."""
    bases: dict[int, Path] = {}

    def copy(update: int, target: Path) -> Path:
        if update not in bases:
            bases[update] = tmp_path_factory.mktemp("cut") / "out"
            assert driver.run(bases[update], kill=("update", 1, f"step {update}."), **KEPT) == "killed"
        target.mkdir()
        shutil.copytree(bases[update], target / "out")
        for ending in (".updates", ".log"):
            shutil.copy(bases[update].with_suffix(ending), (target / "out").with_suffix(ending))
        return target / "out"

    return copy


CHECKPOINT = [
    "adapter_base.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "seal.json",
    "stage_state.json",
    "trainer_state.json",
    "training_args.bin",
]
STAGE = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "seal.json",
    "stage.json",
    "training_state/optimizer.json",
    "training_state/optimizer.safetensors",
    "training_state/rng_state.pth",
    "training_state/scheduler.json",
    "training_state/trainer_state.json",
]


def quick(names: list[str], chosen: tuple[str, ...]) -> list:
    """Each with a damage of its own; the chosen ones are not slow."""
    return [
        pytest.param(name, how, id=f"{how}-{name}", marks=() if name in chosen else pytest.mark.slow)
        for name, how in zip(names, DAMAGES * len(names), strict=False)
    ]


@pytest.mark.parametrize(
    ("name", "how"), quick(CHECKPOINT, ("adapter_model.safetensors", "rng_state.pth", "seal.json"))
)
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_goes_on(driver, whole_run, cut, tmp_path, name, how):
    out = cut(21, tmp_path / "run")
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-18", "checkpoint-20"]
    damage(out / "checkpoint-20" / name, how)
    assert driver.run(out, resume=True, **KEPT) == "done"
    said = out.with_suffix(".log").read_text()
    assert f"{out}/checkpoint-20 is passed over: " in said
    assert "looking for the one before" in said
    assert "checkpoint-18 is passed over" not in said
    assert_same(out, whole_run(**KEPT))
    trained = [line for line in out.with_suffix(".updates").read_text().splitlines() if '"step": 18,' in line]
    assert len(trained) == 2, "went on from checkpoint-18"


@pytest.mark.parametrize(("name", "how"), quick(STAGE, ("model.safetensors", "stage.json")))
def test_a_damaged_stage_folder_is_passed_over_and_trained_again(driver, whole_run, cut, tmp_path, name, how):
    out = cut(24, tmp_path / "run")
    damage(out / "03-lora" / name, how)
    assert driver.run(out, resume=True, **KEPT) == "done"
    if (name, how) != ("stage.json", "remove"):  # without it there is no stage folder to speak of
        assert f"{out}/03-lora is passed over: " in out.with_suffix(".log").read_text()
    assert_same(out, whole_run(**KEPT))


@pytest.mark.slow
def test_a_damaged_first_stage_is_trained_again(driver, whole_run, cut, tmp_path):
    out = cut(24, tmp_path / "run")
    damage(out / "01-head" / "model.safetensors", "flip")
    assert driver.run(out, resume=True, **KEPT) == "done"
    assert "its stage will be trained again" in out.with_suffix(".log").read_text()
    assert_same(out, whole_run(**KEPT))


def test_a_checkpoint_whose_best_model_is_damaged_is_passed_over(driver, whole_run, tmp_path):
    """The newest checkpoint is whole, but the model that the stage would end with is not."""
    out = tmp_path / "out"
    assert driver.run(out, kill=("best", 1), save_total_limit=1) == "killed"
    best, newest = sorted(out.glob("checkpoint-*"))
    damage(best / "model.safetensors", "flip")
    assert driver.run(out, resume=True, save_total_limit=1) == "done"
    said = out.with_suffix(".log").read_text()
    assert (
        f"{newest} is passed over: the best model so far is in {best.name}, but model.safetensors was changed" in said
    )
    assert_same(out, whole_run())


def test_a_moved_run_goes_on_where_it_lies(driver, whole_run, tmp_path):
    """The best checkpoint is found beside the newest one, not where the run once was."""
    out, moved = tmp_path / "out", tmp_path / "moved"
    assert driver.run(out, kill=("best", 1)) == "killed"
    for ending in ("", ".updates"):
        os.rename(f"{out}{ending}", f"{moved}{ending}")
    assert driver.run(moved, resume=True) == "done"
    assert_same(moved, whole_run())


# ---- full disks ------------------------------------------------------------------------------------------------------

FULL = {
    "weights-of-a-checkpoint": (("save_file:full", 1, "checkpoint-9"), "{out}/checkpoint-9"),
    "optimizer-of-a-checkpoint": (("torch_save:full", 2, "optimizer.pt"), "{out}/checkpoint-6"),
    "seal-of-a-checkpoint": (("replace:full", 2, "seal.json"), "{out}/checkpoint-6"),
    "weights-of-a-stage": (("save_file:full", 1, ".02-more.tmp"), "the stage folder 02-more"),
    "generators-of-a-stage": (("torch_save:full", 1, ".03-lora.tmp"), "the stage folder 03-lora"),
    "rename-of-a-stage": (("replace:full", 1, "/03-lora"), "the stage folder 03-lora"),
    "manifest": (("replace:full", 4, "run.json"), "{out}/run.json"),
}


SHORT = ("optimizer-of-a-checkpoint", "weights-of-a-stage", "manifest")


@pytest.mark.parametrize(
    "point", [pytest.param(v, id=k, marks=() if k in SHORT else pytest.mark.slow) for k, v in FULL.items()]
)
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_space(driver, whole_run, tmp_path, point):
    point, what = point
    out = tmp_path / "out"
    error = driver.run(out, kill=point)
    assert "could not be written" in error, error
    said = error.strip().splitlines()[-1]
    assert said.startswith(f"OSError: {what.format(out=out)} could not be written ("), error
    assert "is whole. Free space on" in said
    assert f"{out}" in said
    assert said.endswith("and resume with resume_from_checkpoint=True")
    for folder in [*out.glob("checkpoint-*"), *out.glob("[0-9]*")]:
        assert find_damage(folder) is None
    assert not list(out.glob(".*.tmp"))
    assert driver.run(out, resume=True) == "done"
    assert_same(out, whole_run())


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"needs root on Linux to mount a tmpfs of 3 MB: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize(
    "ballast", [1800, pytest.param(2100, marks=pytest.mark.slow), pytest.param(2600, marks=pytest.mark.slow)]
)
def test_a_disk_that_is_really_full_loses_nothing_either(driver, whole_run, small_disk, ballast):
    filled = small_disk / "ballast"
    filled.write_bytes(b"\0" * (ballast << 10))
    out = small_disk / "out"
    error = driver.run(out)
    assert error not in ("done", "killed")
    assert "could not be written" in error, error
    assert "resume_from_checkpoint=True" in error
    assert all(find_damage(folder) is None for folder in [*out.glob("checkpoint-*"), *out.glob("[0-9]*")])
    filled.unlink()
    assert driver.run(out, resume=True) == "done"
    assert_same(out, whole_run())


def test_torch_and_safetensors_errors_count_as_the_disks(small_disk):
    """On a real full disk: never /dev/full, which safetensors, renaming a file of its own over it, replaces."""
    (small_disk / "ballast").write_bytes(b"\0" * (2900 << 10))
    big = {"a": torch.zeros(1 << 18)}
    for write in (torch.save, save_file):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            write(big, small_disk / "file")
        assert is_disk_error(caught.value), repr(caught.value)
    assert not is_disk_error(ValueError("loss: not finite"))
    assert not is_disk_error(ConnectionError("the Hub is away"))
