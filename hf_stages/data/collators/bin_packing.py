"""Decides which examples of a micro-batch share a row."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence


def assign_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the numbers of the examples in each row: as few rows as best fit finds, and as even as possible.

    Best fit takes the longest example first and puts each into the row that it fills best (never more than 11/9 of the
    fewest rows, Johnson 1973). A batch is as wide as its widest row. So the examples are then also given to that many
    rows one by one, the longest to the emptiest row, and the narrower result wins. Only the lengths decide.

    >>> assign_rows([5, 4, 3, 3, 2], 9)
    [[0, 3], [1, 2, 4]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    fits = _best_fit(lengths, order, capacity)
    even = _spread_evenly(lengths, order, len(fits))
    rows = min(even, fits, key=lambda rows: max((sum(lengths[i] for i in row) for row in rows), default=0))
    return sorted(sorted(row) for row in rows)


def _best_fit(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    """(tokens that still fit, row), sorted."""
    for i in order:
        at = bisect_left(room, (lengths[i], -1))
        if at == len(room):
            rows.append([])
            left, row = capacity, len(rows) - 1
        else:
            left, row = room.pop(at)
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows


def _spread_evenly(lengths: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(count)]
    load = [(0, row) for row in range(count)]
    for i in order:
        width, row = heapq.heappop(load)
        rows[row].append(i)
        heapq.heappush(load, (width + lengths[i], row))
    return rows
