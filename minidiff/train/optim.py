"""Muon for hidden matrices, AdamW for the rest (Jordan et al.
2024, "Muon"; Loshchilov & Hutter 2017, arXiv 1711.05101).

    M <- mu M + G;   U = orthogonalise(G + mu M);   W <- W - lr (.2 sqrt(max(rows, cols)) U + decay
    W)

Muon replaces the momentum M = A S B^T of a weight matrix by nearly A B^T: every direction moves
equally far, so rare but useful ones (which shape is it?) are learned as fast as common ones (how
noisy is it?). On the toy world this was the difference between a model that never learns shapes and
one that does. Convolutions count as (out, in*kh*kw) matrices. Try changing: `steps` of the
iteration, or `sections` to hand everything to AdamW.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

KINDS = ("muon", "adamw")
FIRST_AND_LAST = ("conv_in.", "conv_out.", "x_embedder.", "final_layer.", "patch_embedding.")
CONDITIONING = (
    "time_embedding.",
    "t_embedder.",
    "class_embedding.",
    "y_embedder.",
    "adaLN_modulation.",
    "token_embedding.",
    "position_embedding.",
    "time_emb_proj.",
)


def sections(net: nn.Module) -> dict[str, str]:
    """Which optimiser takes each trainable parameter: {name: "muon" | "adamw"}.

    Muon: weights with two or more axes inside the network. AdamW: embeddings and conditioning
    layers, first and last layer, norms and biases, and filters of one channel each, which are no
    matrix from channels to channels.
    """

    def kind(name: str, p: Tensor) -> str:
        outside = any(s in name + "." for s in FIRST_AND_LAST + CONDITIONING)
        return "adamw" if p.ndim < 2 or (p.ndim == 4 and p.shape[1] == 1) or outside else "muon"

    return {n: kind(n, p) for n, p in net.named_parameters() if p.requires_grad}


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration: singular values of (..., r,
    c) matrices pushed to about 1 (quintic of Jordan et al.).

    X <- p(X X^T) X repeated is P X with P a product of polynomials of the first Gram matrix, which
    all commute. So only (r, r) matrices are iterated and X is touched twice: a third of the cost
    for a convolution's flat matrices.
    """
    wide = g.shape[-2] <= g.shape[-1]
    x = g.float() if wide else g.float().mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    eye = torch.eye(x.shape[-2], device=x.device)
    product = eye
    for step in range(steps):
        p = 3.4445 * eye - 4.7750 * gram + 2.0315 * gram @ gram
        product = p @ product
        if step < steps - 1:  # nobody reads the last one
            gram = p @ gram @ p
    x = product @ x
    return (x if wide else x.mT).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` refuses convolutions; this one
    flattens them and iterates equal shapes as one batch.
    """

    def __init__(
        self,
        params,
        lr: float = 4e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ):
        super().__init__(
            params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps)
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            mu = group["momentum"]
            lr = group["lr"]
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(mu).add_(p.grad)
                ahead = p.grad.add(momentum, alpha=mu)  # Nesterov
                by_shape[p.shape[0], p[0].numel()].append((p, ahead))
            for (rows, columns), items in by_shape.items():
                matrices = torch.stack([ahead.reshape(rows, columns) for _, ahead in items])
                updates = orthogonalise(matrices, group["steps"])  # n r c
                size = 0.2 * max(rows, columns) ** 0.5
                for (p, _), update in zip(items, updates):
                    p.mul_(1 - lr * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-lr * size)


def optimisers(
    net: nn.Module,
    kind: str = "muon",
    lr: float = 2e-3,
    muon_lr: float = 4e-3,
    weight_decay: float = 0.0,
):
    """[AdamW] or [AdamW, Muon] over the trainable parameters of `net`, split by `sections`."""
    if kind not in KINDS:
        raise ValueError(f"optimiser {kind!r}: expected 'muon' or 'adamw'")
    where = sections(net)
    matrices = []
    others = []
    for name, p in net.named_parameters():
        if p.requires_grad:
            to_muon = kind == "muon" and where[name] == "muon"
            (matrices if to_muon else others).append(p)
    betas = (0.9, 0.99)
    found = [torch.optim.AdamW(others, lr, betas, weight_decay=weight_decay, foreach=True)]
    if matrices:
        found.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
    return found
