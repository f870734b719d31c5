"""Gates of features."""

import torch
import torch.nn.functional as F

from newcomers import right, wrong


@right("attention_gate")
def _(x, g, W_x, W_g, psi):
    q = F.conv2d(x, W_x[:, :, None, None]) + F.conv2d(g, W_g[:, :, None, None])
    alpha = F.conv2d(F.relu(q), psi[None, :, None, None]).sigmoid()
    return x * alpha


@right("attention_gate")
def _(x, g, W_x, W_g, psi):
    last = x.permute(0, 2, 3, 1) @ W_x.T + g.permute(0, 2, 3, 1) @ W_g.T
    alpha = 1 / (1 + torch.exp(-(last.clamp(min=0) * psi).sum(-1)))
    return x * alpha.unsqueeze(1)


@wrong("attention_gate", "g is gated")
def _(x, g, W_x, W_g, psi):
    q = F.conv2d(x, W_x[:, :, None, None]) + F.conv2d(g, W_g[:, :, None, None])
    return g * F.conv2d(F.relu(q), psi[None, :, None, None]).sigmoid()


@wrong("attention_gate", "no relu")
def _(x, g, W_x, W_g, psi):
    q = F.conv2d(x, W_x[:, :, None, None]) + F.conv2d(g, W_g[:, :, None, None])
    return x * F.conv2d(q, psi[None, :, None, None]).sigmoid()


@wrong("attention_gate")
def _(x, g, W_x, W_g, psi):
    q = F.conv2d(x, W_x[:, :, None, None]) * F.conv2d(g, W_g[:, :, None, None])
    return x * F.conv2d(F.relu(q), psi[None, :, None, None]).sigmoid()


@right("squeeze_excite")
def _(x, W_1, W_2):
    z = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return x * F.linear(F.relu(F.linear(z, W_1)), W_2).sigmoid()[..., None, None]


@right("squeeze_excite")
def _(x, W_1, W_2):
    out = []
    for picture in x:
        z = picture.flatten(1).mean(1)
        s = torch.sigmoid(W_2 @ torch.relu(W_1 @ z))
        out.append(picture * s.view(-1, 1, 1))
    return torch.stack(out)


@wrong("squeeze_excite", "the sum over the pixels")
def _(x, W_1, W_2):
    z = x.sum((2, 3))
    return x * F.linear(F.relu(F.linear(z, W_1)), W_2).sigmoid()[..., None, None]


@wrong("squeeze_excite", "the largest pixel")
def _(x, W_1, W_2):
    z = x.amax((2, 3))
    return x * F.linear(F.relu(F.linear(z, W_1)), W_2).sigmoid()[..., None, None]


@wrong("squeeze_excite")
def _(x, W_1, W_2):
    z = x.mean((2, 3))
    return F.linear(F.relu(F.linear(z, W_1)), W_2).sigmoid()[..., None, None].expand_as(x)


@right("adain")
def _(x, y):
    dims = (2, 3)
    unit = (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True, correction=0)
    return unit * y.std(dims, keepdim=True, correction=0) + y.mean(dims, keepdim=True)


@right("adain")
def _(x, y):
    # both deviations divide by n - 1, so their ratio is the same
    a, b = x.flatten(2), y.flatten(2)
    ratio = b.std(2, keepdim=True) / a.std(2, keepdim=True)
    return ((a - a.mean(2, keepdim=True)) * ratio + b.mean(2, keepdim=True)).view_as(x)


@right("adain")
def _(x, y):
    b, c = x.shape[:2]
    mean = y.mean((2, 3)).view(b, c, 1, 1)
    var = y.var((2, 3), correction=0).view(b, c, 1, 1)
    return F.instance_norm(x, eps=0) * var.sqrt() + mean


@wrong("adain", "content and style exchanged")
def _(x, y):
    dims = (2, 3)
    unit = (y - y.mean(dims, keepdim=True)) / y.std(dims, keepdim=True, correction=0)
    return unit * x.std(dims, keepdim=True, correction=0) + x.mean(dims, keepdim=True)


@wrong("adain", "one mean for the batch")
def _(x, y):
    dims = (0, 2, 3)
    unit = (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True, correction=0)
    return unit * y.std(dims, keepdim=True, correction=0) + y.mean(dims, keepdim=True)


@wrong("adain", "one mean for all channels")
def _(x, y):
    dims = (1, 2, 3)
    unit = (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True, correction=0)
    return unit * y.std(dims, keepdim=True, correction=0) + y.mean(dims, keepdim=True)


@wrong("adain")
def _(x, y):
    unit = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, correction=0)
    return unit * (1 + y.std((2, 3), keepdim=True, correction=0)) + y.mean((2, 3), keepdim=True)
