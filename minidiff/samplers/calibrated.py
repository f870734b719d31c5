"""Calibration: a perfect network's noise is 0 on average, and a trained one's can be made so.

On Calibrating Diffusion Probabilistic Models, Tianyu Pang, Cheng Lu, Chao Du, Min Lin,
Shuicheng Yan, Zhijie Deng, 2023, arXiv 2302.10688.

The score of a density is 0 on average over that density: probability has nowhere to go. So the
noise that a perfect network predicts at any time averages to 0 over the states of that time. What
a trained network has in place of 0 is pure error, one picture a time, and may be subtracted:

    m_t  = E eps(x_t, t)                                  over pictures and noises, once a time
    eps' = eps(x_t, t) - m_t
    E |eps' - e|^2 = E |eps - e|^2 - |m_t|^2              the loss falls by just this much

For a model with conditions the same holds class by class. The paper proves more: alpha_t times the
score is a martingale of the process back in time, that is, its value at x_t is the mean of what it
will be at any later step.

Try: a biased network on a mixture; 100 pictures in place of 10,000; `paired=True`.

Weakness: the mean is measured, and its error is as real as the network's: about 1 / n for each
number of a picture. So with few pictures it does harm (`Calibration.noise` says how much). It
belongs to these times, this data, these classes. Under guidance calibrate what goes in, not what
comes out. And a mean is only the coarsest of errors: networks that trained for long have little.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noise
from minidiff.core.process import q_sample
from minidiff.core.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured.

    classes  k: whose means they are, one row each; None: one row for all
    mean     {time: k ..}, the mean noise
    noise    {time: k}, the part of |mean|^2 that chance alone would give
    """

    classes: Tensor | None
    mean: dict[int, Tensor]
    noise: dict[int, Tensor]

    def rows(self, labels: Tensor | None) -> Tensor | int:
        """The row of the means for each of the labels (b,)."""
        if self.classes is None:
            return 0
        if labels is None:
            raise ValueError("the calibration is by class, and the condition has no label")
        same = labels.cpu()[:, None] == self.classes  # b k
        if not same.any(1).all():
            unknown = sorted(set(labels[~same.any(1).to(labels.device)].tolist()))
            raise ValueError(
                f"classes {unknown} were not measured; known are {self.classes.tolist()}"
            )
        return same.int().argmax(1)


def measured_means(eps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the noises eps (n ..) with the labels (n,): the mean of every class (k ..), by rising
    label, and the part of its square, summed over a picture, that chance alone would give (k,).
    """
    means = []
    by_chance = []
    for c in labels.unique():
        own = eps[labels.to(eps.device) == c]
        means.append(own.mean(0))
        by_chance.append(own.var(0).sum() / len(own))  # the variance of a mean
    return torch.stack(means), torch.stack(by_chance)


@torch.no_grad()
def calibrate(
    denoise: Denoise,
    sch: Schedule,
    x0: Tensor,
    times: Sequence[int],
    cond: Cond | None = None,
    *,
    by_class: bool = False,
    paired: bool = False,
    seed: int = 0,
    batch: int = 256,
) -> Calibration:
    """Measure the mean noise over the clean data x0 (n ..), at each of the times > 0 that a sampler
    will ask for.

    cond      n rows, one for each picture
    by_class  a mean for each value of `cond.label`. For a null class give the data twice, the
              second time with its label.
    paired    every picture with some noise and with the negative of it: what is odd in the noise
              cancels, at two evaluations a picture
    seed      of the noises: row i at every time has that of seed + i

    ValueError: a time that is no noisy one, classes without labels, or a class of one picture.
    """
    ts = [int(t) for t in times]
    wrong = [t for t in ts if not 1 <= t <= sch.T]
    if wrong or not ts:
        raise ValueError(f"times={ts}: expected times in 1..{sch.T}; at 0 there is no noise")
    if by_class and (cond is None or cond.label is None):
        raise ValueError("by_class needs a label for each picture: cond=Cond(label=...)")
    labels = torch.zeros(len(x0), dtype=torch.int64)
    if by_class and cond is not None and cond.label is not None:
        labels = cond.label.cpu()
    classes, counts = labels.unique(return_counts=True)
    if counts.min() < 2:
        raise ValueError("a mean needs two pictures or more, of every class")
    e = noise(x0.shape, seed, x0.device, x0.dtype)
    mean = {}
    spread = {}
    for t in ts:
        parts = []
        for i in torch.arange(len(x0)).split(batch):
            rows = None if cond is None or not len(cond) else cond[i]
            eps = denoise(q_sample(sch, x0[i], t, e[i]), t, rows)
            if paired:
                eps = (eps + denoise(q_sample(sch, x0[i], t, -e[i]), t, rows)) / 2
            parts.append(eps)
        mean[t], spread[t] = measured_means(torch.cat(parts), labels)
    return Calibration(classes if by_class else None, mean, spread)


def calibrated(denoise: Denoise, measured: Calibration) -> Denoise:
    """The same network without its mean: another Denoise, for any sampler.

    ValueError, when it is asked: a time or a class that was not measured.
    """

    def means(times: Sequence[int]) -> list[Tensor]:
        unknown = sorted(set(times) - set(measured.mean))
        if unknown:
            raise ValueError(
                f"times {unknown} were not measured; measure at every time that the sampler asks"
            )
        return [measured.mean[t] for t in times]

    def eps(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        rows = measured.rows(None if cond is None else cond.label)
        if isinstance(t, Tensor):
            by_time = torch.stack(means(t.tolist()))  # b k ..
            m = by_time[:, 0] if isinstance(rows, int) else by_time[torch.arange(len(t)), rows]
        else:
            (m,) = means([t])
            m = m[:1] if isinstance(rows, int) else m[rows]
        return denoise(x_t, t, cond) - m.to(x_t)

    return eps
