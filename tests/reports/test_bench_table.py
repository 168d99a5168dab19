from __future__ import annotations

import copy

from hf_stages.reports.tables.bench_table import bench_table
from tests.reports.bench_result import FOUND


def test_the_table():
    assert bench_table(FOUND) == "\n".join(
        [
            "out/packed: BertModel, 15.0 MiB of weights on disk",
            "A processor, 2 threads of 4 cores; packed layers run avx2; torch 2.13.0",
            "",
            "         weights           1x16, ms     32x128, tokens/s  decode, tokens/s",
            "--------------------------------------------------------------------------",
            "packed  16.0 MiB  20.0 (25.0) 3.50x  2,048 (1,024) 1.75x  100 (80.0) 5.00x",
            "bf16    1.00 MiB                  -                    -                 -",
            "int8           -                  -                    -                 -",
            "4-bit          -                  -                    -                 -",
            "",
            "Best of 3-7 turns (median), and how many times faster than fp32, which is the dequantized model.",
            "bf16: 1x16: E: no",
            "bf16: 32x128: E: no",
            "int8; 4-bit: not here",
        ]
    )


def test_a_busy_machine_and_an_encoder():
    found = copy.deepcopy(FOUND)
    found["decoded"] = None
    found["machine"] |= {"load": 3.9, "threads": 1, "wait_policy": "PASSIVE"}
    shown = bench_table(found)
    assert "The machine had other work (load 3.9 on 4 cores): times are too long." in shown
    assert "1 thread of 4 cores, OMP_WAIT_POLICY=PASSIVE" in shown
    assert "decode" not in shown
