"""What a wheel that holds the kernels' library says of the systems it runs on."""

from __future__ import annotations

import pytest

from hf_stages.packing.kernels.build import wheel_platform


@pytest.mark.parametrize(
    ("platform", "symbols", "expected"),
    [
        ("linux_x86_64", b"GLIBC_2.2.5 GLIBC_2.34 GLIBC_2.14", "manylinux_2_34_x86_64"),
        (
            "linux_x86_64",
            b"GLIBC_2.9 GLIBC_2.2.5",
            "manylinux_2_17_x86_64",
        ),  # numbers, not text; no older than pip's oldest
        ("linux_aarch64", b"GLIBC_2.17", "manylinux_2_17_aarch64"),
        ("linux_x86_64", b"no versions, as under musl", "linux_x86_64"),
        ("macosx_11_0_arm64", b"GLIBC_2.34", "macosx_11_0_arm64"),
    ],
)
def test_the_tag_names_the_glibc_that_is_needed(tmp_path, platform, symbols, expected):
    library = tmp_path / "library"
    library.write_bytes(b"\x7fELF\0" + symbols.replace(b" ", b"\0") + b"\0")
    assert wheel_platform(platform, library) == expected
