import pytest
import torch

import minidiff
from minidiff.guidance.freeu import backbone_widths, freeu, low_frequencies


@pytest.fixture(scope="module")
def tiny():
    return minidiff.build("tiny", seed=0)


def test_ones_change_nothing_to_the_bit_and_other_numbers_do(tiny):
    x, cond = tiny.start(2), tiny.embed(["a red circle", "a blue star"])
    plain = tiny.eps(x, 500, cond)
    assert torch.equal(freeu(tiny.eps, tiny.net, b=(1, 1), s=(1, 1))(x, 500, cond), plain)
    for b, s in (((1.2,), (1.0,)), ((1.0,), (0.5,)), ((1.0, 1.4), (1.0, 1.0))):
        other = freeu(tiny.eps, tiny.net, b=b, s=s)(x, 500, cond)
        assert (other - plain).abs().max() > 1e-4
    assert torch.equal(tiny.eps(x, 500, cond), plain)  # the network is left as it was


def test_the_filter_scales_the_mean_whole_its_neighbours_half_and_nothing_far_away():
    """The published window holds the frequencies -1 and 0 and not 1; the real part shares what is
    done to -1 with 1.
    """
    x = torch.randn(2, 3, 8, 8)
    before = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    after = torch.fft.fftshift(torch.fft.fft2(low_frequencies(x, 0.3)), dim=(-2, -1))
    ratio = after / before
    assert (ratio[..., 4, 4] - 0.3).abs().max() < 1e-3
    assert (ratio[..., 4, 3] - 0.65).abs().max() < 1e-3
    assert (ratio[..., 4, 5] - 0.65).abs().max() < 1e-3
    far = torch.ones(8, 8, dtype=torch.bool)
    far[3:6, 3:6] = False
    assert (ratio[..., far] - 1).abs().max() < 1e-2


def test_backbone_and_skip_are_told_apart(tiny):
    for level, widths in zip(tiny.net.up_blocks, backbone_widths(tiny.net)):
        for block, width in zip(level.resnets, widths):
            assert 0 < width < block.norm1.num_channels
    seen = []
    block, width = tiny.net.up_blocks[0].resnets[0], backbone_widths(tiny.net)[0][0]
    x, cond = tiny.start(1), tiny.embed("a red circle")
    handles = [block.register_forward_pre_hook(lambda m, a: seen.append(a[0]))]
    tiny.eps(x, 500, cond)
    handles.pop().remove()
    guided = freeu(tiny.eps, tiny.net, b=(2.0,), s=(1.0,))

    def inside(x_t, t, c):
        handle = block.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        out = tiny.eps(x_t, t, c)
        handle.remove()
        return out

    freeu(inside, tiny.net, b=(2.0,), s=(1.0,))(x, 500, cond)
    plain, scaled = seen
    assert torch.equal(scaled[:, : width // 2], 2 * plain[:, : width // 2])
    assert torch.equal(scaled[:, width // 2 :], plain[:, width // 2 :])
    assert guided(x, 500, cond).isfinite().all()


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(b=(1.2,), s=(0.9, 0.2)), "as many of each"),
        (dict(b=(1.0,) * 9, s=(1.0,) * 9), "one for each level"),
        (dict(b=(-1.0,), s=(1.0,)), "b=-1.0"),
    ],
)
def test_bad_factors_are_refused(tiny, kw, says):
    with pytest.raises(ValueError, match=says):
        freeu(tiny.eps, tiny.net, **kw)


def test_a_transformer_is_refused():
    dit = minidiff.build("tiny-dit")
    with pytest.raises(ValueError, match="no up_blocks"):
        freeu(dit.eps, dit.net)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(8, 8), (4, 6), (5, 7), (1, 3)])
def test_backbone_and_skip_are_weighed_as_diffusers_does(size):
    from diffusers.utils.torch_utils import apply_freeu

    hidden, skip = torch.randn(2, 6, *size), torch.randn(2, 4, *size)
    b, s = 1.4, 0.2
    theirs, filtered = apply_freeu(0, hidden.clone(), skip, s1=s, s2=0.9, b1=b, b2=1.2)
    ours = torch.cat([b * hidden[:, :3], hidden[:, 3:]], 1)
    assert torch.equal(ours, theirs)
    assert (low_frequencies(skip, s) - filtered).abs().max() < 1e-5
