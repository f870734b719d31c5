"""Attention against its formula; masks; taps; the pieces of the transformer block."""

import math

import pytest
import torch

from minidiff.core.cond import Cond
from minidiff.core.taps import tap
from minidiff.models.attention import (
    GEGLU,
    TAPS,
    Attention,
    PixelLinear,
    SpatialAttention,
    SpatialTransformer,
    TransformerBlock,
)

B, N, M, DIM, HEADS, CONTEXT = 2, 9, 5, 24, 4, 16


def make(seed=0, **kw):
    torch.manual_seed(seed)
    return Attention(DIM, HEADS, **kw)


def tokens(n=N, dim=DIM, seed=1):
    return torch.randn(B, n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cross():
    return make(context=CONTEXT), tokens(), tokens(M, CONTEXT, 2)


def look(x, name):
    return None


def test_attention_is_the_formula_head_by_head(cross):
    net, x, c = cross
    q, k, v, d = net.to_q(x), net.to_k(c), net.to_v(c), DIM // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * d, (h + 1) * d)
        weights = torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(d), dim=-1)
        heads.append(weights @ v[..., part])
    assert (net(x, c) - net.to_out[0](torch.cat(heads, dim=-1))).abs().max() < 1e-6


@pytest.mark.parametrize("pattern", ["logits$", "probs$", ""], ids=["logits", "probs", "all"])
@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
def test_the_explicit_path_equals_the_fused_one(cross, pattern, masked):
    net, x, c = cross
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]]) if masked else None
    with tap(net, pattern, look):
        explicit = net(x, c, mask)
    assert (explicit - net(x, c, mask)).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_looking_without_maps_leaves_the_fused_path_and_every_bit(cross, name):
    net, x, c = cross
    with tap(net, f"^{name}$", lambda y, name: y.clone()):
        assert torch.equal(net(x, c), net(x, c))
        watched = net(x, c)
    assert torch.equal(watched, net(x, c))


def test_the_six_taps_see_the_shapes_they_promise(cross):
    net, x, c = cross
    seen = {}
    with tap(net, "", lambda y, name: seen.update({name: tuple(y.shape)})):
        net(x, c)
    d = DIM // HEADS
    assert tuple(seen) == TAPS and seen == {
        "q": (B, HEADS, N, d),
        "k": (B, HEADS, M, d),
        "v": (B, HEADS, M, d),
        "logits": (B, HEADS, N, M),
        "probs": (B, HEADS, N, M),
        "out": (B, N, DIM),
    }


def test_probs_are_the_softmax_of_logits_and_sum_to_one(cross):
    net, x, c = cross
    seen = {}
    with tap(net, "logits|probs", lambda y, name: seen.update({name: y})):
        net(x, c)
    assert (seen["logits"].softmax(-1) - seen["probs"]).abs().max() == 0
    assert (seen["probs"].sum(-1) - 1).abs().max() < 1e-6
    q, k = (
        p(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p, y in ((net.to_q, x), (net.to_k, c))
    )
    assert (seen["logits"] - q @ k.mT / math.sqrt(DIM // HEADS)).abs().max() < 1e-6


@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
def test_a_masked_token_is_as_good_as_absent(cross, explicit):
    net, x, c = cross
    mask = torch.tensor([[1, 1, 1, 0, 0]]).expand(B, -1)
    other = c.clone()
    other[:, 3:] += 100.0
    with tap(net, "probs" if explicit else "out", look):
        short, hidden, changed = net(x, c[:, :3]), net(x, c, mask), net(x, other, mask)
        assert (hidden - short).abs().max() < 1e-6 and (changed - hidden).abs().max() < 1e-6
        assert (net(x, c) - short).abs().max() > 1e-2


def test_masked_tokens_get_probability_zero(cross):
    net, x, c = cross
    seen, mask = {}, torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]]).bool()
    with tap(net, "probs", lambda y, name: seen.update(probs=y)):
        net(x, c, mask)
    hidden = ~mask[:, None, None, :].expand_as(seen["probs"])
    assert seen["probs"][hidden].abs().max() == 0 and (seen["probs"].sum(-1) - 1).abs().max() < 1e-6


def test_uniform_probs_give_every_query_the_mean_value(cross):
    net, x, c = cross
    with tap(net, "probs", lambda p, name: torch.full_like(p, 1 / M)):
        out = net(x, c)
    want = net.to_out[0](net.to_v(c).mean(1, keepdim=True))
    assert (out - want).abs().max() < 1e-6 and (net(x, c) - want).abs().max() > 1e-2


def test_replaced_logits_reach_the_output(cross):
    net, x, c = cross
    # every query reads token 3 only
    with tap(net, "logits", lambda y, name: y + 1e4 * torch.eye(M)[3]):
        out = net(x, c)
    assert (out - net.to_out[0](net.to_v(c)[:, 3:4])).abs().max() < 1e-5


@pytest.mark.parametrize("name", TAPS)
def test_an_edit_at_any_tap_changes_the_output(cross, name):
    net, x, c = cross

    def flip(y, name):
        return y.roll(1, dims=-1)

    with tap(net, f"^{name}$", flip):
        edited = net(x, c)
    assert (edited - net(x, c)).abs().max() > 1e-3


def test_gradients_flow_from_and_through_probs(cross):
    net, x, c = cross
    seen, weight = {}, torch.ones(M, requires_grad=True)
    with tap(net, "probs", lambda p, name: seen.update(probs=p) or p * weight):
        out = net(x, c.requires_grad_())
    to_q, to_c = torch.autograd.grad(
        seen["probs"][..., 0].sum(), [net.to_q.weight, c], retain_graph=True
    )
    # a loss on the map reaches the inputs
    assert to_q.abs().max() > 1e-4 and to_c.abs().max() > 1e-4
    # an edit of the map can be optimised
    assert torch.autograd.grad(out.square().sum(), weight)[0].abs().min() > 1e-4


@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
def test_gradients_of_both_paths_agree(cross, explicit):
    net, x, c = cross
    x.requires_grad_()
    grads = []
    for pattern in ("out", "probs" if explicit else "out"):
        with tap(net, pattern, look):
            grads.append(torch.autograd.grad(net(x, c).square().sum(), [x, net.to_k.weight]))
    assert all((a - b).abs().max() < 1e-5 and a.abs().max() > 1e-3 for a, b in zip(*grads))


def test_self_attention_has_no_bias_before_and_one_after():
    assert sorted(make().state_dict()) == [
        "to_k.weight",
        "to_out.0.bias",
        "to_out.0.weight",
        "to_q.weight",
        "to_v.weight",
    ]
    assert make(bias=True).to_q.bias is not None


def test_self_attention_does_not_know_the_order_of_tokens():
    net, x, order = make(), tokens(), torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert (net(x)[:, order] - net(x[:, order])).abs().max() < 1e-6


def test_a_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(ValueError, match="width 24 does not divide into 5 heads"):
        Attention(24, 5)


def test_geglu_multiplies_the_first_half_by_the_exact_gelu_of_the_second():
    net = GEGLU(2, 2)
    with torch.no_grad():
        # a = x, g = x reversed
        net.proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
        net.proj.bias.zero_()
    x = torch.tensor([[1.5, -0.7]])
    gelu = [g * 0.5 * (1 + math.erf(g / math.sqrt(2))) for g in (-0.7, 1.5)]
    assert (net(x) - torch.tensor([[1.5 * gelu[0], -0.7 * gelu[1]]])).abs().max() < 1e-6


def test_attention_over_pixels_commutes_with_flips():
    torch.manual_seed(0)
    net, x = SpatialAttention(16, heads=2, groups=4), torch.randn(B, 16, 3, 5)
    assert net(x).shape == x.shape and (net(x) - x).abs().max() > 1e-2
    assert (net(x.flip(-1)) - net(x).flip(-1)).abs().max() < 1e-5
    assert (net(x.flip(-2)) - net(x).flip(-2)).abs().max() < 1e-5


def test_a_block_of_zero_output_weights_is_the_identity():
    torch.manual_seed(0)
    net, x = TransformerBlock(DIM, HEADS, CONTEXT), tokens()
    cond = Cond(text=tokens(M, CONTEXT, 2))
    assert (net(x, cond) - x).abs().max() > 1e-2
    for last in (net.attn1.to_out[0], net.attn2.to_out[0], net.ff.net[2]):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    assert torch.equal(net(x, cond), x)


def test_linear_and_convolutional_projections_are_one_computation():
    """Stable Diffusion 1 stores 1x1 convolutions, Stable Diffusion 2 matrices."""
    torch.manual_seed(0)
    conv, linear = (
        SpatialTransformer(DIM, HEADS, CONTEXT, groups=8, linear=kind) for kind in (False, True)
    )
    linear.load_state_dict(
        {
            k: v.flatten(1) if "proj_" in k and v.ndim == 4 else v
            for k, v in conv.state_dict().items()
        }
    )
    x, cond = torch.randn(B, DIM, 3, 4), Cond(text=tokens(M, CONTEXT, 2))
    assert (conv(x, cond) - linear(x, cond)).abs().max() < 1e-5 and (
        conv(x, cond) - x
    ).abs().max() > 1e-2


def test_a_linear_layer_of_pixels_is_a_1x1_convolution_with_the_same_weights_from_the_same_seed():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(DIM, 5, 1)
    torch.manual_seed(0)
    linear = PixelLinear(DIM, 5)
    assert all(
        torch.equal(a, b) for a, b in zip(linear.parameters(), conv.parameters(), strict=True)
    )
    x = torch.randn(B, DIM, 3, 4)
    got = linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 4))
    assert (got - conv(x)).abs().max() < 1e-5 < conv(x).std()


def test_depth_puts_several_blocks_in_one_transformer():
    net = SpatialTransformer(DIM, HEADS, CONTEXT, groups=8, depth=3)
    assert len(net.transformer_blocks) == 3
    seen = []
    with tap(net, r"attn2\.out$", lambda y, name: seen.append(name)):
        net(torch.randn(1, DIM, 2, 2), Cond(text=tokens(M, CONTEXT)[:1]))
    assert seen == [f"transformer_blocks.{i}.attn2.out" for i in range(3)]


def fused_calls(monkeypatch) -> list:
    """A list that grows with every call of the fused kernel."""
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    counted = lambda *a, **kw: (calls.append(1), fused(*a, **kw))[1]  # noqa: E731
    monkeypatch.setattr("minidiff.models.attention.F.scaled_dot_product_attention", counted)
    return calls


def test_learning_in_bfloat16_on_a_cpu_leaves_the_fused_kernel_and_sampling_does_not(monkeypatch):
    net, x = make(), tokens()
    calls = fused_calls(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        learned = net(x)
        assert not calls
        with torch.no_grad():
            sampled = net(x)
        assert len(calls) == 1
    # bfloat16 has eight bits
    assert (learned - sampled).abs().max() < 2**-6 * sampled.abs().max()
    net(x)  # float32
    assert len(calls) == 2
