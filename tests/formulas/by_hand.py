"""What the tests of equations share. Each computes an equation of a page by hand, in another way
than the code: loops, densities on a grid, closed forms, differences in place of gradients; float64,
small random numbers.

A page marks an equation by `<!-- formula NAME -->`, beside its pass mark, on the line above it;
`test_NAME` in this folder computes it, and `test_marks.py` sees that none of the two is without the
other.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.taps import Tap
from minidiff.data.shapes import VOCAB
from minidiff.models.attention import Attention
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.pipe import Pipe

TABLES = (schedule.linear(), schedule.cosine(), schedule.flow(), schedule.ve())
MOVES = ((1000, 700), (700, 699), (400, 1), (20, 10))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(v):
    return torch.tensor([[v]], dtype=torch.float64)


def near(got, want, tolerance=1e-9):
    got, want = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (got, want))
    assert got.shape == want.shape or not got.ndim
    gap = ((got - want).abs() / want.abs().clamp_min(1)).max().item()
    assert gap <= tolerance, f"off by {gap:.3g}"


def tables(sch, *times):
    return [v for t in times for v in (sch.alpha[t].item(), sch.sigma[t].item())]


def by_rows(x_t, t, cond):
    """A network that is no special case: curved in x, different in every t and row of the
    condition.
    """
    k = cond.extra["k"].view(-1, *[1] * (x_t.ndim - 1)) if cond is not None and cond.extra else 0.0
    return (
        torch.sin(x_t * 1.3 + k) * 0.5
        + x_t.roll(1, -1) * 0.2
        + torch.as_tensor(t).double().sin() * 0.1
    )


def words(*k):
    return Cond(extra={"k": torch.tensor(k, dtype=torch.float64)})


def slope(f, x, h=1e-5):
    """The gradient at x of f, a number, by differences."""
    out = torch.zeros_like(x).flatten()
    for i in range(x.numel()):
        step = torch.zeros_like(out)
        step[i] = h
        step = step.view_as(x)
        with torch.no_grad():
            out[i] = (f(x + step) - f(x - step)) / (2 * h)
    return out.view_as(x)


def weight_slope(f, p):
    """The gradient of f(), a number, with respect to a weight."""
    kept = p.data

    def at(v):
        p.data = v
        return f()

    try:
        return slope(at, kept)
    finally:
        p.data = kept


class Descent:
    """Plain gradient descent, to take Adam's place: of its steps a difference tells all."""

    def __init__(self, params, lr):
        self.params, self.lr = list(params), lr

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self):
        for p in self.params:
            p.data = p.data - self.lr * p.grad


# ---- steps, written out --------------------------------------------------------------------------


def noised(sch, z, t, n):
    al, sg = tables(sch, t)
    return al * z + sg * n


def foreseen(sch, x, eps, t):
    al, sg = tables(sch, t)
    return (x - sg * eps) / al


def move(sch, x, eps, t, s):
    return noised(sch, foreseen(sch, x, eps, t), s, eps)


def guided(pipe, x, t, cond, w):
    e, e_null = pipe.eps(x, t, cond).detach(), pipe.eps(x, t, pipe.null()).detach()
    return w * e + (1 - w) * e_null


# ---- small models --------------------------------------------------------------------------------


class Reader(nn.Module):
    """A network that reads text: curved in x, other at every time and for every word. It notes what
    it is asked.
    """

    def __init__(self):
        super().__init__()
        self.in_channels, self.asked, self.attn2 = 3, [], nn.Module()
        self.attn2.to_k = nn.Linear(3, 3, bias=False)
        self.attn2.to_k.weight = nn.Parameter(rand(3, 3, seed=11))
        self.mix = nn.Parameter(rand(3, 3, seed=12) * 0.7)

    def forward(self, x, t, cond):
        self.asked.append(x.detach())
        said = torch.tanh(self.attn2.to_k(cond.text)).mean(1)[:, :, None, None]
        out = torch.sin(torch.einsum("bchw,cd->bdhw", x, self.mix) + 3 * said) + 0.2 * x.roll(1, -1)
        return out + (t / 300).sin().view(-1, 1, 1, 1) * 0.1


class Stack(nn.Module):
    """Three blocks of self- and cross-attention over the 16 pixels, with the taps of a
    transformer.
    """

    def __init__(self):
        super().__init__()
        self.first, self.last, self.blocks = nn.Linear(3, 4), nn.Linear(4, 3), nn.ModuleList()
        for _ in range(3):
            block = nn.Module()
            block.attn, block.attn2, block.out = Attention(4, 2), Attention(4, 2, context=3), Tap()
            self.blocks.append(block)
        self.double()
        for k, p in enumerate(self.parameters()):
            p.data = rand(*p.shape, seed=100 + k) * 0.8

    def forward(self, x, t, cond):
        h = self.first(x.flatten(2).mT) + t.view(-1, 1, 1) / 1000
        for block in self.blocks:
            h = h + block.attn(h)
            h = block.out(torch.tanh(h + block.attn2(h, cond.text)))
        return self.last(h).mT.unflatten(2, (4, 4))


def look(module, x, context, layer, seen, given):
    """Attention head by head; `seen` gets what it made, and what stands in `given` replaces it."""
    for kind, source in (("q", x), ("k", context), ("v", context)):
        seen[layer, kind] = getattr(module, "to_" + kind)(source)
    q, k, v = (given.get((layer, kind), seen[layer, kind]) for kind in "qkv")
    heads = []
    for part in (slice(0, 2), slice(2, 4)):
        seen[layer, "probs", part.start // 2] = p = (q[:, part] @ k[:, part].T / 2**0.5).softmax(1)
        heads.append(p @ v[:, part])
    return module.to_out[0](torch.cat(heads, 1))


@torch.no_grad()
def stack(pipe, x, t, cond, given=None):
    """(eps, all that was seen) of a pipe's Stack for one row (1 3 4 4), without its taps; `given`
    as in `look`.
    """
    net, seen, given = pipe.net, {}, given or {}
    h = net.first(x[0].flatten(1).T) + (t - 1) / 1000
    for i, block in enumerate(net.blocks):
        h = h + look(block.attn, h, h, i, seen, given)
        seen[i, "out"] = torch.tanh(
            h + look(block.attn2, h, cond.text[0], (i, "text"), seen, given)
        )
        h = given.get((i, "out"), seen[i, "out"])
    return net.last(h).T.reshape(1, 3, 4, 4), seen


class Thirds(nn.Module):
    """An autoencoder: a number u = 3 image for each of a picture's, and the latent z = u / 2."""

    factor, scale = 1, 0.5

    def to_latent(self, image):
        return image * 3 * self.scale

    def decode(self, u):
        return u / 3

    def to_image(self, z):
        return self.decode(z / self.scale)


class Judge(nn.Module):
    """A CLIP: patches (16 pixels and one more) through two layers, words added up; unit vectors."""

    def __init__(self):
        super().__init__()
        self.logit_scale, self.image, self.words = (
            nn.Parameter(torch.zeros(())),
            nn.Module(),
            nn.Embedding(50, 4),
        )
        self.image.layers = nn.ModuleList([nn.Module(), nn.Module()])
        self.words.weight = nn.Parameter(rand(50, 4, seed=21))
        for layer, w in zip(self.image.layers, self.weights()):
            layer.w, layer.out = nn.Parameter(w), Tap()

    @staticmethod
    def weights():
        return rand(3, 5, seed=22), rand(5, 4, seed=23)

    def embed_image(self, image):
        h = torch.cat([torch.ones_like(image[:, :, 0, :1]), image.flatten(2)], 2).mT
        for layer in self.image.layers:
            h = layer.out(torch.tanh(h @ layer.w))
        return F.normalize((h * torch.arange(1, 18)[:, None]).sum(1), dim=1)

    def embed_text(self, ids):
        return F.normalize(self.words(ids).sum(1), dim=1)


def small(net=None, sch=None):
    """A pipe of 3 x 4 x 4 latents around a small network."""
    tokenizer = Tokenizer.words(VOCAB)
    text = nn.Embedding(len(tokenizer), 3)
    text.weight = nn.Parameter(rand(len(tokenizer), 3, seed=31))
    return Pipe(
        net or Reader(),
        sch or schedule.linear(),
        (3, 4, 4),
        vae=Thirds(),
        text=text,
        tokenizer=tokenizer,
    )


def picture(b=1, seed=41):
    return (rand(b, 3, 4, 4, seed=seed) * 0.5).clamp(-1, 1)


def middle(b=1):
    """A mask (b 1 4 4)."""
    m = torch.zeros(b, 1, 4, 4, dtype=torch.float64)
    m[..., 1:3, 2:] = 1
    return m
