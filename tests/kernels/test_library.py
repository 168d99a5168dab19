from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hf_stages import doctor
from hf_stages.kernels import _library, build, linear, which
from hf_stages.layers import Activations

FUZZ = Path(__file__).with_name("fuzz.c")
SOURCES = sorted(map(str, (Path(build.__file__).parent / "csrc").glob("*.c")))
STRICT = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC", "-O3")] + ["-Wall", "-Wextra", "-Werror"]


@pytest.fixture
def forced(monkeypatch):
    def force(name):
        monkeypatch.setenv(_library.VARIABLE, name)
        which.cache_clear()

    yield force
    monkeypatch.undo()
    which.cache_clear()


def compiled(tmp_path: Path, *flags: str) -> Path:
    command = build.compiler()
    if not command:
        pytest.skip("there is no C compiler: the kernels' fuzz was NOT run")
    target = tmp_path / "fuzz"
    made = subprocess.run(
        [*command, *STRICT, *flags, *SOURCES, str(FUZZ), "-o", str(target), "-lm"], capture_output=True, text=True
    )
    if made.returncode and "sanitize" in made.stderr and "cannot find" in made.stderr:
        pytest.skip("the compiler has no sanitizers: the kernels' fuzz was NOT run")
    assert made.returncode == 0, made.stderr
    return target


def test_fuzz_under_sanitizers(tmp_path):
    """Every path that this processor can run, and those with VNNI by emulation of their instructions."""
    fuzz = compiled(
        tmp_path, "-O0", "-g0", "-DLB_EMULATED", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    )
    done = subprocess.run([str(fuzz), "60", "11"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert platform.machine() != "x86_64" or "avx512-vnni avx-vnni avx2 scalar" in done.stdout


def test_each_path_gives_the_same(forced):
    weight, scale, x = torch.randint(0, 256, (2, 30, 12), dtype=torch.uint8), torch.rand(2, 30, 1), torch.randn(6, 90)
    found = {}
    for name in _library.available():
        forced(name)
        assert which() == name
        found[name] = linear(x, weight, scale, levels="split", in_features=90, activations=Activations())
    first = next(iter(found.values()))
    for name, y in found.items():
        torch.testing.assert_close(y, first, rtol=1e-5, atol=1e-5, msg=name)


def test_an_unknown_path_is_refused(forced):
    forced("mmx")
    with pytest.raises(ValueError, match=r"HF_STAGES_KERNEL: expected .*dense or none on this machine, got 'mmx'"):
        which()


def test_without_the_library_one_warning(forced, caplog):
    from hf_stages.kernels import _plain

    forced("none")
    _plain._warn.cache_clear()
    for _ in range(2):
        linear(torch.randn(2, 8), torch.zeros(3, 1, dtype=torch.uint8), torch.ones(3, 1), levels="binary", in_features=8,
               activations=None)  # fmt: skip
    assert len([r for r in caplog.records if "not built" in r.message]) == (1 if which() == "dense" else 2)


def test_building_into_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "surely-no-compiler")
    with pytest.raises(RuntimeError, match="no C compiler"):
        build.compile_library(tmp_path / build.NAME)
    failing = shutil.which("false")
    if failing:
        monkeypatch.setenv("CC", failing)
        with pytest.raises(RuntimeError, match="failed"):
            build.compile_library(tmp_path / build.NAME)
    assert not list(tmp_path.iterdir())


def test_the_doctor_says_which():
    found = doctor.examine()["kernels"]
    assert found["runs"] == which()
    assert found["built"] == (_library.library() is not None)
    shown = doctor.render(doctor.examine())
    assert f"packed layers: {which()}" in shown
    assert "python -m hf_stages.kernels.build" in doctor._kernel_line({"built": False, "runs": "dense"})
