"""Has every solver the order that its paper claims? On the exact mixture and on one Gaussian, in
float64, where all error is the solver's.
"""

from minidiff.evaluate.solvers import MIXTURES, Curve, curve, deterministic
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row
from minidiff.samplers import SAMPLERS

N = 1  # it draws no pictures
SLACK = 0.25  # of an order that is read off between 96 and 192 steps


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Measured orders beside those of the papers, on the grid that each solver is made for."""
    rows = []
    for name in deterministic():
        sampler = SAMPLERS[name]
        for data in MIXTURES:
            rows.append(order_row(curve(name, data, sampler.even_in), sampler.order))
    return rows


def order_row(found: Curve, paper: float) -> Row:
    return Row(
        f"{found.sampler} on {found.data}, steps even in {found.even_in}: order ({paper:g})",
        found.order,
        paper - SLACK,
        source="paper",
    )
