"""Jumps: a way down that turns back now and then, for RePaint and for DDNM's time travel.

Andreas Lugmayr et al., 2022, arXiv 2201.09865 (resampling); Yinhuai Wang et al., 2022,
arXiv 2212.00490 (time travel).

What is known about a picture is put into the state from outside, so the rest does not match it.
Going up again, by noise, and down once more lets both be denoised together. A way is a list of
times, and `moves` makes its pairs (t, s):

    10 9 8 7 6 | 8 7 6 | 8 7 6 5 4 | 6 5 4 ...

    s < t: a step of the sampler;    s > t: `renoise` from t up to s

Going up several times in one move is the same as going up one by one: noises add up. Every step
down is one evaluation of the network, every jump none.
"""

from itertools import pairwise


def jumps(
    ts: list[int], length: int = 10, repeats: int = 1, window: tuple[float, float] = (0.0, 1.0)
) -> list[int]:
    """The times of a way down the grid `ts` (from noise to clean) that jumps back up.

    length   steps of a jump; jumps start one step above the end of the grid and every `length`
             steps from there
    repeats  how often each stretch is walked: 1 never turns back
    window   the share of the grid, 0 its clean end and 1 its noisy one, in which a jump may start

    ValueError: a length or repeats below 1, a window that is none.
    """
    if length < 1 or repeats < 1 or not 0 <= window[0] <= window[1] <= 1:
        raise ValueError(
            f"length={length}, repeats={repeats}, window={window}: expected two numbers of 1 or "
            "more, and two shares 0 <= from <= to <= 1"
        )
    n = len(ts) - 1
    left = {
        k + 1: repeats - 1
        for k in range(0, n - length, length)
        if window[0] * n <= k + 1 <= window[1] * n
    }
    level = n  # level: steps left to the end
    way = [ts[0]]
    while level > 0:
        level -= 1
        way.append(ts[n - level])
        if left.get(level, 0) > 0:
            left[level] -= 1
            level += length
            way.append(ts[n - level])
    return way


def evaluations(way: list[int]) -> int:
    """Steps down of a way: how often the network is asked."""
    return sum(s <= t for t, s in pairwise(way))
