from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hf_stages.commands import doctor
from hf_stages.layers import Activations
from hf_stages.packing.kernels import build, library, linear, which

FUZZ = Path(__file__).with_name("fuzz.c")
SOURCES = sorted(map(str, (Path(build.__file__).parent / "csrc").glob("*.c")))
STRICT = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC", "-O3")] + ["-Wall", "-Wextra", "-Werror"]


@pytest.fixture
def forced(monkeypatch):
    def force(name):
        monkeypatch.setenv(library.VARIABLE, name)
        which.cache_clear()

    yield force
    monkeypatch.undo()
    which.cache_clear()


def build_or_skip(tmp_path: Path, *flags: str) -> Path:
    """The fuzz, built; skips where no program can be built and run so, without a compiler or without its sanitizers."""
    trivial, tried = tmp_path / "trivial.c", tmp_path / "trivial"
    trivial.write_text("int main(void) { return 0; }\n", encoding="ascii")
    command = build.compiler() or ["cc"]
    try:
        subprocess.run([*command, *flags, str(trivial), "-o", str(tried)], check=True, capture_output=True, timeout=100)
        subprocess.run([str(tried)], check=True, capture_output=True, timeout=100)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no C compiler with sanitizers, so the kernels' fuzz was NOT run: {error}")
    target = tmp_path / "fuzz"
    made = subprocess.run(
        [*command, *STRICT, *flags, *SOURCES, str(FUZZ), "-o", str(target), "-lm"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return target


def test_random_calls_pass_the_sanitizers(tmp_path):
    """Every path that this processor can run, and those with VNNI by emulation of their instructions."""
    fuzz = build_or_skip(
        tmp_path, "-O0", "-g0", "-DLB_EMULATED", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    )
    done = subprocess.run([str(fuzz), "60", "11"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = done.stdout.split()
    assert "scalar" in ran
    assert "avx2" not in ran or ran[:4] == ["avx512-vnni", "avx-vnni", "avx2", "scalar"], "by emulation on any AVX2"


def test_each_path_gives_the_same_values(forced):
    weight, scale, x = torch.randint(0, 256, (2, 30, 12), dtype=torch.uint8), torch.rand(2, 30, 1), torch.randn(6, 90)
    found = {}
    for name in library.available():
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


@pytest.mark.parametrize(
    ("name", "activations", "warnings"),
    [("dense", None, 1), ("dense", Activations(), 1), ("int_mm", None, 1), ("int_mm", Activations(), 0)],
)
def test_unpacking_weights_to_floats_warns_once(forced, caplog, name, activations, warnings):
    from hf_stages.packing.kernels import plain

    forced(name)
    plain.warn_once.cache_clear()
    for _ in range(2):
        x, weight, scale = torch.randn(2, 8), torch.zeros(3, 1, dtype=torch.uint8), torch.ones(3, 1)
        linear(x, weight, scale, levels="binary", in_features=8, activations=activations)
    assert len([r for r in caplog.records if "not built" in r.message]) == warnings


@pytest.mark.parametrize(
    ("processor", "path"),
    [("flags : avx2 avx512f avx512_vnni", "int_mm"), ("flags : avx2 avx_vnni", "dense"),
     ("Features : fp asimd asimddp", "dense"), ("", "dense")],
)  # fmt: skip
@pytest.mark.parametrize("built", [True, False])
def test_the_path_without_the_library_depends_on_the_processor(forced, monkeypatch, processor, path, built):
    """On any processor, built and left out, or never built."""
    monkeypatch.setattr(library, "cpu_description", lambda: processor)
    if not built:
        monkeypatch.setattr(library, "library", lambda: None)
    forced("none" if built else "")
    assert which() == path
    assert library.library_path() is None
    forced("int_mm")
    assert which() == "int_mm", "a reference that every processor has"


def test_a_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "surely-no-compiler")
    with pytest.raises(RuntimeError, match="no C compiler"):
        build.compile_library(tmp_path / build.NAME)
    failing = shutil.which("false")
    if failing:
        monkeypatch.setenv("CC", failing)
        with pytest.raises(RuntimeError, match="failed"):
            build.compile_library(tmp_path / build.NAME)
    assert not list(tmp_path.iterdir())


def test_the_doctor_names_the_path():
    found = doctor.examine()["kernels"]
    assert found["runs"] == which()
    assert found["built"] == (library.library() is not None)
    shown = doctor.render(doctor.examine())
    assert f"packed layers: {which()}" in shown
    assert "python -m hf_stages.packing.kernels.build" in doctor._kernel_line({"built": False, "runs": "dense"})
