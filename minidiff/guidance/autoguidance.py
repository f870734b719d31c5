"""Autoguidance: lead a model away from a worse version of itself.

Guiding a Diffusion Model with a Bad Version of Itself, Tero Karras, Miika Aittala, Tuomas
Kynkaanniemi, Jaakko Lehtinen, Timo Aila, Samuli Laine, 2024, arXiv 2406.02507.

Classifier-free guidance pulls towards the condition, and variety goes with it. Here both answers
have the same condition, and one of them comes from a smaller or less trained network. Where the two
agree nothing happens; where they differ, the better one is followed further in the direction in
which it became better.

    eps = eps_bad + scale (eps_good - eps_bad)

Seen by a numerical analyst this is Richardson's extrapolation. If one model blurs the data by the
variance d and the other by k d, their errors are d e and k d e to first order, and
scale = k / (k - 1) cancels them.

Try: scale 1 (the good model alone) to 4; a bad model with another fault, such as a shifted mean:
the result is pushed just as far the other way.

Weakness: the two must have the same kind of fault, more and less of it. That asks for a second
network in memory, and twice the time. It sharpens what both know; it does not make a prompt count
more.
"""

from dataclasses import replace

from minidiff.core.cfg import guide
from minidiff.core.denoise import Denoise
from minidiff.pipe.checks import check_strength
from minidiff.pipe.pipe import Pipe


def autoguidance(denoise: Denoise, bad: Denoise, scale: float) -> Denoise:
    """The denoiser led away from `bad`, which is asked with the same condition.

    scale 1 asks the good one alone. ValueError: a scale below 0, or no number.
    """
    check_strength("scale", scale)

    def guided(x_t, t, cond):
        good = denoise(x_t, t, cond)
        return good if scale == 1 else guide(bad(x_t, t, cond), good, scale)

    return guided


def early(pipe: Pipe) -> Pipe:
    """The shipped worse version of "tiny": the same network after 2 of its 3 trainings, on the same
    latents and words. ValueError for another model, which has none.
    """
    from minidiff.weights.store import build, fill, load_weights

    if pipe.name != "tiny":
        raise ValueError(
            f"{pipe.name or 'this model'} has no worse version in the package; load one and hand "
            "its `eps` to autoguidance(pipe.eps, worse.eps, scale)"
        )
    net = fill(build("tiny").net, load_weights("early"), "early")
    return replace(pipe, net=net.to(pipe.device, pipe.dtype).eval().requires_grad_(False))
