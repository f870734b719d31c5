"""CLIP: the contrastive loss against closed forms, and a pair of towers that learns a handful of
pairs.
"""

from math import exp, log

import pytest
import torch

from minidiff.models.clip import CLIP, contrastive_loss
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.text import CLIPText


def tiny(seed=0, to_text=16, to_image=16):
    torch.manual_seed(seed)
    return CLIP(
        CLIPText(20, 32, 2, 4, 6, eos_id=2, project_dim=to_text),
        CLIPImage(8, 4, 32, 2, 4, to_image),
    )


def pairs(n=8):
    g = torch.Generator().manual_seed(0)
    ids = torch.cat(
        [torch.ones(n, 1), torch.arange(3, 3 + n)[:, None], torch.full((n, 1), 2)], dim=1
    ).long()
    return torch.rand(n, 3, 8, 8, generator=g) * 2 - 1, ids


def test_equal_logits_cost_log_n_and_sharp_true_pairs_cost_nothing():
    assert contrastive_loss(torch.zeros(8, 8)).item() == pytest.approx(log(8), abs=1e-6)
    assert contrastive_loss(100 * torch.eye(8)).item() < 1e-6


def test_loss_is_the_mean_of_both_directions():
    logits = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    rows = (log(1 + exp(2)) + log(2)) / 2  # picture 0 prefers the wrong caption
    columns = (log(2) + log(1 + exp(2))) / 2
    assert contrastive_loss(logits).item() == pytest.approx((rows + columns) / 2, abs=1e-6)
    three = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    assert contrastive_loss(three).item() == pytest.approx(
        contrastive_loss(three.T).item(), abs=1e-6
    )


def test_logits_are_cosines_at_the_papers_first_temperature():
    net, (image, ids) = tiny(), pairs()
    logits = net(image, ids)
    assert logits.shape == (8, 8)
    assert (net.embed_text(ids).norm(dim=-1) - 1).abs().max() < 1e-5
    cosine = torch.cosine_similarity(
        net.image(image)[3], net.text.pooled(net.text(ids), ids)[5], dim=0
    )
    assert logits[3, 5].item() == pytest.approx(cosine.item() / 0.07, abs=1e-4)


def test_the_temperature_stays_below_100():
    net, (image, ids) = tiny(), pairs()
    with torch.no_grad():
        net.logit_scale.fill_(20.0)
    assert net(image, ids).abs().max() <= 100 + 1e-3


def test_training_pairs_each_picture_with_its_caption():
    net, (image, ids) = tiny(), pairs()
    opt = torch.optim.AdamW(net.parameters(), 2e-3)
    first = contrastive_loss(net(image, ids)).item()
    for _ in range(30):
        opt.zero_grad()
        loss = contrastive_loss(net(image, ids))
        loss.backward()
        opt.step()
    assert all(p.grad is not None for p in net.parameters())
    assert loss.item() < 0.2 * first
    assert torch.equal(net(image, ids).argmax(dim=1), torch.arange(8))


def test_towers_that_cannot_meet_are_refused():
    for dims in ((16, 8), (None, 16)):
        with pytest.raises(ValueError, match="same project_dim"):
            tiny(0, *dims)
    with pytest.raises(ValueError, match="expected a square"):
        contrastive_loss(torch.zeros(2, 3))
