"""Classifier guidance: steer a model that was never told about classes.

Diffusion Models Beat GANs on Image Synthesis, Prafulla Dhariwal, Alex Nichol, 2021,
arXiv 2105.05233.

By Bayes' rule grad log p(x|y) = grad log p(x) + grad log p(y|x). The score of "a picture of class
y" is that of "any picture", plus the direction in which the class becomes more probable. This
second term needs only a classifier, one that reads noisy states and knows the time. A score is
-eps / sigma, so for noise the rule reads:

    eps = eps_hat - scale sigma_t grad_x log p(y | x_t, t)    any sampler may follow

Scale 1 is Bayes; more makes the class certain at the price of variety. With an exact classifier
this is classifier-free guidance, to the last bit: the test shows it on a mixture of Gaussians.

Try: scale 0, 1, 4, 16 with one seed; a class of colour alone; a classifier that saw clean pictures
only (the same net asked about t = 1 whatever the time), which pushes hard and says nothing.

Weakness: a second network, trained on noise, for every set of classes; and its gradient is whatever
raises the score, which need not look like the class: at high scales the classifier is fooled, not
convinced. `pull` is cheap here (130,000 weights), acts in the model's own latents, and the proof
asks another network, the oracle, not the one that was pleased.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noise, noises, step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule
from minidiff.models.noisy_classifier import NoisyClassifier, named
from minidiff.pipe.checks import door, prompt_each
from minidiff.pipe.pipe import Pipe
from minidiff.weights.store import fill, load_weights

Score = Callable[[Tensor, int | Tensor], Tensor]  # (x_t, t) -> (b,), higher is better


def pull(denoise: Denoise, sch: Schedule, score: Score, scale: float) -> Denoise:
    """Guide a denoiser up the gradient of `score(x_t, t)` (b,),
    such as log p(y|x_t). ValueError for a negative scale.

    Scale 0 leaves it as it is, at no cost. The gradient is of the classifier alone: the denoiser
    keeps none.
    """
    if scale < 0:
        raise ValueError(
            f"scale={scale} is negative; 0 is no guidance, 1 is Bayes' rule, more is surer"
        )
    if scale == 0:
        return denoise

    def guided(x_t, t, cond):
        g = gradient(lambda x: score(x, t), x_t)
        return denoise(x_t, t, cond) - scale * sch.at(t, x_t)[1] * g  # the paper's algorithm 2

    return guided


def gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d score / d x (b ..), each row its own, whether gradients are on or off outside."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(score(x).sum(), x)[0]  # a sum: rows stay apart


def log_prob(classifier, wanted: list[dict[str, int]]) -> Score:
    """log p(wanted | x_t, t) (b,) of a classifier with named
    heads (x_t, t) -> {head: logits b k}; one dict a row.
    """

    def score(x_t, t):
        logs = {h: v.log_softmax(1) for h, v in classifier(x_t, t).items()}
        return torch.stack(
            [sum(logs[h][i, k] for h, k in row.items()) for i, row in enumerate(wanted)]
        )

    return score


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    ts: list[int],
    cond: Cond,
    eta: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Carry x (b ..) along `ts` with fresh noise at every
    move; with little of it (eta to 0) early mistakes stay.
    """
    for (t, s), n in zip(step_pairs(ts, progress), noises(x, seed)):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s, eta, n)
    return x


@door
@torch.no_grad()
def classifier_guidance(
    pipe: Pipe,
    image: Tensor,
    target: str,
    *,
    strength: float = 1.0,
    eta: float = 1.0,
    steps: int = 50,
    scale: float = 6.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W) of the classes that `target` names, by
    a model that reads no prompt: null condition, classifier.

    target    classes of one object or two, such as "red star above a blue ring on a striped grey
              background", or a few of those words
    strength  1 starts from noise, of `image` (b 3 H W) only the size counts; below, it is noised
              that far and redrawn
    eta       1 draws fresh noise at every move as in the paper's algorithm 1, 0 none as in its
              algorithm 2
    scale     weight of the classifier's gradient; 0 is unguided, 1 Bayes' rule

    ValueError: a model whose latents the shipped classifier cannot read, words it does not know, a
    strength outside 0..1.
    """
    ts = pipe.timesteps(steps, strength)
    if pipe.vae is None or (*pipe.shape, pipe.factor) != (4, 16, 16, 4):
        raise ValueError(
            f"{pipe.name or 'this model'}: the shipped classifier reads the latents of tiny and "
            "tiny-dit only; for another model train one (shipped/noisy_classifier.py) and use "
            "`pull`"
        )
    wanted = [named(p) for p in prompt_each(target, len(image), "target")]
    z = pipe.encode(image)  # b c h w
    n = noise(z.shape, seed, z.device, z.dtype)
    denoise = pull(pipe.eps, pipe.schedule, log_prob(noisy_classifier().to(z), wanted), scale)
    x = pipe.start_std * n if strength == 1 else pipe.noised(z, ts[0], n)
    return pipe.decode(ancestral(denoise, pipe.schedule, x, ts, pipe.null(), eta, seed, progress))


@cache
def noisy_classifier() -> NoisyClassifier:
    """The shipped classifier: of the latents that "tiny" and "tiny-dit" share."""
    net = fill(NoisyClassifier(), load_weights("classifier"), "classifier")
    return net.eval().requires_grad_(False)
