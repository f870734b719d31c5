"""Pivotal tuning for diffusion: change the network a little, so that a guided replay comes back.

After Daniel Roich, Ron Mokady, Amit H. Bermano, Daniel Cohen-Or, "Pivotal Tuning for Latent-based
Editing of Real Images", 2021, arXiv 2106.05744, which tunes a GAN around the latent of one picture.
This is its analogue for samplers, our own.

A picture that was inverted without guidance returns without guidance; with guidance it does not.
Null-text inversion learns other null embeddings, one per step. Here the noise, the words and the
empty prompt stay as they are, and the network learns to come back. It is told the right answer at
every step, so no gradient runs from step to step:

    z*       the inversion's states, t -> s one move of it
    eps*  =  (z*_s - A z*_t) / B,    A = alpha_s / alpha_t,  B = sigma_s - A sigma_t
             the noise that leads on to z*_s
    loss  =  |guided eps_theta(z*_t, source) - eps*|^2             the pivot
             + locality |eps_theta(x_t, c') - eps_0(x_t, c')|^2    everything near it
    c'    =  c + reach (c_random - c) / |c_random - c|             a fixed way off the words

Then Prompt-to-Prompt from the same noise, with the tuned network.

Try: `updates=0`, the guided replay as it is; `locality=0`, and ask the tuned network for something
else; a higher `scale`.

Weakness: hundreds of updates for every picture, and what was tuned to return one picture returns it
to every prompt. Here targets are closed-form, moves are taught in batches, and the second term
holds the network where it was elsewhere. Tuned at one guidance scale, it is right at that scale
only.
"""

import torch
from torch import Tensor
from tqdm import tqdm

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import q_sample
from minidiff.core.schedule import Schedule
from minidiff.pipe.pipe import Pipe
from minidiff.train.finetune import picture_batch

BANK = 24  # points around the pivot


def leading(sch: Schedule, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The eps whose DDIM move from time t to time s (b,) takes x_t to x_s, exactly (b c h w)."""
    (a_t, sig_t), (a_s, sig_s) = sch.at(t, x_t), sch.at(s, x_s)
    a = a_s / a_t
    return (x_s - a * x_t) / (sig_s - a * sig_t)


def random_words(pipe: Pipe, n: int, g: torch.Generator) -> Tensor:
    """States (n tokens d) of n prompts of eight random tokens."""
    tok = pipe.tokenizer
    ids = tok([""] * n)
    drawn = torch.randint(len(tok), (n, 8), generator=g)
    frame = (drawn == tok.bos) | (drawn == tok.eos) | (drawn == tok.pad)
    ids[:, 1:9], ids[:, 9] = torch.where(frame, drawn.new_tensor(tok.ids("a")[0]), drawn), tok.eos
    return pipe.text(ids.to(pipe.device))


def near(text: Tensor, other: Tensor, reach: float) -> Tensor:
    """Text states (1 n d) moved by the distance `reach` towards others (b n d)."""
    way = other - text
    return text + reach * way / way.flatten(1).norm(dim=1).clamp_min(1e-6).view(-1, 1, 1)


def pivot_loss(
    pipe: Pipe, denoise, states: list[Tensor], ts: Tensor, rows: Tensor, cond: Cond
) -> Tensor:
    """How far the guided prediction is from the one that leads
    along the states; `rows`: which moves, 0 the noisiest.
    """
    x = torch.cat(states[::-1])  # from noise to clean
    t = ts[rows]
    s = ts[rows + 1]
    goal = leading(pipe.schedule, x[rows], x[rows + 1], t, s)
    return (denoise(x[rows], t, cond.expand(len(rows))) - goal).pow(2).mean()


class Near:
    """Points around the pivot and what the untuned network
    says there: asked once, so no second network is kept.
    """

    def __init__(
        self, pipe: Pipe, z: Tensor, cond: Cond, reach: float, noise: Tensor, g: torch.Generator
    ):
        rows = picture_batch(pipe, z, noise, g)
        self.x = q_sample(pipe.schedule, rows["x0"], rows["t"], noise)
        self.t = rows["t"]
        self.text = near(cond.text, random_words(pipe, len(noise), g), reach)
        self.eps = pipe.eps(self.x, self.t, Cond(text=self.text))

    def loss(self, pipe: Pipe, k: Tensor) -> Tensor:
        """How far the network now is from what it said at the points k."""
        return (pipe.eps(self.x[k], self.t[k], Cond(text=self.text[k])) - self.eps[k]).pow(2).mean()


def tune(
    pipe: Pipe,
    weights: list[Tensor],
    states: list[Tensor],
    source: str,
    *,
    updates: int = 25,
    lr: float = 1e-3,
    locality: float = 0.1,
    reach: float = 30.0,
    scale: float | None = None,
    batch: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> list[tuple[float, float]]:
    """Teach `weights` to return along `states` (one picture's,
    clean first); (pivot, locality) loss of each update.

    The options are those of `pivotal_tuning`; an update sees `batch` moves, spread over all of
    them.
    """
    scale = pipe.scale if scale is None else scale
    steps = len(states) - 1
    g = torch.Generator().manual_seed(seed)
    losses = []
    ts = torch.tensor(pipe.timesteps(steps), device=pipe.device)
    cond = pipe.embed(source)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    with torch.no_grad():
        others = Near(
            pipe, states[0], cond, reach, noise((BANK, *states[0].shape[1:]), seed).to(states[0]), g
        )
    optimizer = torch.optim.Adam(weights, lr=lr)
    for _ in tqdm(range(updates), disable=not progress, leave=False):
        rows = ((torch.arange(batch) + torch.rand(batch, generator=g)) * steps / batch).long()
        pivot = pivot_loss(pipe, denoise, states, ts, rows, cond)
        kept = (
            others.loss(pipe, torch.randperm(BANK, generator=g)[:batch])
            if locality
            else torch.zeros(())
        )
        optimizer.zero_grad()
        (pivot + locality * kept).backward()
        optimizer.step()
        losses.append((pivot.item(), kept.item()))
    return losses
