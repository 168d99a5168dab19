"""What a benchmark of a packed model found, as its table and its card read it."""

FOUND = {
    "folder": "out/packed",
    "model": "BertModel",
    "disk_bytes": 15 * 2**20,
    "machine": {
        "processor": "A processor",
        "cores": 4,
        "threads": 2,
        "load": 0.3,
        "wait_policy": None,
        "kernel": "avx2",
        "torch": "2.13.0",
    },
    "shapes": {"1x16": {"rows": 1, "tokens": 16}, "32x128": {"rows": 32, "tokens": 128}},
    "decoded": 16,
    "rows": [
        {
            "name": "packed",
            "weight_bytes": 16 * 2**20,
            "times": {
                "1x16": {"best": 0.02, "median": 0.025, "turns": 7, "speedup": 3.5},
                "32x128": {"best": 2.0, "median": 4.0, "turns": 3, "speedup": 1.75},
                "decode": {"best": 0.01, "median": 0.0125, "turns": 7, "speedup": 5.0},
            },
        },
        {"name": "bf16", "weight_bytes": 2**20, "times": {"1x16": {"failed": "E: no"}, "32x128": {"failed": "E: no"}}},
        {"name": "int8", "absent": "not here"},
        {"name": "4-bit", "absent": "not here"},
    ],
}
