"""A network comes back as it was."""
import pytest
import torch
from torch import nn

from minidiff.train.finetune import tuned


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)


def test_only_what_matches_learns_and_all_is_put_back():
    net, x = network(), torch.randn(5, 3)
    before = net(x)
    with tuned(net, r"^1\.") as weights:
        assert len(weights) == 2 and not net[0].weight.requires_grad
        optimizer = torch.optim.SGD(weights, lr=.1)
        net(x).square().sum().backward()
        optimizer.step()
        assert not torch.equal(net(x), before)
    assert torch.equal(net(x), before) and not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_an_exception_puts_back_too():
    net = network()
    before = {n: p.clone() for n, p in net.named_parameters()}
    with pytest.raises(RuntimeError), tuned(net) as weights:
        with torch.no_grad():
            weights[0].zero_()
        raise RuntimeError
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(KeyError, match=r"0\.weight"), tuned(network(), "attn9"):
        pass
