"""Which of a stage's data comes next, after gates have gone back and asked for the same rows again."""

from __future__ import annotations

from collections.abc import Sequence


def data_position(done: int, returns: Sequence[tuple[int, int]]) -> int:
    """Say how many updates' worth of data lie before the next update.

    After 8 updates the data went back to what followed the third one, and the next two updates read it:

    >>> [data_position(done, [(8, 3)]) for done in (7, 8, 10)]
    [7, 3, 5]

    After 10 updates they go back once more, behind the ninth, whose data were those behind the fourth.

    >>> data_position(10, [(8, 3), (10, 9)])
    4

    Args:
        done: Updates of the stage.
        returns: (after how many updates, back to behind which) of each time that the data went back, oldest first.
    """
    for i in range(len(returns) - 1, -1, -1):
        at, again_from = returns[i]
        if at <= done:
            return data_position(again_from, returns[:i]) + done - at
    return done
