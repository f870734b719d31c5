"""The diffusion transformer: its start, its positions, its conditions, and diffusers at reduced
width.
"""

import math

import pytest
import torch

from minidiff.core.cond import Cond
from minidiff.core.taps import tap, tap_names
from minidiff.models.dit import DiT, modulate, position_embedding

SMALL = dict(size=8, patch=2, in_channels=4, dim=24, depth=2, heads=3, classes=5)
TEXT = dict(classes=None, context=12, learn_sigma=False)


def make(seed=0, random=True, **kw):
    """`random` moves every weight off its start, where most of the network is silent."""
    torch.manual_seed(seed)
    net = DiT(**{**SMALL, **kw}).eval()
    if random:
        for p in net.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.2)
    return net


def inputs(b=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    x, text = torch.randn(b, 4, 8, 8, generator=g), torch.randn(b, 6, 12, generator=g)
    return (
        x,
        torch.tensor([7, 421, 990])[:b],
        Cond(label=torch.tensor([0, 3, 5])[:b]),
        Cond(text=text),
    )


@pytest.mark.parametrize("kw", [{}, TEXT], ids=["classes", "text"])
@torch.no_grad()
def test_at_the_start_every_block_is_the_identity_and_the_output_zero(kw):
    net, (x, t, label, text), seen = make(random=False, **kw), inputs(), {}
    net.blocks[0].register_forward_pre_hook(lambda m, args: seen.update({"in": args[0]}))
    with tap(net, r"^blocks\.\d\.out$", lambda h, name: seen.update({name: h})):
        out = net(x, t, text if kw else label)
    assert torch.equal(seen["blocks.0.out"], seen["in"]) and torch.equal(
        seen["blocks.1.out"], seen["in"]
    )
    assert out.abs().max() == 0 and seen["in"].std() > 0.1


def test_a_gradient_leaves_the_start():
    """Zero output weights see a gradient at once, so training is not stuck there."""
    net, (x, t, label, _) = make(random=False), inputs()
    (net(x, t, label) - 1).square().mean().backward()
    assert net.final_layer.linear.weight.grad.abs().max() > 1e-4 and net.pos_embed.grad is None


def test_positions_are_sines_then_cosines_of_the_column_then_of_the_row():
    grid, dim = 4, 16
    table = position_embedding(dim, grid)
    assert table.shape == (1, grid * grid, dim) and table.dtype == torch.float32

    def line(i):
        angles = [i / 10000 ** (k / (dim // 4)) for k in range(dim // 4)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    for row in range(grid):
        for column in range(grid):
            want = torch.tensor(line(column) + line(row))
            assert (table[0, row * grid + column] - want).abs().max() < 1e-6
    assert torch.equal(make(random=False).pos_embed, position_embedding(24, 4))


def test_the_position_table_is_stored_but_not_trained():
    net = make()
    assert "pos_embed" in net.state_dict() and not net.pos_embed.requires_grad
    assert all(p.requires_grad for n, p in net.named_parameters() if n != "pos_embed")


@torch.no_grad()
def test_without_positions_tokens_would_have_no_order():
    net, (x, t, label, _) = make(), inputs()
    net.final_layer.linear.weight.normal_(std=0.2)

    def shift(y):  # by one patch
        return y.roll(2, dims=-1)

    assert (net(shift(x), t, label) - shift(net(x, t, label))).abs().max() > 1e-2
    net.pos_embed.zero_()
    assert (net(shift(x), t, label) - shift(net(x, t, label))).abs().max() < 1e-4


@torch.no_grad()
def test_patches_return_to_their_places():
    """The last layer made to print token number, place in the patch and channel: the output must
    read them in order.
    """
    net, (x, t, label, _) = make(random=False, learn_sigma=False, dim=24), inputs()
    wanted = torch.arange(16.0)
    with tap(net, r"^blocks\.1\.out$", lambda h, name: wanted[None, :, None].expand_as(h)):
        net.final_layer.norm_final = torch.nn.Identity()
        net.final_layer.linear.weight[:, 0] = 100.0  # token n prints 100 n ...
        # ... + place: row * 8 + column * 4 + channel
        net.final_layer.linear.bias.copy_(torch.arange(16.0))
        out = net(x, t, label)
    for c in range(4):
        for i in range(8):
            for j in range(8):
                token, place = (i // 2) * 4 + j // 2, (i % 2) * 8 + (j % 2) * 4 + c
                assert out[0, c, i, j] == 100 * token + place


@torch.no_grad()
def test_a_patch_enters_at_its_own_token():
    net, (x, t, label, _), seen = make(random=True), inputs(), []
    net.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    net(x, t, label)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1  # patch row 1, column 3: token 1 * 4 + 3
    net(changed, t, label)
    assert (seen[0] - seen[1]).abs().amax((0, 2)).nonzero().flatten().tolist() == [7]


@torch.no_grad()
def test_a_missing_label_is_refused_and_every_label_matters():
    net, (x, t, *_) = make(), inputs()
    for cond in (None, Cond(), Cond(extra={"level": torch.zeros(2)})):
        with pytest.raises(ValueError, match=r"class-conditional.*label.*0\.\.5"):
            net(x, t, cond)
    outs = [net(x, t, Cond(label=torch.full((2,), k))) for k in range(6)]  # 5: no class
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outs) for b in outs[:i])


@torch.no_grad()
def test_the_text_variant_reads_every_word():
    net, (x, t, _, cond) = make(**TEXT), inputs()
    out = net(x, t, cond)
    assert out.shape == x.shape
    for word in range(6):
        text = cond.text.clone()
        text[:, word] += 1
        assert (net(x, t, Cond(text=text)) - out).abs().max() > 1e-3
    # word by word, beside the mean state
    with tap(net, r"attn2\.out$", lambda h, name: torch.zeros_like(h)):
        swapped = cond.text.roll(1, dims=1)
        assert (net(x, t, cond) - net(x, t, Cond(text=swapped))).abs().max() < 1e-5
        assert (net(x, t, cond) - net(x, t, Cond(text=cond.text + 1))).abs().max() > 1e-3
    assert (net(x, t, cond) - out).abs().max() == 0


@torch.no_grad()
def test_cross_attention_has_the_taps_of_the_unet():
    net, (x, t, _, cond), seen = make(**TEXT), inputs(), {}
    with tap(net, r"attn2?\.probs$", lambda p, name: seen.update({name: p})):
        watched = net(x, t, cond)
    assert {k: tuple(v.shape) for k, v in seen.items()} == {
        f"blocks.{i}.{a}.probs": (2, 3, 16, n)
        for i in (0, 1)
        for a, n in (("attn", 16), ("attn2", 6))
    }
    assert all((p.sum(-1) - 1).abs().max() < 1e-5 for p in seen.values())
    assert (watched - net(x, t, cond)).abs().max() < 1e-5
    assert not tap_names(make(), r"attn2")


@torch.no_grad()
def test_time_changes_the_output_and_rows_do_not_mix():
    net, (x, t, label, _) = make(), inputs(3)
    out = net(x, t, label)
    assert out.shape == (3, 8, 8, 8)  # twice the channels: noise and variance
    assert (net(x, t - 5, label) - out).abs().amax((1, 2, 3)).min() > 1e-3
    for i in range(3):
        assert (net(x[i : i + 1], t[i : i + 1], label[i]) - out[i : i + 1]).abs().max() < 1e-4


def test_modulation_is_x_times_one_plus_scale_plus_shift():
    x = torch.ones(2, 3, 4)
    out = modulate(x, torch.tensor([[10.0] * 4, [0.0] * 4]), torch.tensor([[0.0] * 4, [2.0] * 4]))
    assert torch.equal(out[0], torch.full((3, 4), 11.0)) and torch.equal(
        out[1], torch.full((3, 4), 3.0)
    )


@torch.no_grad()
def test_slots_run_between_self_attention_and_what_follows():
    log = []

    class Slot(torch.nn.Module):
        def forward(self, x, cond):
            log.append("slot")
            return x.roll(1, dims=-1)

    net, (x, t, _, cond) = make(**TEXT), inputs()
    plain = net(x, t, cond)
    net.blocks[1].slots.append(Slot())
    with (
        tap(net, r"^blocks\.1\.attn\.out$", lambda h, name: log.append("self")),
        tap(net, r"^blocks\.1\.attn2\.q$", lambda h, name: log.append("cross")),
    ):
        assert (net(x, t, cond) - plain).abs().max() > 1e-3
    assert log == ["self", "slot", "cross"]


def rename(key):
    """Our name -> diffusers' for what is only named differently."""
    for ours, theirs in (
        ("x_embedder.proj.", "pos_embed.proj."),
        ("blocks.", "transformer_blocks."),
        ("final_layer.adaLN_modulation.1.", "proj_out_1."),
        ("final_layer.linear.", "proj_out_2."),
        ("adaLN_modulation.1.", "norm1.linear."),
        ("attn.proj.", "attn1.to_out.0."),
        ("mlp.fc1.", "ff.net.0.proj."),
        ("mlp.fc2.", "ff.net.2."),
    ):
        key = key.replace(ours, theirs)
    return key


@pytest.mark.oracle
@torch.no_grad()
def test_the_class_conditional_transformer_equals_diffusers():
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    net, state = make(), {}
    for k, v in net.state_dict().items():
        if k.startswith(("t_embedder", "y_embedder")):  # diffusers keeps a copy in every block
            for i in range(2):
                name = {
                    "t_embedder.mlp.0": "timestep_embedder.linear_1",
                    "t_embedder.mlp.2": "timestep_embedder.linear_2",
                    "y_embedder.embedding_table": "class_embedder.embedding_table",
                }[k.rsplit(".", 1)[0]]
                state[f"transformer_blocks.{i}.norm1.emb.{name}.{k.rsplit('.', 1)[1]}"] = v
        elif "qkv" in k:
            for part, third in zip("qkv", v.chunk(3)):
                state[rename(k).replace("attn.qkv", f"attn1.to_{part}")] = third
        elif k != "pos_embed":
            state[rename(k)] = v
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra and all(k == "pos_embed.pos_embed" for k in missing)
    for block in theirs.transformer_blocks:  # its frequencies end at 1 / 10000; the paper's do not
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x, t, cond, _ = inputs(3)
    want = theirs(x, t, class_labels=cond.label).sample
    assert (net(x, t, cond) - want).abs().max() <= 1e-4 * want.abs().max() and want.std() > 0.1


@torch.no_grad()
def test_local_filters_start_as_nothing_and_then_reach_the_eight_neighbours():
    """Of the MLP alone: at the start it is the paper's; later token 27 (row 3, column 3) is seen
    one token around.
    """
    plain, near = (
        make(random=False, size=16, local=local).blocks[0].mlp for local in (False, True)
    )
    near.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 64, 24, generator=torch.Generator().manual_seed(0))
    assert (near(x) - plain(x)).abs().max() < 1e-6
    torch.nn.init.normal_(near.conv.weight)
    changed = x.clone()
    changed[:, 27] += 1
    seen = (near(changed) - near(x)).abs().amax((0, 2)) > 1e-6
    assert seen.nonzero().flatten().tolist() == [18, 19, 20, 26, 27, 28, 34, 35, 36]


def test_the_filters_are_all_that_local_adds():
    added = make(local=True).state_dict().keys() - make().state_dict().keys()
    assert added == {f"blocks.{i}.mlp.conv.{p}" for i in range(2) for p in ("weight", "bias")}
