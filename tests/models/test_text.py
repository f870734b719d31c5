"""The text tower: real layouts, agreement with transformers, causality, taps, pooling."""

import hashlib

import pytest
import torch

from minidiff.core.taps import tap
from minidiff.models.text import CLIPText, Encoder, quick_gelu

EOS = 49


def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    size = dict(width=32, layers=3, heads=4, context=12, eos_id=EOS) | kw
    return CLIPText(50, **size).eval()


@pytest.fixture
def ids():
    """Rows of unlike length: end tokens at 11, 4 and 1, padding behind."""
    rows = torch.randint(1, EOS, (3, 12), generator=torch.Generator().manual_seed(1))
    rows[0, 11], rows[1, 4], rows[2, 1] = EOS, EOS, EOS
    return rows


@pytest.mark.parametrize(
    "size, count, digest",
    [
        (dict(width=768, layers=12, heads=12, act="quick_gelu"), 123_060_480, "0240ea74fae34c19"),
        (dict(width=1024, layers=23, heads=16, act="gelu"), 340_387_840, "b3fb33659b67fd51"),
    ],
    ids=["stable-diffusion-1", "stable-diffusion-2"],
)
def test_names_and_shapes_are_those_of_the_published_towers(size, count, digest):
    with torch.device("meta"):
        net = CLIPText(49408, context=77, **size)
    lines = sorted(f"{k} {tuple(v.shape)}" for k, v in net.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.oracle
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_states_and_pooled_vector_equal_transformers(ids, act):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=12,
        hidden_act=act,
        projection_dim=24,
        bos_token_id=0,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)  # far from zero, so that every weight matters
    ours = tiny(act=act, project_dim=24)
    ours.load_state_dict({k.removeprefix("text_model."): v for k, v in theirs.state_dict().items()})
    with torch.no_grad():
        want = theirs(ids, output_hidden_states=True)
        states = ours(ids)
        assert (states - want.last_hidden_state).abs().max() < 1e-5
        assert (ours.pooled(states, ids) - want.text_embeds).abs().max() < 1e-5
        before_last = ours.final_layer_norm(want.hidden_states[-2])
        assert (ours(ids, layer=-2) - before_last).abs().max() < 1e-5


def test_the_penultimate_state_is_that_of_a_tower_without_its_last_block(ids):
    """How Stable Diffusion 2 ships 23 of OpenCLIP-H's 24 blocks."""
    full, short = tiny(), tiny(layers=2)
    short.load_state_dict({k: v for k, v in full.state_dict().items() if ".layers.2." not in k})
    assert (full(ids, layer=-2) - short(ids)).abs().max() <= 1e-5
    assert (full(ids, layer=-2) - full(ids)).abs().max() > 1e-2


def test_later_tokens_do_not_change_earlier_states(ids):
    net, other = tiny(), ids.clone()
    other[:, 5] = (other[:, 5] + 7) % EOS
    a, b = net(ids), net(other)
    assert (a[:, :5] - b[:, :5]).abs().max() < 1e-5
    # every later state does see the change
    assert (a[:, 5:] - b[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_a_shorter_row_gives_the_first_states_of_the_longer_one(ids):
    net = tiny()
    assert (net(ids[:, :6]) - net(ids)[:, :6]).abs().max() < 1e-5


def test_word_order_changes_the_states_of_the_end():
    net, row = tiny(), torch.tensor([[1, 5, 9, 3, EOS]])
    assert (net(row)[0, -1] - net(row[:, [0, 2, 1, 3, 4]])[0, -1]).abs().max() > 1e-3


def test_looking_at_probs_changes_nothing_and_shows_a_causal_map(ids):
    net, seen = tiny(), {}
    with tap(net, r"probs$", lambda x, name: seen.update({name: x})):
        watched = net(ids)
    assert (watched - net(ids)).abs().max() < 1e-5
    assert sorted(seen) == [f"encoder.layers.{i}.self_attn.probs" for i in range(3)]
    for p in seen.values():
        assert p.shape == (3, 4, 12, 12)
        assert p.triu(1).abs().max() == 0 and (p.sum(-1) - 1).abs().max() < 1e-6


def test_a_tap_at_a_block_replaces_its_output(ids):
    net = tiny()
    with tap(net, r"layers\.2\.out$", lambda x, name: torch.zeros_like(x)):
        assert (net(ids) - net.final_layer_norm.bias).abs().max() == 0
    assert net(ids).abs().max() > 0.1


def test_token_vectors_in_place_of_ids_give_the_same_states_and_a_gradient(ids):
    net = tiny()
    vectors = net.token_embeds(ids).detach().requires_grad_()
    states = net(None, embeds=vectors)
    assert (states - net(ids)).abs().max() < 1e-5
    states[:, 3].square().sum().backward()
    reach = vectors.grad.abs().amax(dim=(0, 2))
    assert (reach[:4] > 0).all() and (reach[4:] == 0).all()


def test_pooled_is_the_first_end_token_even_beside_larger_ids(ids):
    net, states = tiny(), torch.randn(3, 12, 32)
    larger = ids.clone()
    # a new word of textual inversion: the id is beyond the end token's
    larger[:, 2], larger[2, 1] = EOS + 1, EOS
    assert torch.equal(
        net.pooled(states, larger), torch.stack([states[0, 11], states[1, 4], states[2, 1]])
    )
    repeated = ids.clone()
    repeated[1, 5:] = EOS  # padding of Stable Diffusion 1
    assert torch.equal(net.pooled(states, repeated)[1], states[1, 4])


def test_quick_gelu_is_near_the_exact_gelu_but_visibly_not_equal():
    x = torch.linspace(-6, 6, 2001)
    gap = (quick_gelu(x) - torch.nn.functional.gelu(x)).abs().max()
    assert 0.015 < gap < 0.025


def test_what_fresh_blocks_add_does_not_grow_with_their_number():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 64)
    few, many = ((Encoder(64, n, 4, 256, "gelu", causal=True)(x) - x).std().item() for n in (2, 16))
    assert 0.7 < many / few < 1.4  # PyTorch's own initialisation gives about 3


def test_bad_input_is_refused_at_the_door(ids):
    net = tiny()
    for call, message in [
        (
            lambda: net(torch.zeros(1, 13, dtype=torch.long)),
            r"\(1, 13, 32\); expected \(b, n <= 12, 32\)",
        ),
        (lambda: net(torch.zeros(5, dtype=torch.long)), "expected"),
        (lambda: net(None, embeds=torch.zeros(1, 4, 31)), "expected"),
        (lambda: net(ids, layer=0), "layer is 0"),
        (lambda: net(ids, layer=-5), "layer is -5"),
        (lambda: net.pooled(net(ids), ids.clamp(max=EOS - 1)), "no end token"),
        (lambda: tiny(act="relu"), "act is 'relu'"),
        (lambda: tiny(heads=5), "5 heads"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
