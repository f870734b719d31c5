"""What is known of a picture, put into the states: measurements, what lies outside a mask, an
inverted path, a layout.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core import process
from minidiff.core.schedule import Schedule
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    ANY_SCHEDULE,
    LINEAR,
    ONE,
    draw,
    draws,
    preserving_assumed,
    states,
)
from minidiff.pipe.masks import paste, to_latent_mask
from minidiff.restoration.operators import superres

DDNM = "tutorials/restoration/ddnm.md"
REPAINT = "tutorials/restoration/repaint.md"
INPAINT = "tutorials/editing/inpaint.md"


# ---- measurements --------------------------------------------------------------------------------


def project_average(x: Tensor, y: Tensor, factor: int) -> Tensor:
    """The picture nearest to x (b c h w) whose means over blocks of factor x factor are y (b c
    h/factor w/factor).
    """
    return x - F.interpolate(F.avg_pool2d(x, factor) - y, scale_factor=float(factor))


def slow_project(x, y, factor):
    """By linear algebra: A as a matrix, x - A^+ (A x - y)."""
    height, width = x.shape[2:]
    columns = y.shape[3]
    A = torch.zeros(y[0, 0].numel(), height * width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            block = i // factor * columns + j // factor
            A[block, i * width + j] = 1 / factor**2
    pixels = x.double().flatten(2)
    error = pixels @ A.T - y.double().flatten(2)
    nearest = pixels - error @ torch.linalg.pinv(A).T
    return nearest.view_as(x).to(x.dtype)


def enlarged(v, factor, mode="nearest"):
    return F.interpolate(v, scale_factor=float(factor), mode=mode)


def project_average_cases(seed):
    return [
        (*draws(seed, (1, 1, 2, 2), (1, 1, 1, 1)), 2),
        (*draws(seed, (2, 3, 8, 4), (2, 3, 4, 2)), 2),
        (*draws(seed, (1, 2, 8, 8), (1, 2, 2, 2)), 4),
    ]


def means_of_answer(fn):
    x, y = draws(0, (1, 1, 6, 6), (1, 1, 2, 2))
    return F.avg_pool2d(fn(x, y, 3), 3), y


def as_the_operator(fn):
    x, y = draws(1, (1, 3, 4, 4), (1, 3, 2, 2))
    return fn(x, y, 2), superres(2).project(x, y)


average = Exercise(
    "project_average",
    "warm-up",
    "DDNM's correction for a small picture y of block means: $x - A^+(A x - y)$, where A takes "
    "means over factor x factor blocks and $A^+$, its pseudo-inverse, gives every pixel of a "
    "block the block's value. Then the means of x are y, and its detail has not changed.",
    project_average,
    slow_project,
    project_average_cases,
    apart="the package has one correction for every linear measurement, `LinearOp.project`, by "
    "its singular values; a fact compares the two",
    facts=(
        Fact(
            "its means are y",
            means_of_answer,
        ),
        Fact(
            "it is the project's operator",
            as_the_operator,
        ),
    ),
    tolerance=2e-5,
    mutants=(
        Mutant(
            "the transpose for the pseudo-inverse",
            lambda x, y, f: x - enlarged(F.avg_pool2d(x, f) - y, f) / f**2,
            "A^T spreads a block's value over its pixels as shares. Only a part of the error is "
            "corrected; the bigger the blocks, the smaller.",
        ),
        Mutant(
            "replaced",
            lambda x, y, f: enlarged(y, f),
            "A^+ y alone has the right means and no detail at all: what the model drew is thrown "
            "away.",
        ),
        Mutant(
            "smoothly enlarged",
            lambda x, y, f: x - enlarged(F.avg_pool2d(x, f) - y, f, "bilinear"),
            "It looks better, but is no pseudo-inverse of the mean: the result does not have the "
            "means y, and the error comes back at each step.",
        ),
        Mutant(
            "the sign",
            lambda x, y, f: project_average(x, 2 * F.avg_pool2d(x, f) - y, f),
            "The error is put on once more where it should be taken off.",
        ),
        Mutant(
            "sums for means",
            lambda x, y, f: x - enlarged(F.avg_pool2d(x, f) * f**2 - y, f) / f**2,
            "A takes the mean of a block. Its sum is f^2 times as large, and so would be y.",
        ),
    ),
    hints=(
        "The error of each block, taken off all its pixels.",
        "`F.interpolate(..., scale_factor=factor)` repeats values.",
        "`x - F.interpolate(F.avg_pool2d(x, factor) - y, scale_factor=factor)`.",
    ),
    about="DDNM: a small picture's means put in",
    page=DDNM,
)


def luma_pinv(y: Tensor, weights: Tensor) -> Tensor:
    """The smallest picture (b c h w) whose channels, weighted by `weights` (c,) and summed, are y
    (b 1 h w).
    """
    return y * (weights / weights.square().sum())[:, None, None]


def slow_luma(y, weights):
    inverse = torch.linalg.pinv(weights.double()[None])[:, 0]
    out = torch.empty(len(y), len(weights), *y.shape[2:], dtype=torch.float64)
    for c, share in enumerate(inverse.tolist()):
        out[:, c] = share * y[:, 0].double()
    return out.to(y.dtype)


def luma_pinv_cases(seed):
    return [
        (draw(seed, 1, 1, 1, 2), torch.tensor([0.5, 0.5])),
        (draw(seed, 2, 1, 3, 3), torch.tensor([0.299, 0.587, 0.114])),
        (draw(seed, 1, 1, 2, 2), torch.full((3,), 1 / 3)),
    ]


def measured_again(fn):
    grey = torch.ones(1, 1, 2, 2)
    weights = torch.tensor([0.2, 0.7, 0.1])
    colours = fn(grey, weights)
    return (colours * weights[:, None, None]).sum(1, keepdim=True), grey


luma = Exercise(
    "luma_pinv",
    "warm-up",
    "A grey value is a weighted sum of colours, $y = \\sum_c w_c x_c$: one number for each pixel. "
    "Its pseudo-inverse gives, of all colours with that grey value, the one of smallest length. "
    "From y (b 1 h w) and w (c,) to (b c h w).",
    luma_pinv,
    slow_luma,
    luma_pinv_cases,
    apart="the package's grey is the plain mean of the colours, inverted by its singular values "
    "like every other measurement",
    facts=(
        Fact(
            "measured again, it is y",
            measured_again,
        ),
    ),
    mutants=(
        Mutant(
            "the same grey in each channel",
            lambda y, w: y.expand(-1, len(w), -1, -1).clone(),
            "Right for the plain mean. With luma weights it explains y too, but is not the "
            "smallest: A^+ A is then no projection at a right angle, and the correction also "
            "moves what was not measured.",
        ),
        Mutant(
            "the transpose",
            lambda y, w: y * w[:, None, None],
            "w y in place of w y / |w|^2: measured again, it is a third.",
        ),
        Mutant(
            "each channel's share undone",
            lambda y, w: y / (len(w) * w[:, None, None]),
            "It explains y, and makes the channel that counts least the brightest.",
        ),
        Mutant(
            "divided by the length of w",
            lambda y, w: y * (w / w.norm())[:, None, None],
            "A unit vector is the right direction; measured again, it gives |w| y. It takes the "
            "square of the length.",
        ),
    ),
    hints=(
        "A is one row: w. What is the pseudo-inverse of a row?",
        "Of all solutions the smallest is a multiple of w.",
        "`y * (w / w.square().sum())[:, None, None]`.",
    ),
    about="the smallest colour with a given grey",
    page=DDNM,
)


# ---- masks ---------------------------------------------------------------------------------------


def stand_in(factor):
    """What of a pipe a mask has to do with."""
    return SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, factor=factor)


def slow_latent_mask(mask, pipe):
    f = pipe.factor
    out = torch.zeros(len(mask), 1, mask.shape[2] // f, mask.shape[3] // f)
    for b, _, y, x in mask.nonzero().tolist():
        out[b, 0, y // f, x // f] = 1
    return out


def mask_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = []
    for b, factor, n, share in ((1, 2, 2, 0.3), (2, 4, 4, 0.05), (1, 8, 3, 0.02), (1, 4, 3, 0.6)):
        noise = torch.rand(b, 1, factor * n, factor * (n + 1), generator=g)
        cases.append(((noise < share).float(), stand_in(factor)))
    return cases


latent_mask = Exercise(
    "to_latent_mask",
    "warm-up",
    "A mask of pixels (b 1 H W), 1 where the picture may change, for latents `pipe.factor` times "
    "smaller: a latent may change if any of its pixels may. Return 0 and 1 in the dtype of the "
    "mask. Called as `to_latent_mask(mask, pipe)`; of the pipe only `factor` matters here.",
    to_latent_mask,
    slow_latent_mask,
    mask_cases,
    mutants=(
        Mutant(
            "every f-th pixel",
            lambda m, pipe: m[..., :: pipe.factor, :: pipe.factor].clone(),
            "The default of most resizing, and how inpainting models were trained. For a blend it "
            "loses thin strokes altogether.",
        ),
        Mutant(
            "the mean",
            lambda m, pipe: F.avg_pool2d(m, pipe.factor),
            "A soft mask: at the border old and new are mixed, and the mixture of two states is "
            "no state of a picture.",
        ),
        Mutant(
            "the majority",
            lambda m, pipe: (F.avg_pool2d(m, pipe.factor) > 0.5).float(),
            "Lines thinner than half a latent vanish.",
        ),
        Mutant(
            "only whole latents",
            lambda m, pipe: 1 - F.max_pool2d(1 - m, pipe.factor),
            "The minimum: a seam of unedited pixels stays along the border.",
        ),
        Mutant(
            "the sum",
            lambda m, pipe: F.avg_pool2d(m, pipe.factor, divisor_override=1),
            "How many pixels may change. A mask holds 0 and 1, and 1 - mask is its other side.",
        ),
    ),
    hints=('"Any" is a maximum.', "A pooling layer.", "`F.max_pool2d(mask, pipe.factor)`."),
    about="a mask of pixels for latents",
    page=INPAINT,
)


def slow_paste(out, image, mask):
    result = image.clone()
    for b in range(len(image)):
        for y, x in mask[b % len(mask), 0].nonzero().tolist():
            result[b, :, y, x] = out[b, :, y, x]
    return result


def paste_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = []
    for b, masks, n in ((1, 1, 2), (3, 1, 4), (2, 2, 5)):
        out, image = draws(seed, (b, 3, n, n), (b, 3, n, n))
        mask = torch.rand(masks, 1, n, n, generator=g) < 0.4
        cases.append((out, image, mask.float()))
    return cases


def outside(fn):
    out, image = draws(6, (1, 3, 16, 16), (1, 3, 16, 16))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :4, :] = 1
    return fn(out, image, mask)[..., 4:, :], image[..., 4:, :]


pasted = Exercise(
    "paste",
    "warm-up",
    "The last line of every local edit: `out` where `mask` (1 or b, 1, H, W) is 1, the pixels of "
    "`image` elsewhere, unchanged to the last bit (inside, the last bit does not matter). Pictures "
    "are (b 3 H W).",
    paste,
    slow_paste,
    paste_cases,
    facts=(Fact("outside, the picture is unchanged to the last bit", outside, tolerance=0.0),),
    mutants=(
        Mutant(
            "the mask means keep",
            lambda out, image, m: paste(image, out, m),
            "Half of public code marks what stays. The edit then happens everywhere but where it "
            "should.",
        ),
        Mutant(
            "added",
            lambda out, image, m: image + m * out,
            "The old content was not taken out: a double exposure.",
        ),
        Mutant(
            "a hole in the picture",
            lambda out, image, m: m * out + (1 - m) * image * (1 - m) + m * image * 0.5,
            "The network's input has a grey hole; the picture to paste into must not.",
        ),
        Mutant(
            "only the inside",
            lambda out, image, m: m * out,
            "The outside is black: the picture to paste into is missing.",
        ),
        Mutant(
            "the outside is computed",
            lambda out, image, m: out + (1 - m) * (image - out),
            "In exact arithmetic it is the same. In floating point out + (image - out) differs "
            "from image by a rounding, on every pixel that nobody edited. Start from image: image "
            "+ mask * (out - image).",
        ),
    ),
    hints=(
        "Two products and a sum.",
        "1 - mask is the rest.",
        "`mask * out + (1 - mask) * image`.",
    ),
    about="an edit inside, the picture outside",
    page=INPAINT,
)


# ---- the outside of a mask, and a layout ---------------------------------------------------------


def blend_known(
    sch: Schedule, x_s: Tensor, known: Tensor, mask: Tensor, t: int, s: int, noise: Tensor
) -> Tensor:
    """After a move from t to s: the state x_s where mask is 1, elsewhere the clean `known` with the
    noise of its time.
    """
    return mask * x_s + (1 - mask) * process.q_sample(sch, known, s, noise)


def slow_blend_known(sch, x_s, known, mask, t, s, noise):
    alpha = sch.alpha[s].item()
    sigma = sch.sigma[s].item()
    noised = alpha * known.double() + sigma * noise.double()
    return torch.where(mask.expand_as(x_s) > 0, x_s, noised.to(x_s.dtype))


def known_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = []
    for sch, x_s, known, t, s in states(seed):
        mask = torch.rand(1, 1, *x_s.shape[2:], generator=g) < 0.5
        noise = draw(seed + 1, *x_s.shape)
        for end in (s, 0):
            cases.append((sch, x_s, known, mask.float(), t, end, noise))
    return cases


def blended_at(time):
    return lambda sch, x, z, m, t, s, n: m * x + (1 - m) * time(sch, z, t, s, n)


known = Exercise(
    "blend_known",
    "core",
    "RePaint, blended diffusion, SDEdit with a mask: a move has carried the state from time t to "
    "s; now its outside (mask 0) is replaced by the picture that is `known` there, noised with "
    "`noise` to the time the state is at NOW. x_s and known are (b c h w), mask (1 1 h w)."
    + ANY_SCHEDULE,
    blend_known,
    slow_blend_known,
    known_cases,
    apart="each technique has this line with `Pipe.noised`, which knows where the grid of its "
    "model ends; here both times are given, since taking the wrong one is the mistake to "
    "know",
    facts=(
        Fact(
            "at the end the outside is the picture itself",
            lambda fn: (fn(LINEAR, ONE, 3 * ONE, 0 * ONE, 20, 0, ONE), 3 * ONE),
        ),
    ),
    mutants=(
        Mutant(
            "noised to t",
            blended_at(lambda sch, z, t, s, n: process.q_sample(sch, z, t, n)),
            "The loop's variable still holds the time before the move. Several published loops do "
            "this: the outside is one step too noisy throughout, and at the end grain is left, "
            "which a final paste hides.",
        ),
        Mutant(
            "not noised",
            blended_at(lambda sch, z, t, s, n: z),
            "A clean outside around a noisy inside: the network has never seen such a state, and "
            "draws the seam.",
        ),
        Mutant(
            "the mask means keep",
            lambda sch, x, z, m, t, s, n: blend_known(sch, x, z, 1 - m, t, s, n),
            "Masks of both polarities are published. This one keeps the hole and redraws the "
            "picture.",
        ),
        Mutant(
            "added",
            lambda sch, x, z, m, t, s, n: x + (1 - m) * process.q_sample(sch, z, s, n),
            "The state's own outside was not taken out: two pictures and twice the noise.",
        ),
        preserving_assumed(blend_known),
    ),
    hints=(
        "At which time is x_s?",
        "`process.q_sample(sch, known, s, noise)`.",
        "`mask * x_s + (1 - mask) * process.q_sample(...)`.",
    ),
    about="a known outside, noised to the right time",
    page=REPAINT,
)

EXERCISES = (average, luma, latent_mask, pasted, known)
