"""RF-Solver and FireFlow upwards: the noise of a picture, by steps of second order.

Taming Rectified Flow for Inversion and Editing, Jiangshan Wang, Junfu Pu, Zhongang Qi, Jiayi Guo,
Yue Ma, Nisha Huang, Yuxin Chen, Xiu Li, Ying Shan, 2024, arXiv 2411.04746 (RF-Solver).
FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing, Yingying Deng, Xiangyu He,
Changwang Mei, Peisong Wang, Fan Tang, 2024, arXiv 2412.07517.

DDIM inversion takes a step with the noise of its wrong end, and is off by a first-order error in
each. A solver of higher order makes smaller errors in both directions, so what goes up by it and
comes down by it arrives nearer to where it began. The steps are those of samplers/midpoint.py; a
step does not ask which way it leads.

    up:    states of `midpoint_walk` or `fireflow_walk` along rising times
    down:  the sampler of that name

Try: 10 and 25 steps beside `ddim.invert` at as many evaluations; a replay with guidance 5.

Weakness: nearer is not exact (`edict` is), and with guidance on the way the velocities change too
fast for second order in few steps. The clean end is shown to the network as index 1, the least
noise that it knows. The papers edit with it by carrying attention's values from the way up into the
way down; that is the business of an editing method, and stands in none here.
"""

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.schedule import Schedule
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe
from minidiff.samplers.midpoint import fireflow_walk, midpoint_walk

WALKS = {"midpoint": midpoint_walk, "fireflow": fireflow_walk}


@torch.no_grad()
def rf_walk(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    ts: list[int],
    cond: Cond | None = None,
    *,
    rule: str = "fireflow",
    progress: bool = False,
) -> list[Tensor]:
    """All states (b ..) along the times ts, which rise or fall: element i is at ts[i].

    rule "midpoint": 2 evaluations a step; "fireflow": 1, and one more. ValueError: another rule.
    """
    if rule not in WALKS:
        raise ValueError(f"rule={rule!r} is unknown; choose one of {', '.join(WALKS)}")
    return [x, *WALKS[rule](denoise, sch, x, ts, cond, progress)]


@door
@torch.no_grad()
def invert(
    pipe: Pipe,
    image: Tensor,
    prompt: str = "",
    *,
    rule: str = "fireflow",
    steps: int = 25,
    progress: bool = False,
) -> list[Tensor]:
    """The latents of a picture (b 3 H W) on its way to noise: [clean, ..., noise], steps + 1 states
    (b c h w), with no guidance on the way.

    prompt  what describes the picture; "" is the unconditional model
    rule    "midpoint" or "fireflow"
    """
    rising = pipe.timesteps(steps)[::-1]
    z = pipe.encode(image)
    cond = pipe.embed(prompt)
    return rf_walk(pipe.eps, pipe.schedule, z, rising, cond, rule=rule, progress=progress)


@torch.no_grad()
def replay(
    pipe: Pipe,
    x_T: Tensor,
    prompt: str = "",
    *,
    rule: str = "fireflow",
    steps: int = 25,
    scale: float = 1.0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W) from inverted noise: with the same prompt the round trip, with another one
    an edit.
    """
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(prompt)
    falling = pipe.timesteps(steps)
    states = rf_walk(denoise, pipe.schedule, x_T, falling, cond, rule=rule, progress=progress)
    return pipe.decode(states[-1])
