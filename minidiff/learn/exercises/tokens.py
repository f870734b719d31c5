"""Pictures as tokens, and back; where a token stands; and what a network is trained on."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.blocks import DIT
from minidiff.learn.exercises.inputs import draw, draws
from minidiff.models.dit import position_embedding, unpatchify
from minidiff.models.vae import gaussian_kl

WORDS = "tutorials/00_the_six_words.md"


# ---- patches -------------------------------------------------------------------------------------


def patchify(x: Tensor, p: int) -> Tensor:
    """Picture (b c h w) -> tokens (b n c*p*p), row by row; inside a token channel, then row, then
    column.
    """
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)


def slow_patchify(x, p):
    rows = []
    for i in range(0, x.shape[2], p):
        for j in range(0, x.shape[3], p):
            rows.append(x[:, :, i : i + p, j : j + p].reshape(len(x), -1))
    return torch.stack(rows, 1)


def cut(pattern):
    return lambda x, p: rearrange(x, pattern, p=p, q=p)


def as_convolution(fn):
    conv = nn.Conv2d(3, 5, 2, stride=2).requires_grad_(False)
    (x,) = draws(1, (1, 3, 4, 6))
    return fn(x, 2) @ conv.weight.flatten(1).T + conv.bias, conv(x).flatten(2).mT


def patchify_cases(seed):
    return [
        (*draws(seed, (1, 1, 2, 4)), 2),
        (*draws(seed, (2, 3, 6, 4)), 2),
        (*draws(seed, (1, 2, 3, 6)), 3),
    ]


to_tokens = Exercise(
    "patchify",
    "warm-up",
    "A transformer reads patches: cut x (b c h w) into squares of p x p, row by row, and flatten "
    "each: (b n c*p*p), inside a token channels first, then rows, then columns. A linear layer on "
    "these is a convolution with stride p.",
    patchify,
    slow_patchify,
    patchify_cases,
    apart="the package's DiT cuts and projects in one convolution with stride p",
    facts=(Fact("a linear layer on it is a strided convolution", as_convolution),),
    mutants=(
        Mutant(
            "channels last",
            cut("b c (h p) (w q) -> b (h w) (p q c)"),
            "That is the order in which DiT gives its output back; the input convolution's "
            "weights are stored channels first.",
        ),
        Mutant(
            "column by column",
            cut("b c (h p) (w q) -> b (w h) (c p q)"),
            "Tokens are then not where the position embedding says. On square pictures a trained "
            "DiT sees everything mirrored at the diagonal.",
        ),
        Mutant(
            "a grid in place of patches",
            cut("b c (p h) (q w) -> b (h w) (c p q)"),
            "(p h) for (h p): each token collects pixels from all over the picture.",
        ),
        Mutant(
            "only reshaped",
            lambda x, p: x.reshape(len(x), -1, x.shape[1] * p * p),
            "The shape fits, but memory runs along whole rows: a token is then a piece of a line, "
            "not a square.",
        ),
        Mutant(
            "columns before rows",
            cut("b c (h p) (w q) -> b (h w) (c q p)"),
            "Every patch is mirrored at its diagonal, and the weights of a convolution no longer "
            "fit.",
        ),
    ),
    hints=(
        "einops: split both sides, then name the new order.",
        "`(h p) (w q)`: the outer index comes first.",
        '`rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)`.',
    ),
    about="a picture as tokens",
    page=DIT,
)


def slow_unpatchify(tokens, p, rows):
    b, n, d = tokens.shape
    c = d // p**2
    columns = n // rows
    out = torch.zeros(b, c, rows * p, columns * p)
    for k in range(n):
        top = k // columns * p
        left = k % columns * p
        for y in range(p):
            for x in range(p):
                first = (y * p + x) * c
                out[:, :, top + y, left + x] = tokens[:, k, first : first + c]
    return out


def joined(pattern):
    return lambda tokens, p, rows: rearrange(tokens, pattern, h=rows, p=p, q=p)


def by_columns(tokens, p, rows):
    columns = tokens.shape[1] // rows
    turned = rearrange(tokens, "b (w h) d -> b (h w) d", w=columns, h=rows)
    return unpatchify(turned, p, rows)


def unpatchify_cases(seed):
    return [
        (*draws(seed, (1, 2, 4)), 2, 1),
        (*draws(seed, (2, 6, 12)), 2, 3),
        (*draws(seed, (1, 2, 18)), 3, 2),
    ]


from_tokens = Exercise(
    "unpatchify",
    "warm-up",
    "The way back, in DiT's own order: tokens (b n p*p*c), row by row with `rows` rows of "
    "patches, inside a token row, then column, then channel. Return the picture (b c h w).",
    unpatchify,
    slow_unpatchify,
    unpatchify_cases,
    mutants=(
        Mutant(
            "channels first",
            joined("b (h w) (c p q) -> b c (h p) (w q)"),
            "The order of `patchify`, which is not DiT's: colours and neighbouring pixels change "
            "places in every patch.",
        ),
        Mutant(
            "patches mirrored",
            joined("b (h w) (p q c) -> b c (h q) (w p)"),
            "Row and column exchanged inside the patch: the picture is right from afar, and every "
            "edge is frayed.",
        ),
        Mutant(
            "column by column",
            by_columns,
            "Not seen on square test pictures of one colour, and fatal on all others.",
        ),
        Mutant(
            "only reshaped",
            lambda tokens, p, rows: tokens.reshape(
                len(tokens), -1, rows * p, tokens.shape[1] // rows * p
            ),
            "The shape fits; the numbers of a token are laid out along a line of the picture, not "
            "as a square.",
        ),
    ),
    hints=(
        "The pattern of einops, read backwards.",
        "n = h w with h = rows; the last axis is (p q c).",
        '`rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)`.',
    ),
    about="tokens as a picture again",
    page=DIT,
)


# ---- positions -----------------------------------------------------------------------------------


def slow_positions(dim, grid, first="x", base=10000.0):
    out = torch.zeros(1, grid * grid, dim)
    d = dim // 4
    for y in range(grid):
        for x in range(grid):
            places = (x, y) if first == "x" else (y, x)
            for half, place in enumerate(places):
                for k in range(d):
                    angle = place * base ** (-k / d)
                    out[0, y * grid + x, 2 * half * d + k] = math.sin(angle)
                    out[0, y * grid + x, (2 * half + 1) * d + k] = math.cos(angle)
    return out


def one_line(dim, grid):
    angle = torch.arange(grid**2)[:, None] * 10000 ** (-torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angle.sin(), angle.cos()], 1)[None]


def cosines_first(dim, grid):
    return position_embedding(dim, grid).unflatten(2, (2, 2, -1)).flip(3).flatten(2)


positions = Exercise(
    "position_embedding",
    "core",
    "Where each token of a grid x grid picture stands, (1, grid^2, dim) in float32, row by row. "
    "The first half of the width tells x (the column), the second y (the row). Each half: d = dim "
    "/ 4 sines of $place \\cdot 10000^{-k/d}$, k = 0 .. d - 1, then the d cosines.",
    position_embedding,
    slow_positions,
    lambda seed: [(4, 2), (16, 3), (32, 4 + seed)],
    facts=(
        Fact(
            "the corner is at 0",
            lambda fn: (fn(8, 3)[0, 0], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])),
        ),
    ),
    mutants=(
        Mutant(
            "rows first",
            lambda dim, grid: slow_positions(dim, grid, "y"),
            "The published code makes its grid with the width first. Read the other way, pictures "
            "lie on their side.",
        ),
        Mutant(
            "numbered through",
            one_line,
            "One line of grid^2 places: then the token below is as far away as a whole row.",
        ),
        Mutant(
            "cosines first",
            cosines_first,
            "The time embedding of the same network has cosines first. The two were written by "
            "different hands.",
        ),
        Mutant(
            "sine and cosine in turn",
            lambda dim, grid: slow_positions(dim, grid).unflatten(2, (2, 2, -1)).mT.flatten(2),
            "The transformer paper alternates them. This network has two blocks for each half.",
        ),
    ),
    hints=(
        "Make one line of `grid` places first, (grid, dim / 2).",
        "angle = place x frequency; sines and cosines side by side.",
        "x: `line[None, :].expand(grid, -1, -1)`, y: `line[:, None].expand(-1, grid, -1)`; cat, "
        "flatten, float().",
    ),
    about="where a token stands, in two dimensions",
    page=DIT,
)


# ---- the autoencoder -----------------------------------------------------------------------------


def slow_kl(mean, logvar):
    total = 0.0
    for m, v in zip(mean.flatten(), logvar.flatten()):
        total = total + 0.5 * (m * m + v.exp() - 1 - v)
    return total / mean.numel()


def by_integration(fn):
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    q = torch.exp(-((z - 0.7) ** 2) / (2 * 0.25)) / math.sqrt(2 * math.pi * 0.25)
    ratio = -((z - 0.7) ** 2) / 0.5 - 0.5 * math.log(0.25) + z**2 / 2
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return fn(0.7 * one, math.log(0.25) * one), (q * ratio).sum() * (z[1] - z[0])


def gradient_of_kl(fn):
    mean = draw(3, 1, 2, 2, 2).requires_grad_()
    loss = fn(mean, torch.zeros_like(mean))
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return torch.zeros_like(mean), mean.detach() / mean.numel()
    (gradient,) = torch.autograd.grad(loss, mean)
    return gradient, mean.detach() / mean.numel()


kl = Exercise(
    "gaussian_kl",
    "warm-up",
    "How far a latent's Gaussian is from N(0, 1): $\\tfrac12(\\mu^2 + \\sigma^2 - 1 - \\log "
    "\\sigma^2)$, with `logvar` = $\\log \\sigma^2$, averaged over all values of (b c h w). A "
    "scalar tensor.",
    gaussian_kl,
    slow_kl,
    lambda seed: [draws(seed, (1, 1, 1, 2), (1, 1, 1, 2)), draws(seed, (2, 4, 3, 3), (2, 4, 3, 3))],
    facts=(
        Fact("it is the integral of q log(q / p)", by_integration),
        Fact(
            "a gradient flows through it (a tensor, neither `.item()` nor `.detach()`)",
            gradient_of_kl,
        ),
    ),
    mutants=(
        Mutant(
            "log sigma for log variance",
            lambda m, v: gaussian_kl(m, 2 * v),
            "The network's second output is halved before the exponential when a sample is drawn; "
            "here it is not.",
        ),
        Mutant(
            "summed over the picture",
            lambda m, v: gaussian_kl(m, v) * m[0].numel(),
            "A widely copied loss sums over values and divides by the batch alone. Its weight of "
            "one in a million belongs to that sum; with a mean it switches the term off.",
        ),
        Mutant(
            "the other way round",
            lambda m, v: 0.5 * (m**2 / v.exp() + (-v).exp() - 1 + v).mean(),
            "KL(p || q) for KL(q || p): it punishes narrow latents without bound.",
        ),
        Mutant(
            "summed over everything",
            lambda m, v: gaussian_kl(m, v) * m.numel(),
            "A mean was asked. A sum grows with the picture and with the batch, and so must its "
            "weight shrink.",
        ),
        Mutant(
            "the half is forgotten",
            lambda m, v: 2 * gaussian_kl(m, v),
            "Twice the divergence: only the weight of the term changes, and figures can no longer "
            "be compared.",
        ),
        Mutant(
            "the sign",
            lambda m, v: -gaussian_kl(m, v),
            "A divergence is never negative. Minimised with this sign, latents fly apart.",
        ),
    ),
    hints=(
        "Four terms, half of their sum, a mean.",
        "`logvar.exp()` is the variance.",
        "`.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()`.",
    ),
    about="how far latents are from N(0, 1)",
    page=WORDS,
)


def latent_scale(latents: Tensor) -> Tensor:
    """The factor that brings latents (b c h w) to standard deviation 1, all channels together; a
    scalar tensor.
    """
    return 1 / latents.std(correction=0)


def slow_scale(latents):
    values = latents.double().flatten().tolist()
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return torch.tensor(1 / math.sqrt(variance), dtype=latents.dtype)


def latent_scale_cases(seed):
    return [
        (5 * draw(seed, 1, 1, 2, 2),),
        (draw(seed, 2, 4, 4, 4) * torch.tensor([1.0, 3, 5, 8])[:, None, None] + 2,),
    ]


def variance_of_scaled(fn):
    latents = 7 * draw(2, 2, 2, 4, 4)
    return (fn(latents) * latents).var(correction=0), 1.0


scaling = Exercise(
    "latent_scale",
    "warm-up",
    "Latents of an autoencoder have any size; a diffusion model wants variance 1. Return the one "
    "factor to multiply (b c h w) with: one over the standard deviation (divided by n) of all "
    "values, about their mean. Stable Diffusion's is 0.18215.",
    latent_scale,
    slow_scale,
    latent_scale_cases,
    apart="nothing in the package measures it: Stable Diffusion's factor is a number in its "
    "files, and the tiny autoencoder has one for each channel, folded into its weights",
    facts=(
        Fact(
            "scaled latents have variance 1",
            variance_of_scaled,
        ),
    ),
    mutants=(
        Mutant(
            "not inverted",
            lambda z: z.std(correction=0),
            "Multiplied or divided? Code that decodes with `z * scale` for `z / scale` shows a "
            "grey picture.",
        ),
        Mutant(
            "one over the variance",
            lambda z: 1 / z.var(correction=0),
            "Latents of spread 5 end with a fifth.",
        ),
        Mutant(
            "about zero",
            lambda z: z.square().mean().rsqrt(),
            "The mean counts as spread; latents with an offset come out too small.",
        ),
        Mutant(
            "divided by n - 1",
            lambda z: 1 / z.std(),
            "The default of `std`: it corrects for a mean that was estimated, which matters in a "
            "small sample. Here division by n was asked.",
        ),
        Mutant(
            "each channel about its own mean",
            lambda z: 1 / z.std((0, 2, 3), correction=0).mean(),
            "One number for all channels together: what channels differ by counts as spread, too.",
        ),
    ),
    hints=(
        "One number for all channels.",
        "`std` divides by n - 1 unless told otherwise.",
        "`1 / latents.std(correction=0)`.",
    ),
    about="the factor that gives latents variance 1",
    page=WORDS,
)

EXERCISES = (to_tokens, from_tokens, positions, kl, scaling)
