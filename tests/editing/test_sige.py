"""SIGE: exact where it can be exact (everything, nothing,
a net of convolutions alone), counted everywhere.
"""

import pytest
import torch
from torch import nn

import minidiff
from minidiff.editing.sdedit import sdedit
from minidiff.editing.sige import (
    Memory,
    changed_mask,
    compare,
    normalise,
    sige,
    sparse_conv,
    statistics,
    watched,
)

SOURCE, TARGET = "a red circle on a blue background", "a green circle on a blue background"


@pytest.fixture(scope="module")
def changed(image):
    x = image.clone()
    x[0, :, 20:30, 12:20] = 0.5
    x[1, :, 40:44, 40:60] = -0.5
    return x


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(net, memory, fn, *args, kinds=None):
    with torch.no_grad(), watched(net, fn, **({"kinds": kinds} if kinds else {})):
        return net(*args)


@pytest.mark.parametrize(
    "k, stride, pad", [(3, 1, 1), (1, 1, 0), (3, 2, 1), (3, 2, 0), (5, 1, 2), (2, 2, 0)]
)
@pytest.mark.parametrize("tile", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_every_tile_of_a_convolution_together_is_the_convolution(k, stride, pad, tile, groups):
    conv, x = nn.Conv2d(3, 6, k, stride, pad, groups=groups), rand(2, 3, 11, 14)
    with torch.no_grad():
        y = conv(x)
        kept = torch.full_like(y, 7.0)
        out, share = sparse_conv(conv, x, kept, torch.ones(2, 1, *y.shape[-2:]), tile)
        assert (out - y).abs().max() < 1e-5 and share == 1
        nothing, share = sparse_conv(conv, x, kept, torch.zeros(2, 1, *y.shape[-2:]), tile)
        assert torch.equal(nothing, kept) and share == 0


def test_only_the_tiles_that_touch_the_mask_are_computed():
    conv, x = nn.Conv2d(3, 5, 3, padding=1), rand(2, 3, 8, 8)
    mask, kept = torch.zeros(2, 1, 8, 8), rand(2, 5, 8, 8, seed=1)
    mask[0, 0, 2, 5] = mask[1, 0, 7, 7] = 1
    with torch.no_grad():
        out, share = sparse_conv(conv, x, kept, mask, 2)
        y = conv(x)
    where = torch.zeros(2, 1, 8, 8)
    where[0, :, 2:4, 4:6] = where[1, :, 6:, 6:] = 1  # the tiles, not the pixels; each row its own
    assert (out - (where * y + (1 - where) * kept)).abs().max() < 1e-5
    assert torch.equal(out * (1 - where), kept * (1 - where)) and share == 2 / 32


def convolutions():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1)
        ).double()


def test_a_net_of_convolutions_is_exact_if_the_mask_covers_the_receptive_field():
    net, x = convolutions(), rand(1, 3, 16, 16).double()
    z = x.clone()
    z[..., 6:9, 5:8] += 1
    with torch.no_grad():
        y = net(z)
    for grow, exact in ((2, True), (0, False)):  # two 3x3 layers see two pixels around
        m = torch.zeros(1, 1, 16, 16, dtype=torch.double)
        m[..., 6 - grow : 9 + grow, 5 - grow : 8 + grow] = 1
        memory = Memory(1, m)
        run(net, memory, memory.record, x)
        assert ((run(net, memory, memory.sparse, z) - y).abs().max() < 1e-12) == exact
        assert 0 < memory.macs < 0.3 * memory.dense


def test_multiply_adds_are_counted_as_on_paper():
    net, x = convolutions(), rand(1, 3, 16, 16).double()
    m = torch.zeros(1, 1, 16, 16, dtype=torch.double)
    m[..., :4, :4] = 1
    memory = Memory(4, m)
    run(net, memory, memory.record, x)
    run(net, memory, memory.sparse, x)
    assert memory.dense == 2 * 16 * 16 * 3 * 8 * 9 and memory.macs == memory.dense // 16


def test_statistics_from_elsewhere_make_the_same_norm():
    norm, x, y = nn.GroupNorm(4, 8), rand(2, 8, 5, 6), rand(2, 8, 5, 6, seed=1)
    with torch.no_grad():
        norm.weight.copy_(rand(8)), norm.bias.copy_(rand(8, seed=3))
        assert (normalise(norm, x, *statistics(norm, x)) - norm(x)).abs().max() < 1e-5
        a = normalise(norm, y, *statistics(norm, x))
        y[0, :, 0, 0] += 5
        b = normalise(norm, y, *statistics(norm, x))
    # one pixel changed, one pixel comes out changed
    assert ((a - b).abs().sum(1) > 1e-6).sum() == 1


def inputs(pipe, seed):
    return rand(2, 4, 16, 16, seed=seed), torch.tensor([300, 700]), pipe.embed([SOURCE, TARGET])


def test_nothing_changed_returns_what_was_kept_exactly(pipe):
    memory = Memory(2, torch.zeros(2, 1, 16, 16))
    y = run(pipe.net, memory, memory.record, *inputs(pipe, 0))
    assert torch.equal(run(pipe.net, memory, memory.sparse, *inputs(pipe, 1)), y)


def test_everything_changed_is_the_dense_net_with_the_statistics_kept(pipe):
    memory = Memory(2, torch.ones(2, 1, 16, 16))
    run(pipe.net, memory, memory.record, *inputs(pipe, 0))
    norms = Memory(2, torch.ones(2, 1, 16, 16), kept=memory.kept)
    expected = run(pipe.net, norms, norms.sparse, *inputs(pipe, 1), kinds=(nn.GroupNorm,))
    assert (run(pipe.net, memory, memory.sparse, *inputs(pipe, 1)) - expected).abs().max() < 1e-5
    with torch.no_grad():
        # the statistics are the approximation
        assert (pipe.net(*inputs(pipe, 1)) - expected).abs().max() > 1e-4
    assert memory.macs == memory.dense


def test_recording_changes_nothing_and_layers_come_back(pipe):
    before = {n: m for n, m in pipe.net.named_modules()}
    memory = Memory(2, torch.ones(2, 1, 16, 16))
    with torch.no_grad():
        y = pipe.net(*inputs(pipe, 0))
    assert torch.equal(run(pipe.net, memory, memory.record, *inputs(pipe, 0)), y)
    with pytest.raises(RuntimeError), watched(pipe.net, memory.record):
        raise RuntimeError
    assert {n: m for n, m in pipe.net.named_modules()} == before


def test_the_same_picture_changes_nowhere(pipe, image):
    r = compare(pipe, image, SOURCE, SOURCE, changed=image, steps=4)
    assert r["mask"].sum() == 0 and r["sparse"].isfinite().all()
    assert (r["sparse"] - r["dense"]).abs().max() < 1e-4  # the kept run, replayed
    assert r["macs"] < 0.5  # attention's products, words and time remain


def test_the_sparse_run_is_near_the_dense_one_where_the_picture_did_not_change(
    pipe, image, changed
):
    r = compare(pipe, image, SOURCE, SOURCE, changed=changed, steps=6, grow=2)
    assert 0 < r["macs"] < 1 and r["sparse"].shape == image.shape
    assert (r["dense"] - sdedit(pipe, changed, SOURCE, strength=0.5, steps=6)).abs().max() == 0
    wide, narrow = (
        compare(pipe, image, SOURCE, SOURCE, changed=changed, steps=6, grow=g)["macs"]
        for g in (3, 0)
    )
    assert narrow < r["macs"] < wide


def test_the_mask_is_where_the_pictures_differ(pipe, image, changed):
    m = changed_mask(pipe, image, changed, grow=0)
    # pixels 20..29 x 12..19 in cells of 4
    assert m[0].sum() == 3 * 2 and m[0, 0, 5:8, 3:5].min() == 1
    assert changed_mask(pipe, image, changed, grow=1)[0].sum() == 5 * 4
    assert changed_mask(pipe, image, image + 0.03).sum() == 0


def test_more_calls_than_were_kept_are_told(pipe):
    memory = Memory(2, torch.ones(2, 1, 16, 16))
    run(pipe.net, memory, memory.record, *inputs(pipe, 0))
    run(pipe.net, memory, memory.sparse, *inputs(pipe, 0))
    with pytest.raises(ValueError, match="the first run called it 1 times"):
        run(pipe.net, memory, memory.sparse, *inputs(pipe, 0))


def test_transformers_and_pixel_models_run_sparsely_too(image, changed):
    for size, scale in (("tiny-dit", 1), ("tiny-pixel", 2)):
        prompts = ("red circle", "green circle") if size == "tiny-pixel" else (SOURCE, TARGET)
        pair = [x[..., ::scale, ::scale] for x in (image, changed)]
        r = compare(minidiff.build(size), pair[0], *prompts, changed=pair[1], steps=2)
        assert r["sparse"].isfinite().all() and r["macs"] < 0.9


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(changed=-torch.ones(2, 3, 32, 32)), "expected the same shape"),
        (dict(tile=0), "tile=0"),
        (dict(grow=-1), "grow=-1"),
        (dict(strength=1.5), "strength=1.5"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1.0"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, changed, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        sige(pipe, image, SOURCE, TARGET, **{"changed": changed, "steps": 2} | bad)
