"""Gates of features: by place, by channel, and by the statistics of another picture."""

import math

import torch
from torch import Tensor

from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import draws
from minidiff.models.modulate import adain as library_adain

PAGE = "tutorials/networks.md"


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


# ---- the attention gate --------------------------------------------------------------------------


def attention_gate(x: Tensor, g: Tensor, W_x: Tensor, W_g: Tensor, psi: Tensor) -> Tensor:
    """Skip x (b c h w) times alpha, which x and the decoder's g (b d h w) decide at each place; W_x
    (k c), W_g (k d), psi (k,).
    """
    both = torch.einsum("kc,bchw->bkhw", W_x, x) + torch.einsum("kd,bdhw->bkhw", W_g, g)
    alpha = torch.sigmoid(torch.einsum("k,bkhw->bhw", psi, both.relu()))
    return alpha[:, None] * x


def slow_gate(
    x,
    g,
    W_x,
    W_g,
    psi,
    gated="x",
    relu=True,
    relu_twice=False,
    over_places=False,
    half=False,
    relu_last=False,
    residual=False,
):
    """Place by place, with lists of numbers."""
    out = (x if gated == "x" else g).clone().double()
    for b in range(len(x)):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                a = (W_x.double() @ x[b, :, i, j].double()).tolist()
                c = (W_g.double() @ g[b, :, i, j].double()).tolist()
                if relu_twice:
                    inner = [max(p, 0.0) + max(q, 0.0) for p, q in zip(a, c)]
                else:
                    inner = [p if half else p + q for p, q in zip(a, c)]
                    inner = [max(v, 0.0) for v in inner] if relu else inner
                logit = sum(w * v for w, v in zip(psi.tolist(), inner))
                alpha = max(logit, 0.0) if relu_last else sigmoid(logit)
                if over_places:
                    alpha = math.exp(logit)
                out[b, :, i, j] *= alpha + 1 if residual else alpha
        if over_places:
            # alpha was exp(logit): divide by its sum over the places
            source = (x if gated == "x" else g)[b].double()
            out[b] /= (out[b, 0] / source[0]).sum()
    return out.to(x.dtype)


def gate_like(**how):
    return lambda *args: slow_gate(*args, **how)


def gate_cases(seed):
    return [
        tuple(draws(seed + k, (b, c, h, w), (b, d, h, w), (n, c), (n, d), (n,)))
        for k, (b, c, d, n, h, w) in enumerate(((1, 3, 3, 2, 2, 2), (2, 4, 4, 3, 3, 4)))
    ]


def half_open(fn):
    x, g, W_x, W_g, psi = gate_cases(0)[1]
    return fn(x, g, W_x, W_g, 0 * psi), x / 2


def place_by_place(fn):
    x, g, W_x, W_g, psi = gate_cases(1)[1]
    return fn(x.flip(-1), g.flip(-1), W_x, W_g, psi), fn(x, g, W_x, W_g, psi).flip(-1)


gate = Exercise(
    "attention_gate",
    "warm-up",
    "The gate of the Attention U-Net, without norms and biases. A skip x (b c h w) and what the "
    "decoder has, g (b d h w), are compared at each place: $\\alpha = \\text{sigmoid}\\big(\\psi "
    "\\cdot \\text{relu}(W_x x + W_g g)\\big)$, with `W_x` (k c), `W_g` (k d), `psi` (k,). Return "
    "the skip times $\\alpha$, which is one number for all channels of a place.",
    attention_gate,
    slow_gate,
    gate_cases,
    apart="the package has it as a module, `AttentionGate`, with norms, biases and a tap",
    facts=(
        Fact("psi = 0: every gate is half open", half_open),
        Fact("mirrored pictures give a mirrored answer", place_by_place, 1e-5),
    ),
    mutants=(
        Mutant(
            "g is gated",
            gate_like(gated="g"),
            "The skip is what passes the gate. The decoder's features only say what they want.",
        ),
        Mutant(
            "no relu",
            gate_like(relu=False),
            "Without it the two are added in one linear map: the decoder's wish could only shift "
            "what the skip says, never meet it.",
        ),
        Mutant(
            "a relu for each",
            gate_like(relu_twice=True),
            "They are added first. After a relu of its own, neither can say no to the other.",
        ),
        Mutant(
            "a softmax over the places",
            gate_like(over_places=True),
            "The places do not compete: a sigmoid for each, so all may be open.",
        ),
        Mutant(
            "the skip alone",
            gate_like(half=True),
            "The gate asks the decoder, too: that is the idea of it.",
        ),
        Mutant(
            "a relu at the end",
            gate_like(relu_last=True),
            "A gate is a number between 0 and 1: a sigmoid.",
        ),
        Mutant(
            "x is added",
            gate_like(residual=True),
            "With x + alpha x nothing can be shut.",
        ),
    ),
    hints=(
        'A 1x1 convolution is `torch.einsum("kc,bchw->bkhw", W, x)`.',
        "Add, relu, weigh with psi, sigmoid: (b h w).",
        "`alpha[:, None] * x`.",
    ),
    about="the gate of the Attention U-Net",
    page=PAGE,
)


# ---- squeeze and excitation ----------------------------------------------------------------------


def squeeze_excite(x: Tensor, W_1: Tensor, W_2: Tensor) -> Tensor:
    """x (b c h w) times s (b c) of its means; W_1 (k c), W_2 (c k)."""
    z = x.mean((2, 3))  # b c
    s = torch.sigmoid((z @ W_1.T).relu() @ W_2.T)
    return s[:, :, None, None] * x


def slow_excite(
    x, W_1, W_2, relu=True, summed=False, peak=False, softmax=False, batch=False, open_=False
):
    """Channel by channel, with lists of numbers."""
    out = x.clone().double()
    for b in range(len(x)):
        z = []
        for c in range(x.shape[1]):
            values = x[:, c].flatten().tolist() if batch else x[b, c].flatten().tolist()
            z.append(sum(values) / (1 if summed else len(values)))
            if peak:
                z[c] = max(values)
        inner = [sum(w * v for w, v in zip(row, z)) for row in W_1.tolist()]
        inner = [max(v, 0.0) for v in inner] if relu else inner
        logits = [sum(w * v for w, v in zip(row, inner)) for row in W_2.tolist()]
        total = sum(math.exp(v) for v in logits)
        for c, v in enumerate(logits):
            s = math.exp(v) / total if softmax else sigmoid(v)
            out[b, c] *= 1 + s if open_ else s
    return out.to(x.dtype)


def excite_like(**how):
    return lambda *args: slow_excite(*args, **how)


def excite_cases(seed):
    return [
        (x + torch.linspace(-2, 2, c)[:, None, None], W_1, W_2)
        for k, (b, c, n, h, w) in enumerate(((1, 2, 3, 2, 3), (2, 4, 3, 3, 3), (3, 3, 2, 4, 2)))
        for x, W_1, W_2 in [draws(seed + k, (b, c, h, w), (n, c), (c, n))]
    ]


def blind_to_place(fn):
    x, W_1, W_2 = excite_cases(0)[1]
    return fn(x.roll(1, -1), W_1, W_2), fn(x, W_1, W_2).roll(1, -1)


def row_alone(fn):
    x, W_1, W_2 = excite_cases(1)[2]
    return fn(x[1:2], W_1, W_2), fn(x, W_1, W_2)[1:2]


excite = Exercise(
    "squeeze_excite",
    "warm-up",
    "Squeeze-and-excitation, without biases: how loud each channel of x (b c h w) shall be, by how "
    "much of all channels there is. $z$ = the mean over the pixels, $s = \\text{sigmoid}(W_2\\, "
    "\\text{relu}(W_1 z))$ with `W_1` (k c) and `W_2` (c k). Return each channel times its $s$.",
    squeeze_excite,
    slow_excite,
    excite_cases,
    apart="the package has it as a module, `SqueezeExcite`, with biases and a tap",
    facts=(
        Fact("moved pictures give a moved answer", blind_to_place, 1e-5),
        Fact("a picture alone gets what it gets in a batch", row_alone, 1e-5),
    ),
    mutants=(
        Mutant(
            "the sum over the pixels",
            excite_like(summed=True),
            "It grows with the size of the picture, and the weights fit one size only.",
        ),
        Mutant(
            "the largest pixel",
            excite_like(peak=True),
            "One pixel then decides. Later papers take both; this one takes the mean.",
        ),
        Mutant(
            "no relu",
            excite_like(relu=False),
            "Two matrices without anything between them are one.",
        ),
        Mutant(
            "a softmax over the channels",
            excite_like(softmax=True),
            "Channels would compete, and their number would make all of them quiet.",
        ),
        Mutant(
            "the mean of the batch",
            excite_like(batch=True),
            "A picture then depends on its neighbours.",
        ),
        Mutant(
            "x is added",
            excite_like(open_=True),
            "With x + s x no channel can be shut.",
        ),
    ),
    hints=(
        "`z = x.mean((2, 3))` is (b c).",
        "With the matrices: `(z @ W_1.T).relu() @ W_2.T`, then the sigmoid.",
        "s needs two more axes to meet x: `s[:, :, None, None]`.",
    ),
    about="a weight for each channel, by its mean",
    page=PAGE,
)


# ---- AdaIN ---------------------------------------------------------------------------------------


def slow_adain(
    x, y, exchanged=False, no_mean=False, over_channels=False, variance=False, over_batch=False
):
    """Channel by channel, with sums."""
    if exchanged:
        x, y = y, x
    out = x.clone().double()

    def of(m, b, c):
        part = m[b] if over_channels else m[:, c] if over_batch else m[b, c]
        values = part.flatten().tolist()
        mean = math.fsum(values) / len(values)
        var = math.fsum((v - mean) ** 2 for v in values) / len(values)
        return mean, var if variance else math.sqrt(var)

    for b in range(len(x)):
        for c in range(x.shape[1]):
            mean_x, std_x = of(x, b, c)
            mean_y, std_y = of(y, b, c)
            out[b, c] = (x[b, c].double() - mean_x) / std_x * std_y
            out[b, c] += mean_x if no_mean else mean_y
    return out.to(x.dtype)


def adain_like(**how):
    return lambda *args: slow_adain(*args, **how)


def adain_cases(seed):
    cases = []
    for k, (b, c, h, w) in enumerate(((1, 2, 4, 4), (2, 3, 4, 4), (3, 2, 5, 3))):
        x, y = draws(seed + k, (b, c, h, w), (b, c, h, w))
        loud = torch.arange(1, b * c + 1).view(b, c, 1, 1)
        cases.append((2 * x - 1, loud * y + 0.5 * loud))
    return cases


def own_style(fn):
    x, _ = adain_cases(0)[1]
    return fn(x, x), x


def has_the_means(fn):
    x, y = adain_cases(1)[2]
    return fn(x, y).mean((2, 3)), y.mean((2, 3))


adain = Exercise(
    "adain",
    "warm-up",
    "AdaIN: the features x (b c h w) of one picture with the statistics of another, y (b c h w). "
    "For each channel of each picture, over its pixels: take away the mean of x and divide by its "
    "standard deviation, multiply by the deviation of y and add the mean of y. Deviations divide "
    "by the number of pixels (`correction=0`); no channel is constant.",
    library_adain,
    slow_adain,
    adain_cases,
    facts=(
        Fact("in its own style a picture stays what it was", own_style, 1e-4),
        Fact("the means are those of the style", has_the_means, 1e-4),
    ),
    mutants=(
        Mutant(
            "content and style exchanged",
            adain_like(exchanged=True),
            "The pattern is that of the first, the statistics are those of the second.",
        ),
        Mutant(
            "the mean of x stays",
            adain_like(no_mean=True),
            "Contrast moves and colour does not: add the mean of y.",
        ),
        Mutant(
            "one mean for all channels",
            adain_like(over_channels=True),
            "That is a layer norm. A style is a mean and a deviation for each channel.",
        ),
        Mutant(
            "variance for deviation",
            adain_like(variance=True),
            "The square root is missing: a contrast that is doubled would be quadrupled.",
        ),
        Mutant(
            "one mean for the batch",
            adain_like(over_batch=True),
            "That is a batch norm: a picture then depends on its neighbours.",
        ),
    ),
    hints=(
        "`x.mean((2, 3), keepdim=True)` and `x.std((2, 3), correction=0, keepdim=True)`.",
        "First x to mean 0 and deviation 1, then to those of y.",
        "`std_y * (x - mean_x) / std_x + mean_y`.",
    ),
    about="the statistics of another picture",
    page=PAGE,
)

EXERCISES = (gate, excite, adain)
