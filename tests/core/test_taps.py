import pytest
import torch
from torch import nn

from minidiff.core.taps import Tap, tap, tap_names


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.h, self.out = nn.Linear(4, 4), Tap(), Tap()

    def forward(self, x):
        return self.out(x + self.h(self.lin(x).relu()))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


X = torch.linspace(-1, 1, 8).view(2, 4)


def listeners(net):
    return sum(len(m.fns) for m in net.modules() if isinstance(m, Tap))


def test_taps_have_names_and_no_parameters(net):
    assert tap_names(net) == ["0.h", "0.out", "1.h", "1.out"] and tap_names(net, r"\.h$") == [
        "0.h",
        "1.h",
    ]
    assert all("lin" in k for k in net.state_dict())


@pytest.mark.parametrize(
    "fn",
    [lambda x, name: None, lambda x, name: x, lambda x, name: x.clone()],
    ids=["look", "return", "copy"],
)
def test_an_identity_tap_changes_nothing(net, fn):
    plain = net(X)
    with tap(net, "", fn) as names:
        assert torch.equal(net(X), plain) and len(names) == 4


def test_a_tap_reads_and_replaces_the_tensor_it_names(net):
    seen = {}
    with tap(net, r"^0\.h$", lambda x, name: seen.update({name: x})):
        net(X)
    assert torch.equal(seen["0.h"], net[0].lin(X).relu())
    with tap(net, r"\.h$", lambda x, name: torch.zeros_like(x)):
        assert torch.equal(net(X), X)  # without h every block is its residual
    assert not torch.equal(net(X), X)


def test_every_tap_tells_its_own_name(net):
    seen = []
    with tap(net, "", lambda x, name: seen.append(name)):
        net(X)
    assert seen == ["0.h", "0.out", "1.h", "1.out"]


def test_a_pattern_that_matches_nothing_is_a_key_error_and_leaves_no_trace(net):
    with (
        pytest.raises(KeyError, match=r"no tap matches 'attn'.*0\.h"),
        tap(net, "attn", lambda x, name: None),
    ):
        pytest.fail("the block must not run")
    assert listeners(net) == 0


def test_taps_leave_with_the_block_also_on_exceptions(net):
    before = net(X)
    with pytest.raises(RuntimeError, match="stop"), tap(net, "", lambda x, name: x + 1):
        assert listeners(net) == 4
        raise RuntimeError("stop")
    assert listeners(net) == 0 and torch.equal(net(X), before)


def test_nested_taps_apply_outer_first_and_leave_one_by_one(net):
    plain = net(X)
    with tap(net, r"1\.out", lambda x, name: x + 1):
        with tap(net, r"1\.out", lambda x, name: x * 2):
            assert torch.equal(net(X), (plain + 1) * 2)
        assert torch.equal(net(X), plain + 1)
    assert torch.equal(net(X), plain)


def test_the_same_function_may_listen_twice(net):
    def double(x, name):
        return x * 2

    with tap(net, r"1\.out", double), tap(net, r"1\.out", double):
        assert listeners(net) == 2
    assert listeners(net) == 0


def test_gradients_pass_through_a_replaced_tensor(net):
    g = torch.ones(4, requires_grad=True)
    with tap(net, r"0\.h", lambda x, name: x * g):
        net(X).sum().backward()
    assert g.grad is not None and g.grad.abs().max() > 0
