"""What a training step does: which times and targets, which captions are dropped, and the average
that is kept.
"""

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.process import q_sample
from minidiff.core.schedule import Schedule
from minidiff.foundations.latent_diffusion import diffusion_loss
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import LINEAR, draws
from minidiff.learn.exercises.process import PAGE

D = torch.float64


# ---- EMA -----------------------------------------------------------------------------------------


def ema_update(
    shadow: list[Tensor], weights: list[Tensor], decay: float, step: int
) -> list[Tensor]:
    """The running average after step 0, 1, ...: keeps min(decay, (1 + step) / (10 + step)) of
    itself.
    """
    keep = min(decay, (1 + step) / (10 + step))
    return [keep * old + (1 - keep) * new for old, new in zip(shadow, weights)]


def slow_ema(shadow, weights, decay, step, warm=True):
    keep = min(decay, (1 + step) / (10 + step)) if warm else decay
    averages = []
    for old, new in zip(shadow, weights):
        averages.append(torch.lerp(new.double(), old.double(), keep).to(old.dtype))
    return averages


def ema_update_cases(seed):
    shapes = ((2,), (3, 2))
    return [
        (list(draws(seed, *shapes)), list(draws(seed + 9, *shapes)), decay, step)
        for decay, step in ((0.999, 0), (0.999, 5 + seed), (0.999, 50_000), (0.9, 50_000))
    ]


ema = Exercise(
    "ema_update",
    "warm-up",
    "Pictures are drawn with an average of the weights over many steps. After step `step` (from "
    "0) the average keeps the share k = min(decay, (1 + step) / (10 + step)) of itself and takes "
    "1 - k of the weights. Both are lists of tensors; return a new list.",
    ema_update,
    slow_ema,
    ema_update_cases,
    apart="`fit` does it in place, for all weights in one fused call",
    facts=(
        Fact(
            "equal weights stay",
            lambda fn: (fn([torch.ones(2)], [torch.ones(2)], 0.9, 3), [torch.ones(2)]),
        ),
    ),
    mutants=(
        Mutant(
            "no warm-up",
            lambda s, w, d, k: slow_ema(s, w, d, k, warm=False),
            "With decay .9999 the average remembers the random start for ten thousand steps: "
            "early samples are noise though the network is fine.",
        ),
        Mutant(
            "the roles exchanged",
            lambda s, w, d, k: ema_update(w, s, d, k),
            "It keeps a thousandth of itself: the plain weights, a step late. Nothing warns, "
            "samples are just worse.",
        ),
        Mutant(
            "the larger of the two",
            lambda s, w, d, k: slow_ema(s, w, max(d, (1 + k) / (10 + k)), k, warm=False),
            "max for min: it never warms up, and late in training hardly moves any more.",
        ),
        Mutant(
            "counted from 1",
            lambda s, w, d, k: ema_update(s, w, d, k - 1),
            "Steps are counted from 0 here: after the first one the average keeps a tenth.",
        ),
    ),
    hints=(
        "One share for all tensors.",
        "`keep = min(decay, (1 + step) / (10 + step))`.",
        "`keep * old + (1 - keep) * new`.",
    ),
    about="the running average of the weights",
    page=PAGE,
)


# ---- dropped conditions --------------------------------------------------------------------------


def drop_condition(text: Tensor, empty: Tensor, u: Tensor, share: float) -> Tensor:
    """Text states (b n d) with the rows whose u (b,), uniform in 0..1, is below `share` replaced by
    `empty` (n d).
    """
    return torch.where((u < share)[:, None, None], empty, text)


def slow_drop(text, empty, u, share):
    return torch.stack([empty if v < share else row for row, v in zip(text, u.tolist())])


def drop_cases(seed):
    g = torch.Generator().manual_seed(seed)
    certain = torch.tensor([0.05, 0.9])
    cases = []
    for others, share in ((0, 0.1), (7, 0.3)):
        text, empty = draws(seed, (2 + others, 2, 3), (2, 3))
        u = torch.cat([certain, torch.rand(others, generator=g)])
        cases.append((text, empty, u, share))
    return cases


def without_a_share(fn):
    text = torch.ones(2, 1, 1)
    return fn(text, torch.zeros(1, 1), torch.zeros(2), 0.0), text


dropped = Exercise(
    "drop_condition",
    "warm-up",
    "Guidance needs a network that also knows pictures without a caption. So in a share of the "
    "rows the caption's text states (b n d) are replaced by those of the empty prompt, `empty` (n "
    "d): where u (b,), drawn uniformly from 0..1, is below `share`.",
    drop_condition,
    slow_drop,
    drop_cases,
    apart="the package drops the caption itself, before the text tower reads it",
    facts=(
        Fact(
            "share 0 drops none",
            without_a_share,
        ),
    ),
    mutants=(
        Mutant(
            "zeros for the empty prompt",
            lambda x, e, u, p: drop_condition(x, torch.zeros_like(e), u, p),
            'The tower\'s answer to "" is not zero. If training drops to zeros and sampling asks '
            'with "", guidance compares with something never learned.',
        ),
        Mutant(
            "one draw for the batch",
            lambda x, e, u, p: drop_condition(x, e, u[:1].expand(len(u)), p),
            "Whole batches lose their captions at once: gradients get noisier, and the share is "
            "only right on average.",
        ),
        Mutant(
            "the share is kept",
            lambda x, e, u, p: drop_condition(x, e, 1 - u, 1 - p),
            "Nine captions in ten are dropped, and the prompt means next to nothing.",
        ),
    ),
    hints=(
        "A choice per row.",
        "`(u < share)[:, None, None]` goes with (b n d).",
        "`torch.where(..., empty, text)`.",
    ),
    about="captions dropped, so that guidance works",
    page=PAGE,
)


# ---- min-SNR -------------------------------------------------------------------------------------


def min_snr_weight(sch: Schedule, t: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weights (b,) in float64 of the squared errors at times t (b,) in 1 .. T, for the targets
    "eps" or "v" of a variance preserving schedule.
    """
    snr = (sch.alpha / sch.sigma).square()[t]
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)


def slow_min_snr(sch, t, gamma, prediction):
    out = []
    for u in t.tolist():
        a = sch.alpha[u].item() ** 2
        s = sch.sigma[u].item() ** 2
        weight_x0 = min(a / s, gamma)  # errors squared: x0 = s / a eps = s v
        out.append(weight_x0 * (s / a if prediction == "eps" else s))
    return torch.tensor(out, dtype=D)


def snr_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = []
    for prediction in ("eps", "v"):
        cases.append((LINEAR, torch.tensor([1, 100, 1000]), 5.0, prediction))
        cases.append((LINEAR, torch.randint(1, 1001, (9,), generator=g), 1.0, prediction))
    return cases


def larger_of_two(sch, t, gamma, prediction):
    snr = (sch.alpha / sch.sigma).square()[t]
    return snr.clamp(min=gamma) / (snr if prediction == "eps" else snr + 1)


def ratio_not_squared(sch, t, gamma, prediction):
    ratio = (sch.alpha / sch.sigma)[t]
    return ratio.clamp(max=gamma) / (ratio if prediction == "eps" else ratio + 1)


min_snr = Exercise(
    "min_snr_weight",
    "core",
    "Min-SNR (Hang et al. 2023): every time should weigh min(SNR, gamma) as an error of x0, "
    "$\\mathrm{SNR} = \\alpha^2 / \\sigma^2$. An error of eps is $\\alpha / \\sigma$ times that "
    "of x0, one of v is $1 / \\sigma$ times it (variance preserving). Return the weights (b,) of "
    'the squared errors for `prediction` "eps" or "v" at times t (b,), float64.',
    min_snr_weight,
    slow_min_snr,
    snr_cases,
    apart="the package trains without weights: it draws the times unevenly instead",
    mutants=(
        Mutant(
            "v weighted as eps",
            lambda sch, t, g, p: min_snr_weight(sch, t, g, "eps"),
            "A known bug of training scripts: SNR for SNR + 1. At the noisy end, where SNR is "
            "nearly 0, weights stay at 1 that should vanish.",
        ),
        Mutant(
            "the larger of the two",
            larger_of_two,
            "max for min: the clean end weighs most, as SNR itself would.",
        ),
        Mutant(
            "the ratio without its square",
            ratio_not_squared,
            "SNR is a ratio of variances.",
        ),
        Mutant(
            "the weight of x0",
            lambda sch, t, g, p: (sch.alpha / sch.sigma).square()[t].clamp(max=g),
            "min(SNR, gamma) weighs errors of x0. The same loss, written for eps or v, has other "
            "weights.",
        ),
    ),
    hints=(
        "Write the loss as weight times |x0 error|^2 first.",
        "|eps error|^2 = SNR |x0 error|^2; for v it is SNR + 1.",
        "`snr.clamp(max=gamma) / snr`, or `/ (snr + 1)` for v.",
    ),
    about="how much each time counts in training",
    page=PAGE,
)


# ---- the loss ------------------------------------------------------------------------------------


def toy_net(x, t, cond):
    """Half of its output is a variance that has no target, as in a DiT with learned sigma."""
    noise = 0.3 * x + (t.view(-1, 1, 1, 1).to(x.dtype) / 1000).sin()
    if cond.label is not None:
        noise = noise + 0.1 * cond.label.view(-1, 1, 1, 1)
    if cond.text is not None:
        noise = noise + cond.text.mean((1, 2)).view(-1, 1, 1, 1)
    return torch.cat([noise, 5 + x], 1)


def slow_loss(
    net,
    batch,
    sch,
    prediction,
    shift=1,
    one_time=False,
    over="values",
    heard=("label", "text"),
    earlier=0,
    power=2,
):
    x0 = batch["x0"]
    total = 0.0
    for i in range(len(x0)):
        t = batch["t"][0 if one_time else i].item()
        eps = batch["eps"][i]
        alpha = sch.alpha[t].item()
        sigma = sch.sigma[t].item()
        own = {name: batch[name][i : i + 1] for name in heard if name in batch}
        noised_at = t - earlier
        x_t = (sch.alpha[noised_at].item() * x0[i] + sch.sigma[noised_at].item() * eps)[None]
        out = net(x_t, torch.tensor([t - shift]), Cond(**own))[0, : x0.shape[1]]
        goals = {"eps": eps, "x0": x0[i], "v": alpha * eps - sigma * x0[i]}
        goal = goals[prediction]
        total = total + ((out - goal).abs() ** power).sum()
    return total / {"values": x0.numel(), "rows": len(x0), "nothing": 1}[over]


def loss_batch(seed, shape, condition):
    g = torch.Generator().manual_seed(seed)
    x0, eps = draws(seed, shape, shape)
    late = torch.tensor([1000])
    batch = {
        "x0": x0.double(),
        "eps": eps.double(),
        "t": torch.cat([late, torch.randint(1, 1001, (shape[0] - 1,), generator=g)]),
    }
    if condition == "label":
        batch["label"] = 1 + torch.arange(shape[0])
    if condition == "text":
        (batch["text"],) = draws(seed + 3, (shape[0], 2, 3))
    return batch


def loss_cases(seed):
    rows = (
        ("eps", (1, 1, 2, 2), ""),
        ("v", (3, 2, 2, 2), "label"),
        ("x0", (2, 1, 3, 3), ""),
        ("eps", (4, 2, 2, 2), "label"),
        ("v", (3, 1, 2, 3), "text"),
    )
    return [
        (toy_net, loss_batch(seed, shape, condition), LINEAR, prediction)
        for prediction, shape, condition in rows
    ]


def gradient_of_loss(fn):
    """For the network w x_t the gradient is known."""
    batch = loss_batch(1, (3, 1, 2, 2), "")
    w = torch.ones(1, dtype=D, requires_grad=True)
    loss = fn(lambda x, t, cond: w * x, batch, LINEAR, "eps")
    x_t = q_sample(LINEAR, batch["x0"], batch["t"], batch["eps"])
    wanted = (2 * x_t * (x_t - batch["eps"])).mean()
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return 0.0, wanted
    (gradient,) = torch.autograd.grad(loss, w)
    return gradient[0], wanted


loss = Exercise(
    "diffusion_loss",
    "build",
    "The whole of DDPM training but for the optimiser. `batch` holds the pictures x0 (b c h w), "
    "noise eps of that shape, times t (b,), indices 1 .. T of the schedule, and perhaps the "
    "condition: text (b n d) or label (b,). Noise the pictures to their own times; ask `net(x_t, "
    "t - 1, Cond(text=.., label=..))` (networks count from 0); return the mean squared error on "
    "the target: eps, x0, or $v = \\alpha_t \\epsilon - \\sigma_t x_0$. A network may answer with "
    "more channels than x0 has; only the first c count.",
    diffusion_loss,
    slow_loss,
    loss_cases,
    facts=(
        Fact(
            "its gradient reaches the network (a tensor, neither `.item()` nor `.detach()`)",
            gradient_of_loss,
            by_gradient=True,
        ),
    ),
    tolerance=1e-8,
    mutants=(
        Mutant(
            "the network told the index",
            lambda *a: slow_loss(*a, shift=0),
            "One time off between training and sampling: a slight haze over everything, and an "
            "index out of range at T.",
        ),
        Mutant(
            "one time for the batch",
            lambda *a: slow_loss(*a, one_time=True),
            "All rows get the time of the first. It learns, slowly and with noisy gradients.",
        ),
        Mutant(
            "a sum over pixels",
            lambda *a: slow_loss(*a, over="rows"),
            "Then the learning rate depends on the size of pictures.",
        ),
        Mutant(
            "a sum over everything",
            lambda *a: slow_loss(*a, over="nothing"),
            "Then the learning rate depends on the size of pictures and on the batch.",
        ),
        Mutant(
            "noised to t - 1",
            lambda *a: slow_loss(*a, earlier=1),
            "The network counts from 0, the schedule does not: index t is the noise of its time "
            "t - 1. Both shifted, every state is cleaner than the network is told.",
        ),
        Mutant(
            "absolute errors",
            lambda *a: slow_loss(*a, power=1),
            "Their best guess is the median of what is possible, the sampler's is the mean.",
        ),
        Mutant(
            "eps whatever is predicted",
            lambda net, batch, sch, p: slow_loss(net, batch, sch, "eps"),
            "A v-model fine-tuned on eps: it worsens from the first step on.",
        ),
        Mutant(
            "the condition not handed on",
            lambda *a: slow_loss(*a, heard=()),
            "The network learns to draw, and not to listen: every prompt gives the same pictures.",
        ),
        Mutant(
            "the text not handed on",
            lambda *a: slow_loss(*a, heard=("label",)),
            "A network of labels is trained as it should be; one of captions never reads them.",
        ),
    ),
    hints=(
        "`q_sample` and `target` of minidiff.core.process take t (b,) as well as an int.",
        'The network\'s time is t - 1; `batch.get("text")` is None where there is no text.',
        "`(out[:, : x0.shape[1]] - target(sch, x0, eps, t, prediction)).square().mean()`.",
    ),
    about="the whole of DDPM training but the optimiser",
    page=PAGE,
)

EXERCISES = (ema, dropped, min_snr, loss)
