"""Guidance by inner products."""

import torch

from newcomers import right, wrong


@right("projected_difference")
def _(difference, x0_cond, eta, radius=float("inf")):
    d, x = difference.flatten(1), x0_cond.flatten(1)
    d = d * (radius / d.norm(dim=1, keepdim=True)).clamp(max=1)
    unit = torch.nn.functional.normalize(x, dim=1)
    along = (d * unit).sum(1, keepdim=True) * unit
    return (d + (eta - 1) * along).view_as(difference)


@right("projected_difference")
def _(difference, x0_cond, eta, radius=float("inf")):
    out = []
    for d, x in zip(difference, x0_cond):
        if d.norm() > radius:
            d = d / d.norm() * radius
        parallel = (d * x).sum() / (x * x).sum() * x
        out.append(d - parallel + eta * parallel)
    return torch.stack(out)


@wrong("projected_difference", "the batch")
def _(difference, x0_cond, eta, radius=float("inf")):
    d = difference * min(1.0, radius / difference.norm().item())
    parallel = (d * x0_cond).sum() / (x0_cond * x0_cond).sum() * x0_cond
    return d - parallel + eta * parallel


@wrong("projected_difference", "not squared")
def _(difference, x0_cond, eta, radius=float("inf")):
    d, x = difference.flatten(1), x0_cond.flatten(1)
    d = d * (radius / d.norm(dim=1, keepdim=True)).clamp(max=1)
    along = (d * x).sum(1, keepdim=True) / x.norm(dim=1, keepdim=True) * x
    return (d + (eta - 1) * along).view_as(difference)


@wrong("projected_difference")
def _(difference, x0_cond, eta, radius=float("inf")):
    d, x = difference.flatten(1), x0_cond.flatten(1)
    along = (d * x).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True) * x
    return (d + (eta - 1) * along).view_as(difference)


@right("guide_zero")
def _(v_null, v_cond, scale):
    n, c = v_null.flatten(1), v_cond.flatten(1)
    s = torch.einsum("bi,bi->b", n, c) / torch.einsum("bi,bi->b", n, n)
    start = (s[:, None] * n).view_as(v_null)
    return start + scale * (v_cond - start)


@right("guide_zero")
def _(v_null, v_cond, scale):
    dims = tuple(range(1, v_null.ndim))
    s = (v_null * v_cond).sum(dims, keepdim=True) / (v_null**2).sum(dims, keepdim=True)
    return scale * v_cond + (1 - scale) * s * v_null


@wrong("guide_zero", "s upside down")
def _(v_null, v_cond, scale):
    dims = tuple(range(1, v_null.ndim))
    s = (v_null * v_cond).sum(dims, keepdim=True) / (v_cond**2).sum(dims, keepdim=True)
    return scale * v_cond + (1 - scale) * s * v_null


@wrong("guide_zero", "the batch")
def _(v_null, v_cond, scale):
    s = (v_null * v_cond).sum() / (v_null**2).sum()
    return scale * v_cond + (1 - scale) * s * v_null


@wrong("guide_zero")
def _(v_null, v_cond, scale):
    dims = tuple(range(1, v_null.ndim))
    s = v_cond.norm(dim=dims, keepdim=True) / v_null.norm(dim=dims, keepdim=True)
    return scale * v_cond + (1 - scale) * s * v_null
