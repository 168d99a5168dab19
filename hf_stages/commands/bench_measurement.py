"""How large a model's folder is and how fast it runs here, beside the same function in full precision and others' ways.

All ways take turns, forwards and backwards, so that whatever else the machine does hits them alike; a speed-up is of
the best times, and of the median of the turns' ratios beside it.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_stages.commands.bench_ways import WAYS, describe_failure, load, make_models, resident_bytes
from hf_stages.core.sealed_folders import SEAL, read_json, write_json
from hf_stages.packing import kernels
from hf_stages.reports.cards.bench_card import card_with

logger = logging.getLogger(__name__)

BENCH_FILE = "bench.json"
SHAPES = ("1x16", "1x128", "32x128")
DECODE = "decode"
_PROMPT = 16
_SHORTEST_TURN = 0.02
"""The least seconds of a turn: a model that is faster is called several times."""

Pair = tuple[float, float]
"""Seconds by the clock, and of processor time over all threads."""


@dataclass(frozen=True)
class Shape:
    """Rows and tokens of a batch; images have no length."""

    rows: int
    tokens: int | None

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}" if self.tokens else f"{self.rows} image{'s' * (self.rows > 1)}"


def parse_shape(text: str) -> Shape:
    """Read a shape.

    >>> parse_shape("32x128")
    Shape(rows=32, tokens=128)
    """
    rows, _, tokens = text.partition("x")
    if not (rows.isdecimal() and tokens.isdecimal() and int(rows) and int(tokens)):
        raise ValueError(f"rows: expected rows x tokens, such as 1x128, got {text!r}")
    return Shape(int(rows), int(tokens))


def bench(
    folder: str | Path,
    *,
    shapes: Sequence[str] = SHAPES,
    ways: Sequence[str] | None = None,
    tokens: int = 16,
    repeats: int = 7,
    seconds: float = 20.0,
    threads: int | None = None,
    save: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure the model of a folder; ``hf_stages.reports.tables.bench_table`` shows what this returns.

    ``ways``: of ``WAYS``, all by default. ``tokens``: decoded by a causal model after a prompt of 16. A way gets
    ``repeats`` turns in each shape, and no further one once its turns took ``seconds``. ``save`` writes ``bench.json``
    into the folder, and the table into its model card (``README.md``).
    """
    folder, asked = Path(folder), [parse_shape(text) for text in shapes]
    for way in ways or ():
        if way not in WAYS:
            raise ValueError(f"ways: expected some of {', '.join(WAYS)}, got {way!r}")
    for name, number in (("repeats", repeats), ("tokens", tokens), ("threads", 1 if threads is None else threads)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}")
    model = load(folder, trust_remote_code=trust_remote_code)
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        found = {
            "schema": 1,
            "folder": str(folder),
            "model": type(model).__name__,
            "disk_bytes": sum(file.stat().st_size for file in _weight_files(folder)),
            "machine": machine(),
            **measure(model, asked, ways or tuple(WAYS), tokens=tokens, repeats=repeats, seconds=seconds),
        }
    finally:
        torch.set_num_threads(before)
    if save:
        write_json(folder / BENCH_FILE, found)
        write_card(folder, found)
    return found


def write_card(folder: Path, found: dict[str, Any]) -> None:
    """Write the table into the folder's model card, unless that was sealed with the folder."""
    path = folder / "README.md"
    if (folder / SEAL).exists() and path.name in read_json(folder / SEAL, "a seal")["files"]:
        logger.warning("%s is sealed, so the table stands in %s alone", path, BENCH_FILE)
        return
    card = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(card_with(found, card), encoding="utf-8")


def measure(
    model: Any, shapes: Sequence[Shape], ways: Sequence[str], *, tokens: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """Measure memory and time of each way (``rows``) in each shape (``shapes``)."""
    shapes = _shapes(model, shapes)
    models, absent = make_models(model, ways)
    taken: dict[str, dict[str, list[Pair] | str]] = {}
    with torch.no_grad(), _quiet("bitsandbytes"):
        for shape in shapes:
            cells = {way: forward(made, shape) for way, made in models.items()}
            taken[str(shape)] = time_in_turns(cells, repeats, seconds)
        if _decodes(model):
            taken[DECODE] = time_in_turns({way: decode(made, tokens) for way, made in models.items()}, repeats, seconds)
    rows = []
    for way in [way for way in ways if way in models or way in absent]:
        row: dict[str, Any] = {"way": way, "name": WAYS[way].name}
        if way in absent:
            row["absent"] = absent[way]
        else:
            row["weight_bytes"] = resident_bytes(models[way])
            row["times"] = {name: summary(cells[way], cells.get("fp32")) for name, cells in taken.items()}
        rows.append(row)
    sizes = {str(shape): {"rows": shape.rows, "tokens": shape.tokens} for shape in shapes}
    return {"shapes": sizes, "decoded": tokens if _decodes(model) else None, "rows": rows}


def machine() -> dict[str, Any]:
    """Describe the machine, without which a time says nothing."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "kernel": kernels.which(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# ---- time -----------------------------------------------------------------------------------------------------------


def time_in_turns(
    cells: Mapping[str, Callable[[int], Pair]], repeats: int, seconds: float
) -> dict[str, list[Pair] | str]:
    """Return seconds of a call by way and turn; for a way that fails, the reason."""
    taken: dict[str, list[Pair] | str] = {}
    calls: dict[str, int] = {}
    for way, cell in cells.items():
        try:
            first = cell(1)[0]
            took = cell(1)[0] if first < 1 else first  # the first call also sets things up
            calls[way] = max(1, min(200, int(_SHORTEST_TURN / max(took, 1e-6))))
            taken[way] = []
        except Exception as error:
            taken[way] = describe_failure(error)
    for turn in range(repeats):
        for way in list(calls)[:: -1 if turn % 2 else 1]:
            own = taken[way]
            assert isinstance(own, list)
            if not own or calls[way] * sum(wall for wall, _ in own) < seconds:
                own.append(cells[way](calls[way]))
    return taken


def forward(model: Any, shape: Shape) -> Callable[[int], Pair]:
    def cell(calls: int) -> Pair:
        inputs = _inputs(model, shape)
        began = now()
        for _ in range(calls):
            model(**inputs)
        return since(began, calls)

    return cell


def decode(model: Any, tokens: int) -> Callable[[int], Pair]:
    """Time greedy decoding, token by token with a cache; the prompt is not timed."""

    def cell(calls: int) -> Pair:
        inputs = _inputs(model, Shape(1, _PROMPT), _PROMPT + tokens)
        wall = processor = 0.0
        for _ in range(calls):
            out = model(**inputs, use_cache=True)
            began = now()
            for _ in range(tokens):
                ids = out.logits[:, -1:].argmax(-1)
                out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
            took = since(began, tokens)
            wall, processor = wall + took[0], processor + took[1]
        return wall / calls, processor / calls

    return cell


def _inputs(model: Any, shape: Shape, length: int | None = None) -> dict[str, Any]:
    generator, config = torch.Generator().manual_seed(0), model.config
    if shape.tokens is None:
        size = config.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        pixels = torch.randn(shape.rows, config.num_channels, *sides, generator=generator)
        return {"pixel_values": pixels.to(model.dtype)}
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and longest > 0 and (length or shape.tokens) > longest:
        raise ValueError(f"longer than the model's {longest} positions")
    ids = torch.randint(text.vocab_size, (shape.rows, shape.tokens), generator=generator)
    inputs: dict[str, Any] = {"input_ids": ids}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    elif _decodes(model):
        inputs["logits_to_keep"] = 1  # as generation asks: the others are not needed
    return inputs


def _shapes(model: Any, shapes: Sequence[Shape]) -> list[Shape]:
    name = model.main_input_name
    if name not in ("input_ids", "pixel_values"):
        raise ValueError(f"{type(model).__name__}: expected a model of tokens or images, got one that takes {name}")
    return list(dict.fromkeys(shapes if name == "input_ids" else [Shape(shape.rows, None) for shape in shapes]))


def _decodes(model: Any) -> bool:
    return bool(model.can_generate()) and not model.config.is_encoder_decoder and model.main_input_name == "input_ids"


def summary(own: list[Pair] | str, plain: list[Pair] | str | None) -> dict[str, Any]:
    if isinstance(own, str):
        return {"failed": own}
    walls = [wall for wall, _ in own]
    found: dict[str, Any] = {"best": min(walls), "median": statistics.median(walls), "turns": len(walls)}
    found["processor"] = min(processor for _, processor in own)
    if isinstance(plain, list):
        base = [wall for wall, _ in plain]
        found["speedup_processor"] = min(p for _, p in plain) / max(found["processor"], 1e-9)
        found["speedup"] = min(base) / min(walls)
        found["speedup_median"] = statistics.median(b / w for b, w in zip(base, walls, strict=False))
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in found.items()}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger: bitsandbytes warns with every call of an 8-bit layer that it rounds to 16 bits first."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def now() -> Pair:
    return time.perf_counter(), time.process_time()


def since(began: Pair, calls: int) -> Pair:
    wall, processor = now()
    return (wall - began[0]) / calls, (processor - began[1]) / calls


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return [file for file in found if file.is_file()]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
