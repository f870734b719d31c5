import pytest

import minidiff
from minidiff.analysis.trace import table, trace
from minidiff.train.optim import sections

PUBLISHED = {"sd15": 859_520_964, "dit-xl-2": 675_129_632, "ddpm-cifar10": 35_746_307}


@pytest.mark.parametrize("size, count", PUBLISHED.items())
def test_full_size_networks_have_the_published_number_of_parameters(size, count):
    rows = trace(size)
    assert sum(r["parameters"] for r in rows) == count
    fixed = sum(r["parameters"] - r["muon"] - r["adamw"] for r in rows)
    assert fixed == (rows[0]["parameters"] if rows[0]["name"] == "pos_embed" else 0)


@pytest.mark.parametrize(
    "size, part",
    [
        ("tiny", "net"),
        ("tiny", "vae"),
        ("tiny", "text"),
        ("tiny-dit", "net"),
        ("tiny-pixel", "net"),
    ],
)
def test_rows_add_up_to_the_network_and_to_its_optimisers(size, part):
    net, rows = getattr(minidiff.build(size), part).requires_grad_(True), trace(size, part)
    assert sum(r["parameters"] for r in rows) == sum(p.numel() for p in net.parameters())
    if hasattr(net, "pos_embed"):
        net.pos_embed.requires_grad_(False)
    sizes, where = {n: p.numel() for n, p in net.named_parameters()}, sections(net)
    for kind in ("muon", "adamw"):
        assert sum(r[kind] for r in rows) == sum(sizes[n] for n, k in where.items() if k == kind)
    assert len({r["name"] for r in rows}) == len(rows)


@pytest.mark.parametrize(
    "size, part, shape",
    [
        ("tiny", "net", (1, 4, 16, 16)),
        ("tiny", "vae", (1, 12, 32, 32)),
        ("tiny", "text", (1, 20, 128)),
        ("tiny-pixel", "net", (1, 3, 32, 32)),
    ],
)
def test_blocks_are_listed_in_the_order_they_run(size, part, shape):
    rows = trace(size, part)
    assert rows[-1]["shape"] == shape  # the last to run gives the output
    seen = [r["shape"] is None for r in rows]
    assert seen == sorted(seen, reverse=True)  # what is read and not run comes first


def test_the_table_shows_every_block_and_the_total():
    rows = trace("tiny")
    lines = table(rows).splitlines()
    assert len(lines) == len(rows) + 4
    assert lines[-1].split()[:2] == ["total", f"{sum(r['parameters'] for r in rows):,}"]
    assert any("down_blocks.0.attentions.0" in line and "1 48 16 16" in line for line in lines)


@pytest.mark.parametrize(
    "args, words",
    [
        (("nope",), "size 'nope' is unknown"),
        (("tiny", "unet"), "part 'unet'"),
        (("tiny-pixel", "vae"), "tiny-pixel has no vae"),
    ],
)
def test_what_is_not_there_is_named(args, words):
    with pytest.raises(ValueError, match=words):
        trace(*args)
