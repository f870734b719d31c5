"""Semantic diffusion guidance: text, a picture, or both steer a model that knows of neither.

More Control for Free! Image Synthesis with Semantic Diffusion Guidance, Xihui Liu, Dong Huk Park,
Samaneh Azadi, Gong Zhang, Arman Chopikyan, Yuxiao Hu, Humphrey Shi, Anna Rohrbach, Trevor Darrell,
2021, arXiv 2112.05744.

Classifier guidance needs log p(y|x), but any function that says how well a picture suits a wish has
a gradient. CLIP gives several of them, from one pair of towers, and they add up:

    F   = text <E_I(x), E_T(words)> + content <E_I(x), E_I(ref)>
          - structure |f(x) - f(ref)|^2 / |f(ref)|^2
          - style sum_l |G_l(x) - G_l(ref)|^2 / |G_l(ref)|^2
    eps = eps_hat - sigma_t grad_{x_t} F

f: states of the patches after the first block, place by place; G_l = f_l' f_l / n: which features
occur together, wherever. The paper tunes the encoder on noisy pictures. Here the clean tower looks
at what the model thinks the end is, x0_hat = (x_t - sigma_t eps_hat) / alpha_t, decoded: nothing is
trained, and the reference stays clean.

    grad_{x_t} F = (d x0_hat / d x_t)' grad F
    d x0_hat / d x_t is about alpha_t / (alpha_t^2 + sigma_t^2)

which is exact for data of unit variance; `through` differentiates the network instead, at twice the
cost.

Try: one weight at a time; a picture for its `structure` and a prompt for its colours; `style`
alone, which does not keep places; the shortcut without its alpha_t (1 / alpha_t), which throws the
first steps out of the latents' range.

Weakness: the tower's mistakes become the picture's, and a strong weight finds patterns that please
it and nobody else: words lead to colours here, and hardly to shapes. So another network grades the
proof, and `structure`, whose patches do know shapes, can be had beside the words.
"""

import torch
from torch import Tensor

from minidiff.core.denoise import Denoise, noise
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import Schedule
from minidiff.core.taps import tap
from minidiff.guidance.classifier_guidance import ancestral, gradient
from minidiff.models.clip import CLIP
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe


def look_ahead(denoise: Denoise, sch: Schedule, score, through: bool = False) -> Denoise:
    """Guide a denoiser up the gradient of `score(x0_hat)`
    (b,), a function of the clean sample that it predicts.
    """

    def guided(x_t, t, cond):
        a, s = sch.at(t, x_t)
        if through:

            def ahead(x):
                return score(eps_to_x0(sch, x, denoise(x, t, cond), t))

            return denoise(x_t, t, cond) - s * gradient(ahead, x_t)
        eps = denoise(x_t, t, cond)
        g = gradient(score, eps_to_x0(sch, x_t, eps, t)) * a / (a * a + s * s)
        return eps - s * g  # the paper shifts a move's mean; this is the same as noise

    return guided


def look(clip: CLIP, picture: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(unit vector (b e), states of the patches (b n d)
    after every block) of pictures (b 3 H W) in [-1, 1].
    """
    states = []
    with tap(clip.image, r"layers\.\d+\.out$", lambda h, name: states.append(h[:, 1:])):
        return clip.embed_image(picture), states


def apart(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 / |b|^2 of every row (b,)."""
    return (a - b).flatten(1).square().sum(1) / b.flatten(1).square().sum(1)


def gram(f: Tensor) -> Tensor:
    """(b d d): which features of f (b n d) occur together."""
    return f.mT @ f / f.shape[1]


def wish(
    clip: CLIP,
    *,
    words: Tensor | None,
    reference: Tensor,
    text: float,
    content: float,
    structure: float,
    style: float,
):
    """F of the module docstring: pictures (b 3 H W) -> (b,).
    `words` (b e): unit vectors; `reference`: pictures.
    """
    v_ref, f_ref = look(clip, reference)
    g_ref = [gram(f) for f in f_ref]

    def score(picture):
        v, f = look(clip, picture)
        total = content * (v * v_ref).sum(1) - structure * apart(f[0], f_ref[0])
        if words is not None:
            total = total + text * (v * words).sum(1)
        if style:
            total = total - style * sum(apart(gram(a), b) for a, b in zip(f, g_ref))
        return total

    return score


@door
@torch.no_grad()
def semantic_guidance(
    pipe: Pipe,
    image: Tensor,
    prompt: str = "",
    *,
    text: float = 1000.0,
    content: float = 0.0,
    structure: float = 0.0,
    style: float = 0.0,
    through: bool = False,
    strength: float = 1.0,
    eta: float = 1.0,
    clip: CLIP | None = None,
    steps: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W) by the unconditional model, led by a
    prompt and by the pictures `image` (b 3 H W) in [-1, 1].

    text       weight of the likeness to the prompt, as CLIP sees it; "" asks for nothing
    content    of the likeness to the picture as a whole
    structure  of the likeness place by place: layout and form
    style      of the likeness wherever it is: colours and textures
    through    differentiate the denoiser, too (twice the time)
    eta        1 draws fresh noise at every move as in the paper, 0 none
    strength   1 starts from noise; below, from the picture noised that far

    `clip`: another pair of towers for another model. ValueError: a strength outside 0..1, a
    negative weight, nothing asked.
    """
    weights = {
        "text": text if prompt else 0.0,
        "content": content,
        "structure": structure,
        "style": style,
    }
    for name, value in weights.items():
        if value < 0:
            raise ValueError(f"{name}={value} is negative: guidance leads towards, 0 is off")
    if clip is None and not pipe.name.startswith("tiny"):
        raise ValueError(
            f"{pipe.name or 'this model'}: the CLIP that ships knows the toy world only; pass one "
            "as clip="
        )
    ts = pipe.timesteps(steps, strength)  # b c h w
    z = pipe.encode(image)
    n = noise(z.shape, seed, z.device, z.dtype)
    x = pipe.start_std * n if strength == 1 else pipe.noised(z, ts[0], n)
    denoise = pipe.eps
    if any(weights.values()):
        from minidiff.data.shapes import VOCAB
        from minidiff.models.tokenizer import Tokenizer
        from minidiff.weights.store import load_clip

        clip = (clip or load_clip()).to(z)
        tokens = (pipe.tokenizer or Tokenizer.words(VOCAB))(prompt)
        score = wish(
            clip,
            words=clip.embed_text(tokens.to(z.device)) if prompt else None,
            reference=image.to(z),
            **weights,
        )
        # pipe.decode keeps no gradient
        show = pipe.vae.to_image if pipe.vae else (lambda x: x.clamp(-1, 1))
        denoise = look_ahead(pipe.eps, pipe.schedule, lambda x0: score(show(x0)), through)
    return pipe.decode(ancestral(denoise, pipe.schedule, x, ts, pipe.null(), eta, seed, progress))
