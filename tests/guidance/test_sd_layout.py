"""Every guidance runs on Stable Diffusion's layout at a tenth of the width: four levels, 77 tokens
of words; latents of 32 x 32, that is half of its pictures' side.
"""

from dataclasses import replace

import pytest
import torch

import minidiff
from minidiff.core.cond import Cond
from minidiff.core.denoise import sample
from minidiff.guidance import GUIDES
from minidiff.guidance.autoguidance import autoguidance
from minidiff.guidance.cfg_pp import cfg_pp
from minidiff.guidance.dynamic_threshold import dynamic_threshold
from minidiff.guidance.experts import experts
from minidiff.guidance.freeu import freeu
from minidiff.guidance.regions import regional, row_of_windows
from minidiff.models.unet import UNet

WIDTH = 77  # a tenth of 768, as far as eight heads allow it in the attentions
TIME = 600


class Small:
    """The pipe, and conditions of the width that its network reads."""

    def __init__(self):
        net = UNet(channels=(32, 64, 128, 128), heads=8, context=WIDTH).eval().requires_grad_(False)
        pipe = minidiff.build("sd15", device="meta")
        self.pipe = replace(pipe, net=net, vae=None, text=None, tokenizer=None)
        g = torch.Generator().manual_seed(0)
        self.words, self.none = (
            Cond(text=torch.randn(1, 77, WIDTH, generator=g)) for _ in range(2)
        )
        self.pipe.null = lambda n=1: self.none.expand(n)
        self.x = torch.randn(1, 4, 32, 32, generator=g)


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def moves(guided, small):
    """That it answers, with a finite answer of the right shape which is not the plain one."""
    with torch.no_grad():
        plain = small.pipe.eps(small.x, TIME, small.words)
        found = guided(small.x, TIME, small.words)
    assert found.shape == plain.shape and found.isfinite().all()
    return not torch.equal(found, plain)


@pytest.mark.parametrize("name", [name for name in GUIDES if name != "autoguidance"])
def test_a_guidance_of_the_list(small, name):
    guide = GUIDES[name]
    assert moves(guide.make(small.pipe, max(guide.scales)), small)
    assert not moves(guide.make(small.pipe, guide.off), small)


def test_autoguidance(small):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = UNet(channels=(32, 32, 64, 64), heads=8, context=WIDTH).eval()
    bad = replace(small.pipe, net=other.requires_grad_(False))
    assert moves(autoguidance(small.pipe.eps, bad.eps, 2.0), small)


def test_freeu_scales_the_decoder(small):
    assert moves(freeu(small.pipe.eps, small.pipe.net), small)


def test_experts_share_the_times(small):
    T = small.pipe.schedule.T
    both = experts([(0, 500, small.pipe.eps), (500, T, small.pipe.eps)], T)
    assert not moves(both, small)  # they are the same network


def test_a_threshold_outside_all_guidance(small):
    guided = GUIDES["cfg"].make(small.pipe, 8.0)
    assert moves(dynamic_threshold(guided, small.pipe.schedule), small)


@torch.no_grad()
def test_cfg_pp_draws(small):
    sch = small.pipe.schedule
    drawn = cfg_pp(small.pipe.eps, small.none, sch, small.x, small.words, steps=2)
    assert drawn.shape == small.x.shape and drawn.isfinite().all()


@torch.no_grad()
def test_regions_of_a_canvas_twice_as_wide(small):
    windows = row_of_windows([small.words, small.none, small.words], 32, 64)
    guided = regional(small.pipe.eps, windows, (32, 64))
    x = torch.cat([small.x, small.x], dim=3)
    drawn = sample(guided, small.pipe.schedule, x, small.pipe.timesteps(1))
    assert drawn.shape == x.shape and drawn.isfinite().all()
