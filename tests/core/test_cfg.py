import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg, cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import PREDICTIONS, eps_to_x0, target, to_eps
from minidiff.data.toy2d import energy_distance, gmm8
from minidiff.samplers.ddim import ddim

SCH = schedule.linear(1000)
RING = gmm8(1.0, 0.15)
EPS = RING.denoise(SCH)
NULL = Cond(label=torch.tensor([-1]))  # the label that means "any"
BOTH = pytest.mark.parametrize("guide", [cfg, cfg_batched], ids=["two_calls", "one_call"])


def rows(b=6):
    return noise((b, 2), dtype=torch.float64), Cond(label=torch.arange(b) % 8)


class Calls(Counted):
    calls = 0

    def __call__(self, *args):
        self.calls += 1
        return super().__call__(*args)


@pytest.mark.parametrize("kw", [{}, dict(rescale=0.7), dict(interval=(100, 400))], ids=str)
@pytest.mark.parametrize(
    "t", [300, 700, torch.tensor([50, 101, 300, 400, 401, 900])], ids=["300", "700", "rows"]
)
def test_one_batched_call_equals_two_calls(kw, t):
    x, cond = rows()
    a, b = (guide(EPS, NULL, 7.5, **kw)(x, t, cond) for guide in (cfg, cfg_batched))
    assert (a - b).abs().max() <= 1e-12


@BOTH
def test_guidance_is_the_line_through_both_predictions(guide):
    x, cond = rows()
    e_u, e_c = EPS(x, 300, NULL), EPS(x, 300, cond)
    w = 2.0  # the paper's: (1 + w) e_c - w e_u
    assert (guide(EPS, NULL, 1 + w)(x, 300, cond) - ((1 + w) * e_c - w * e_u)).abs().max() <= 1e-12
    assert (guide(EPS, NULL, 0)(x, 300, cond) - e_u).abs().max() <= 1e-12
    assert (e_u - e_c).abs().max() > 0.1


@BOTH
def test_scale_1_is_the_plain_denoiser_in_one_call(guide):
    x, cond = rows()
    net = Calls(EPS)
    assert torch.equal(guide(net, NULL, 1, rescale=0.7)(x, 300, cond), EPS(x, 300, cond))
    assert net.calls == 1 and net.nfe == 6


def test_guidance_costs_two_evaluations_per_picture_in_two_calls_or_one():
    x, cond = rows()
    two, one = Calls(EPS), Calls(EPS)
    cfg(two, NULL, 3)(x, 300, cond), cfg_batched(one, NULL, 3)(x, 300, cond)
    assert (two.calls, two.nfe, one.calls, one.nfe) == (2, 12, 1, 12)


@BOTH
def test_outside_its_interval_guidance_is_off_and_costs_one_call(guide):
    x, cond = rows()
    for t, on in [(100, False), (101, True), (400, True), (401, False)]:  # (lo, hi]
        net = Calls(EPS)
        out = guide(net, NULL, 3, interval=(100, 400))(x, t, cond)
        assert net.nfe == (12 if on else 6)
        assert ((out - EPS(x, t, cond)).abs().max() > 1e-3) == on


@BOTH
def test_rows_with_their_own_times_are_guided_as_if_alone(guide):
    x, cond = rows()
    ts = torch.tensor([50, 100, 101, 400, 401, 900])
    guided = guide(EPS, NULL, 3, interval=(100, 400))
    out = guided(x, ts, cond)
    for i, t in enumerate(ts.tolist()):
        assert (out[i : i + 1] - guided(x[i : i + 1], t, cond[i])).abs().max() <= 1e-12


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_on_eps_x0_v_or_flow_is_the_same_guidance(prediction):
    x, cond = rows()
    t = 300

    def net(x, t, c):
        e = EPS(x, t, c)
        return target(SCH, eps_to_x0(SCH, x, e, t), e, t, prediction)

    through = to_eps(SCH, x, cfg(net, NULL, 5)(x, t, cond), t, prediction)
    assert (through - cfg(EPS, NULL, 5)(x, t, cond)).abs().max() <= 1e-12


def test_a_negative_prompt_is_another_null():
    x, cond = rows()
    negative = Cond(label=torch.tensor([4]))
    expected = EPS(x, 500, negative.expand(6)) + 3 * (
        EPS(x, 500, cond) - EPS(x, 500, negative.expand(6))
    )
    assert (cfg(EPS, negative, 3)(x, 500, cond) - expected).abs().max() <= 1e-12


def test_rescale_1_gives_the_guided_prediction_the_spread_of_the_conditional_one():
    x = noise((3, 4, 8, 8), dtype=torch.float64)

    def net(x, t, c):
        return x * (1 + c.label.view(-1, 1, 1, 1)) + 0.1 * x.roll(1, -1)

    cond = Cond(label=torch.tensor([1, 2, 3]))
    plain, half, full = (cfg(net, NULL, 8, rescale=phi)(x, 5, cond) for phi in (0, 0.5, 1))
    std = lambda e: e.std((1, 2, 3))  # noqa: E731
    assert (
        (std(full) - std(net(x, 5, cond))).abs().max()
        < 1e-12
        < 1
        < (std(plain) - std(full)).abs().min()
    )
    assert (half - (plain + full) / 2).abs().max() < 1e-12


def test_guidances_stack():
    x, cond = rows()
    inner = cfg(EPS, NULL, 2)
    outer = cfg(inner, Cond(label=torch.tensor([4])), 3)
    away = inner(x, 500, Cond(label=torch.full((6,), 4)))
    assert (outer(x, 500, cond) - (away + 3 * (inner(x, 500, cond) - away))).abs().max() <= 1e-12


def test_scale_1_samples_the_class_scale_0_the_mixture_and_more_pushes_outwards():
    n = 1000
    x, cond = noise((n, 2), dtype=torch.float64), Cond(label=torch.zeros(n, dtype=torch.long))
    off, none, some, strong = (ddim(cfg(EPS, NULL, g), SCH, x, cond) for g in (1, 0, 3, 8))
    assert energy_distance(off, RING.sample(n, 5, label=0)) < 3e-3
    assert energy_distance(none, RING.sample(n, 5)) < 5e-3
    tangent = [p[:, 1].std().item() for p in (off, some, strong)]  # mode 0 sits at (1, 0)
    radius = [p.norm(dim=-1).mean().item() for p in (off, some, strong)]
    assert tangent[0] > 2 * tangent[1] > 3 * tangent[2]  # measured: .154, .050, .021
    assert radius[0] < 1.05 < 1.15 < radius[1] < radius[2]  # measured: .995, 1.254, 1.570


@BOTH
def test_bad_scales_are_refused_in_one_line(guide):
    with pytest.raises(ValueError, match=r"^scale=-2 is negative; .*null$"):
        guide(EPS, NULL, -2)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^scale=(nan|inf): a finite number was expected$"):
            guide(EPS, NULL, scale)
    with pytest.raises(ValueError, match=r"^rescale=7 is outside 0\.\.1; .*$"):
        guide(EPS, NULL, 2, rescale=7)
    for interval in ((400, 400), (1000, 400), (float("nan"), 1000)):
        with pytest.raises(ValueError, match=r"^interval=\(.*lo below hi.*400, 1000\)$"):
            guide(EPS, NULL, 2, interval=interval)
