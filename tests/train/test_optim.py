"""Muon: what its iteration does to singular values, where it is used, and its step written out."""

import pytest
import torch
from torch import nn

from minidiff.models.clip import CLIP
from minidiff.models.dit import DiT
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.text import CLIPText
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.train.optim import Muon, optimisers, orthogonalise, sections

NETS = {
    "unet": lambda: UNet(
        channels=(8, 16), layers=1, attention=("cross", "cross"), heads=2, context=12, groups=4
    ),
    "pixel": lambda: UNet(
        channels=(8, 16),
        layers=1,
        attention=(None, "self"),
        mid="self",
        heads=2,
        context=None,
        classes=5,
        groups=4,
    ),
    "dit": lambda: DiT(8, 2, 4, 24, 2, 3, classes=5),
    "dit-text": lambda: DiT(8, 2, 4, 24, 2, 3, None, 12),
    "dit-local": lambda: DiT(8, 2, 4, 24, 2, 3, None, 12, local=True),
    "vae": lambda: VAE(channels=(8, 16), layers=1, groups=4, patch=2),
    "clip": lambda: CLIP(
        CLIPText(20, 16, 1, 2, 6, eos_id=2, project_dim=8), CLIPImage(8, 4, 16, 1, 2, 8)
    ),
}
nets = pytest.mark.parametrize("name", NETS)


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(g, steps=5):
    """Jordan et al.'s iteration on the matrix itself, in double precision."""
    x = g.double() / (g.double().norm() + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16), (24, 216)], ids=str)
def test_singular_values_of_well_conditioned_matrices_end_near_one(shape):
    u, _, v = torch.linalg.svd(matrix(*shape), full_matrices=False)
    s = torch.linspace(0.3, 3, min(shape))
    found = torch.linalg.svdvals(orthogonalise(u * s @ v))
    assert 0.6 < found.min() and found.max() < 1.25


def test_singular_vectors_are_kept():
    """U = A p(S) B^T: in the basis of the singular vectors the result is diagonal and positive."""
    g = matrix(12, 20)
    a, _, b = torch.linalg.svd(g, full_matrices=False)
    d = a.mT @ orthogonalise(g) @ b.mT
    assert (d - d.diag().diag()).abs().max() < 1e-4 and d.diag().min() > 0.3


@pytest.mark.parametrize("shape", [(10, 10), (10, 30), (30, 10), (1, 7)], ids=str)
def test_iterating_on_gram_matrices_equals_the_plain_iteration(shape):
    wide = shape[0] <= shape[1]
    g = matrix(*shape)
    want = plain(g) if wide else plain(g.mT).mT
    assert (orthogonalise(g) - want).abs().max() < 1e-4


def test_the_scale_of_the_gradient_does_not_matter_and_its_sign_does():
    g = matrix(8, 12)
    assert (orthogonalise(1e-3 * g) - orthogonalise(1e3 * g)).abs().max() < 1e-3
    assert (orthogonalise(-g) + orthogonalise(g)).abs().max() < 1e-6
    assert orthogonalise(torch.zeros(3, 4)).abs().max() == 0


def test_a_stack_of_matrices_is_treated_one_by_one():
    g = matrix(3, 8, 12)
    assert (orthogonalise(g) - torch.stack([orthogonalise(x) for x in g])).abs().max() < 1e-5
    assert orthogonalise(g.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 6, 1, 1), (6, 9)], ids=str)
def test_two_steps_of_muon_written_out(shape):
    """Momentum, Nesterov look-ahead, orthogonalised as a matrix, scaled by .2 sqrt(largest side);
    decay apart.
    """
    p = nn.Parameter(matrix(*shape))
    opt, w, m = (
        Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5),
        p.detach().clone(),
        torch.zeros(shape),
    )
    for k in range(2):
        g = matrix(*shape, seed=1 + k)
        p.grad = g.clone()
        opt.step()
        m = 0.9 * m + g
        flat = (g + 0.9 * m).flatten(1)
        w = (1 - 0.1 * 0.5) * w - 0.1 * 0.2 * max(flat.shape) ** 0.5 * orthogonalise(flat).view(
            shape
        )
    assert (p - w).abs().max() < 1e-5


def test_muon_moves_convolutions_equally_far_in_every_direction():
    conv = nn.Conv2d(4, 8, 3, bias=False)
    before = conv.weight.detach().clone()
    (conv(matrix(2, 4, 9, 9)) * matrix(2, 8, 7, 7, seed=1)).sum().backward()
    Muon(conv.parameters(), lr=0.5).step()
    moved = torch.linalg.svdvals((before - conv.weight.detach()).flatten(1)) / (0.5 * 0.2 * 36**0.5)
    assert 0.6 < moved.min() and moved.max() < 1.25
    assert torch.linalg.cond(conv.weight.grad.flatten(1)) > 2  # the gradient itself is not so even


def test_equal_shapes_in_one_batch_move_as_they_would_alone():
    together, alone = ([nn.Parameter(matrix(5, 7, seed=s)) for s in range(3)] for _ in range(2))
    for group in (together, alone):
        for s, p in enumerate(group):
            p.grad = matrix(5, 7, seed=10 + s)
    Muon(together).step()
    for p in alone:
        Muon([p]).step()
    assert max((a - b).abs().max() for a, b in zip(together, alone)) < 1e-6


def test_a_parameter_without_gradient_stays():
    a, b = nn.Parameter(matrix(3, 3)), nn.Parameter(matrix(3, 3))
    a.grad = torch.ones(3, 3)
    Muon([a, b], weight_decay=0.1).step()
    assert torch.equal(b, matrix(3, 3)) and not torch.equal(a, b)


@nets
def test_sections_name_every_trainable_parameter_once(name):
    net = NETS[name]()
    assert list(sections(net)) == [n for n, p in net.named_parameters() if p.requires_grad]
    opts = optimisers(net)
    held = [id(p) for o in opts for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    where = sections(net)
    muon = {id(p) for n, p in net.named_parameters() if where.get(n) == "muon"}
    assert {id(p) for g in opts[1].param_groups for p in g["params"]} == muon and muon


@nets
def test_norms_biases_embeddings_and_the_ends_of_the_network_go_to_adamw(name):
    net = NETS[name]()
    where = sections(net)
    for n, p in net.named_parameters():
        ends = any(
            e in n
            for e in ("conv_in.", "conv_out.", "x_embedder", "final_layer.", "patch_embedding")
        )
        embeds = any(e in n for e in ("_embedding", "t_embedder", "y_embedder"))
        if p.requires_grad and (p.ndim < 2 or "norm" in n or ends or embeds):
            assert where[n] == "adamw", n
        if any(
            e in n
            for e in (
                ".to_q.weight",
                "attn.qkv.weight",
                "q_proj.weight",
                "mlp.fc1.weight",
                ".conv1.weight",
            )
        ):
            assert where[n] == "muon", n


def test_what_is_frozen_is_in_no_optimiser():
    net = NETS["vae"]()
    net.encoder.requires_grad_(False)
    assert not any(n.startswith("encoder") for n in sections(net)) and sections(net)
    held = {id(p) for o in optimisers(net) for g in o.param_groups for p in g["params"]}
    assert not held & {id(p) for p in net.encoder.parameters()}


def test_adamw_alone_takes_everything_and_unknown_kinds_are_refused():
    net = NETS["unet"]()
    (only,) = optimisers(net, "adamw", lr=0.5)
    assert (
        len(only.param_groups[0]["params"]) == len(list(net.parameters()))
        and only.param_groups[0]["lr"] == 0.5
    )
    with pytest.raises(ValueError, match=r"'sgd'.*'muon' or 'adamw'"):
        optimisers(net, "sgd")
