"""Do the foundation papers learn the mixture, each by its own words, and what is each one's own?"""

import numpy as np

from minidiff.data.toy2d import gmm8
from minidiff.evaluate.plane import DATA, POINTS, STD, Found, measure, null_energy, timeline
from minidiff.foundations import FOUNDATIONS
from minidiff.foundations.flow_matching import euler
from minidiff.foundations.plane import ask, standard
from minidiff.foundations.rectified_flow import straightness
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged

N = 3  # seeds of each training


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Score error, density, points: each paper trained with n seeds, beside the exact mixture."""
    seeds = range(seed, seed + n)
    rows = []
    null = max(null_energy(seeds))
    for f in timeline():
        rows += of_paper([measure(f, seed=s) for s in seeds], null)
    return rows + straight([*seeds])


def of_paper(found: list[Found], null: float) -> list[Row]:
    """The claims on one paper, means over its seeds."""
    name = found[0].name
    rows = []
    if found[0].told is not None:
        claim = f"{name}: share of the exact score's mean square that its score tells"
        rows.append(averaged(claim, [f.told for f in found], 0.95, 0.0))
    rows.append(
        averaged(
            f"{name}: points drawn in 100 steps within 3 deviations of a mode",
            [1 - f.outliers for f in found],
            0.85,
        )
    )
    energies = np.array([f.energy for f in found])
    rows.append(
        averaged(
            f"{name}: minus the energy distance of 4,000 points, in thousandths (null "
            f"{1000 * null:.1f})",
            -1000 * energies,
            -3.0,
        )
    )
    if found[0].nats_short is not None:
        short = np.array([f.nats_short for f in found])
        rows.append(averaged(f"{name}: minus the nats its density falls short", -short, -0.3))
    return rows


def straight(seeds: list[int]) -> list[Row]:
    """What reflow and pairing are for: straight paths, and one step that suffices."""
    bent, ratio, cheap = [], [], []
    for s in seeds:
        points = gmm8(std=STD).sample(DATA, s)
        flows = {}
        for name in ("flow-matching", "rectified-flow", "minibatch-ot"):
            net, _ = FOUNDATIONS[name].teach(points, seed=s)
            flows[name] = net
        before, after, paired = (straightness(net, POINTS // 2, s) for net in flows.values())
        bent.append(before / after)
        cheap.append(before / paired)
        z = standard(POINTS // 2, s)
        apart = [one_step_error(net, z) for net in flows.values()]
        ratio.append(apart[0] / apart[1])
    return [
        averaged("rectified-flow: straightness improves by one round, times", bent, 5.0),
        averaged("minibatch-ot: paths straighter than of independent pairs, times", cheap, 5.0),
        averaged("rectified-flow: error of one step falls, times", ratio, 5.0),
    ]


def one_step_error(net, z) -> float:
    """Mean square distance between where one step of Euler's method ends and where 100 do."""
    one, many = (euler(lambda x, u: ask(net, x, u), z, steps) for steps in (1, 100))
    return (one - many).square().sum(1).mean().item()
