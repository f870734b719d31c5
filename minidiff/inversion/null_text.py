"""Null-text inversion: learn what guidance compares with, so that its replay returns the picture.

Ron Mokady, Amir Hertz, Kfir Aberman, Yael Pritch, Daniel Cohen-Or, 2022, arXiv 2211.09794.

A picture that was inverted without guidance comes back without guidance. With guidance the replay
goes elsewhere. Guidance compares the prompt with the empty prompt, and nothing says that the empty
prompt must stay empty. So model and prompt stay, and one embedding per step is learned in its
place: the one whose guided move lands on the next state of the inversion.

    null_t = argmin | D(z_t; eps_null + scale (eps_cond - eps_null)) - z*_s |^2
    z_s    = that move with null_t

D is the DDIM move from t to s, z* the inversion. The search starts at the null of the step before.

Then edit as usual (prompt-to-prompt), with the learned nulls in both rows.

Try: `inner=0` (no learning: plain guided replay), 3, 10; scale 7.5; one null for two different
edits: it is learned without the target prompt.

Weakness: hundreds of forward and backward passes for every picture. Here a picture stops learning
as soon as a step is good enough (the published tolerance), starts from the null of the step before,
and keeps the best null, not the last, so that no step ends worse than it began. And what is looked
for is known in closed form (editing/real_pictures.py), exactly and for nothing.
"""

import torch
from torch import Tensor

from minidiff.core.cfg import guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.inversion.ddim import Inverted
from minidiff.pipe.checks import needs_text
from minidiff.pipe.pipe import Pipe
from minidiff.train.finetune import in_float32


def learn_null(
    pipe: Pipe,
    x: Tensor,
    goal: Tensor,
    t: int,
    s: int,
    cond: Cond,
    text: Tensor,
    *,
    scale: float,
    inner: int,
    lr: float,
    enough: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: (null tokens (b n d), the states (b c h w)
    they lead to, squared errors (inner + 1 or fewer, b)).

    Rows do not see each other: a row closer than `enough` keeps its tokens while the others go on.
    Errors are those of the best tokens so far.
    """
    with torch.no_grad():
        e_cond = pipe.eps(x, t, cond)
    text = text.clone().requires_grad_()
    best = text.detach().clone()
    land = x
    error = torch.full((len(x),), torch.inf, device=x.device)
    errors = []
    optimizer = torch.optim.Adam([text], lr=lr)
    for k in range(inner + 1):
        with torch.set_grad_enabled(k < inner):  # the last one is only measured
            e_null = pipe.eps(x, t, Cond(text=text))
            y = ddim_step(pipe.schedule, x, guide(e_null, e_cond, scale), t, s)
            loss = (y - goal).pow(2).mean((1, 2, 3))  # b
            total = loss.sum()
        better = (loss.detach() < error) & (error >= enough)
        best[better], error = text.detach()[better], torch.where(better, loss.detach(), error)
        land = torch.where(better.view(-1, 1, 1, 1), y.detach(), land)
        errors.append(error)
        if k == inner or (error < enough).all():
            break
        (text.grad,) = torch.autograd.grad(total, text)  # of the tokens alone
        optimizer.step()
    return best, land, torch.stack(errors)


@torch.no_grad()
def learn_nulls(
    pipe: Pipe,
    states: list[Tensor],
    source: str,
    *,
    scale: float | None = None,
    inner: int = 10,
    lr: float = 0.01,
    tolerance: float = 1e-5,
    progress: bool = False,
) -> Inverted:
    """Inverted pictures (`states`: clean to noise) with one
    learned null per step, for guided replays at `scale`.

    inner      updates of a step at most; lr: of its optimiser, falling to half
    tolerance  mean squared error at which a step is good enough; grows by twice that every step, as
               published
    """
    if inner < 0 or lr <= 0 or tolerance < 0:
        raise ValueError(
            f"inner={inner}, lr={lr}, tolerance={tolerance}: expected inner >= 0, lr > 0, "
            "tolerance >= 0"
        )
    needs_text(pipe, "null-text inversion")
    scale = pipe.scale if scale is None else scale
    b = len(states[0])
    steps = len(states) - 1
    learned = []
    with in_float32(pipe):
        exact = [x.to(pipe.dtype) for x in states]
        cond = pipe.embed(source).expand(b)
        x = exact[-1]
        text = pipe.null(b).text
        for i, (t, s) in enumerate(step_pairs(pipe.timesteps(steps), progress)):
            text, x, _ = learn_null(
                pipe,
                x,
                exact[-2 - i],
                t,
                s,
                cond,
                text,
                scale=scale,
                inner=inner if scale != 1 else 0,
                lr=lr * (1 - i / (2 * steps)),
                enough=tolerance * (1 + 2 * i),
            )
            learned.append(text)
    nulls = [Cond(text=text.to(pipe.dtype)) for text in learned]
    return Inverted(states, nulls)
