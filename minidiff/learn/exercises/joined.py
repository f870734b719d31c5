"""Guesses put together: with a classifier, with several prompts, in one batch, through a turned
picture; a step undone; and two lines of a text tower.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.schedule import Schedule
from minidiff.data.toy2d import Mixture, gmm8
from minidiff.inversion.edict import down, up
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    A_TIME_EACH,
    ANY_SCHEDULE,
    LINEAR,
    batches,
    by_rows,
    draw,
    draws,
    states,
)
from minidiff.learn.exercises.loops import noise_of, pairs_of_states
from minidiff.learn.exercises.networks import TEXT
from minidiff.learn.exercises.process import PAGE
from minidiff.models.bpe import join
from minidiff.models.clip import contrastive_loss

CLASSIFIER = "tutorials/guidance/classifier_guidance.md"
ANAGRAMS = "tutorials/guidance/visual_anagrams.md"
EDICT = "tutorials/inversion/edict.md"
D = torch.float64


# ---- a classifier's gradient ---------------------------------------------------------------------


def steered_eps(
    sch: Schedule, eps: Tensor, gradient: Tensor, t: int | Tensor, scale: float
) -> Tensor:
    """The noise whose score is that of eps plus `scale` times the gradient of log p(y | x_t)."""
    return eps - scale * sch.at(t, eps)[1] * gradient


@by_rows
def slow_steered(sch, eps, gradient, t, scale):
    sigma = sch.sigma[t].item()
    score = -eps.double() / sigma + scale * gradient.double()
    return (-sigma * score).to(eps.dtype)


def steered_cases(seed):
    scales = (1.0, 3.0, 0.5, 2.0, 1.0)
    every = (*states(seed), *batches(seed))
    return [(sch, x, e, t, scale) for scale, (sch, x, e, t, _) in zip(scales, every)]


def bayes(fn):
    """A mixture knows both sides of Bayes' rule: the noise of everything, and of one class."""
    toy = gmm8()
    (x,) = draws(1, (6, 2))
    x = x.double().requires_grad_()
    label = Cond(label=torch.full((6,), 2))
    t = 500
    eps = toy.denoise(LINEAR)
    chosen = log_density(toy, x, t, [2]) - log_density(toy, x, t, range(len(toy.means)))
    (gradient,) = torch.autograd.grad(chosen.sum(), x)
    x = x.detach()
    return fn(LINEAR, eps(x, t), gradient, t, 1.0), eps(x, t, label)


def log_density(toy: Mixture, x: Tensor, t: int, components) -> Tensor:
    """log p(x_t) of some components, up to a constant."""
    alpha, sigma = LINEAR.at(t)
    logs = []
    for k in components:
        cov = alpha**2 * toy.covs[k] + sigma**2 * torch.eye(2, dtype=D)
        normal = torch.distributions.MultivariateNormal(alpha * toy.means[k], cov)
        logs.append(normal.log_prob(x))
    return torch.stack(logs).logsumexp(0)


steering = Exercise(
    "steered_eps",
    "core",
    "Classifier guidance. A network's noise is a gradient in disguise: $\\nabla \\log p(x_t) = "
    "-\\epsilon / \\sigma_t$. A classifier adds another one, `gradient` = $\\nabla \\log p(y \\mid "
    "x_t)$. By Bayes' rule, which noise belongs to the pictures of class y, with the classifier "
    "counted `scale` times? eps and gradient are (b ..)." + A_TIME_EACH + ANY_SCHEDULE,
    steered_eps,
    slow_steered,
    steered_cases,
    apart="`pull` has this line, and takes the gradient itself",
    facts=(Fact("scale 1 is Bayes' rule: the noise of the class", bayes),),
    mutants=(
        Mutant(
            "the sign",
            lambda sch, e, g, t, w: steered_eps(sch, e, g, t, -w),
            "Noise is what is taken off: it points away from likely pictures. Added, the gradient "
            "leads away from the class.",
        ),
        Mutant(
            "sigma forgotten",
            lambda sch, e, g, t, w: e - w * g,
            "eps is sigma times a score. Near the clean end the classifier then shouts: its "
            "gradient is not scaled down as the noise is.",
        ),
        Mutant(
            "alpha for sigma",
            lambda sch, e, g, t, w: e - w * sch.at(t, e)[0] * g,
            "Right only where both are the same.",
        ),
        Mutant(
            "the variance for the deviation",
            lambda sch, e, g, t, w: e - w * sch.at(t, e)[1] ** 2 * g,
            "In DDPM's mean the gradient is scaled by a variance; in eps by a deviation.",
        ),
    ),
    hints=(
        "log p(x | y) = log p(x) + log p(y | x) + a constant: what are the gradients?",
        "Turn the sum of the two scores back into a noise: times -sigma_t.",
        "`eps - scale * sch.at(t, eps)[1] * gradient`.",
    ),
    about="classifier guidance, by Bayes' rule",
    page=CLASSIFIER,
)


# ---- several prompts -----------------------------------------------------------------------------


def compose(e_null: Tensor, e_conds: list[Tensor], scales: list[float]) -> Tensor:
    """Noise guided by several prompts at once, each by its own scale; a negative one leads away."""
    ways = [scale * (e - e_null) for scale, e in zip(scales, e_conds)]
    return e_null + sum(ways)


def slow_compose(e_null, e_conds, scales):
    out = (1 - sum(scales)) * e_null.double()
    for scale, e in zip(scales, e_conds):
        out = out + scale * e.double()
    return out.to(e_null.dtype)


def compose_cases(seed):
    cases = []
    for scales in ([3.0], [2.0, 5.0], [7.5, -2.0, 1.0]):
        e_null, *e_conds = draws(seed, *[(2, 2, 3, 3)] * (len(scales) + 1))
        cases.append((e_null, e_conds, scales))
    return cases


def guided_and_added(e_null, e_conds, scales):
    return sum(e_null + scale * (e - e_null) for scale, e in zip(scales, e_conds))


composed = Exercise(
    "compose",
    "warm-up",
    'Several prompts at once ("a beach" AND "at night" AND NOT "people"). Guidance by one prompt '
    "goes from what the network says without any, `e_null`, some way into the direction of the "
    "prompt. What if there are several, `e_conds`, each with its own of `scales`, a negative one "
    "for what must not appear? All scales 0 is `e_null`; one prompt alone is plain guidance; each "
    "prompt pulls as far as it would alone.",
    compose,
    slow_compose,
    compose_cases,
    apart="the package guides by one prompt; InstructPix2Pix, by words and a picture",
    facts=(
        Fact(
            "nothing asked, nothing changed",
            lambda fn: (fn(draw(1, 2, 2), [draw(2, 2, 2)] * 2, [0.0, 0.0]), draw(1, 2, 2)),
        ),
    ),
    mutants=(
        Mutant(
            "guided one by one, and added",
            guided_and_added,
            "The unconditional noise is counted once for each prompt: with two, twice the noise is "
            "taken off.",
        ),
        Mutant(
            "averaged",
            lambda n, c, w: guided_and_added(n, c, w) / len(c),
            "Each prompt pulls less the more there are.",
        ),
        Mutant(
            "the scales brought to sum 1",
            lambda n, c, w: compose(n, c, [v / sum(w) for v in w]),
            "Then how strongly all together are guided can no longer be said.",
        ),
        Mutant(
            "one after the other",
            lambda n, c, w: one_after_the_other(n, c, w),
            "The second direction is measured from where the first one led, and takes that way "
            "back again.",
        ),
    ),
    hints=(
        "A prompt is a direction: e - e_null.",
        "Directions can be added.",
        "`e_null + sum(w * (e - e_null) for w, e in zip(scales, e_conds))`.",
    ),
    about="several prompts at once, AND and NOT",
    page=PAGE,
)


def one_after_the_other(e_null, e_conds, scales):
    out = e_null
    for scale, e in zip(scales, e_conds):
        out = out + scale * (e - out)
    return out


# ---- two questions in one batch ------------------------------------------------------------------


def guided_in_one(
    denoise: Denoise, x: Tensor, t: int | Tensor, cond: Cond, null: Cond, scale: float
) -> Tensor:
    """Guided noise (b ..) of the states x by ONE call of the network on 2b rows; cond and null have
    b rows each.
    """
    rows = Cond.cat([null, cond])  # rows: [null, cond]
    times = torch.cat([t, t]) if isinstance(t, Tensor) else t
    e_null, e_cond = denoise(torch.cat([x, x]), times, rows).chunk(2)
    return e_null + scale * (e_cond - e_null)


def heard(x, t, cond):
    """A network of rows, which hears its label and its time."""
    time = t.view(-1, 1, 1, 1).to(x.dtype) if isinstance(t, Tensor) else t
    return x * 0.4 + 0.1 * cond.label.view(-1, 1, 1, 1) + time / 1000


def slow_in_one(denoise, x, t, cond, null, scale):
    """In another order: the two questions about a picture are neighbours."""
    rows = []
    for i in range(len(x)):
        rows += [null[i : i + 1], cond[i : i + 1]]
    times = t.repeat_interleave(2) if isinstance(t, Tensor) else t
    answers = denoise(x.repeat_interleave(2, 0), times, Cond.cat(rows))
    return answers[::2] + scale * (answers[1::2] - answers[::2])


def in_one_cases(seed):
    cases = []
    for b, t in ((1, 300), (3, 700), (3, torch.tensor([5, 500, 990]))):
        x = draw(seed, b, 2, 3, 4)
        cond = Cond(label=torch.arange(1, b + 1))
        null = Cond(label=torch.zeros(b, dtype=torch.int64))
        cases.append((heard, x, t, cond, null, 3.0))
    return cases


def calls_made(fn):
    calls = []

    def counted(x, t, cond):
        calls.append(len(x))
        return heard(x, t, cond)

    fn(counted, *in_one_cases(0)[1][1:])
    return torch.tensor(calls), torch.tensor([6])


def in_one_like(cat=(0, 1), read=(0, 1), apart=False):
    def wrong(denoise, x, t, cond, null, scale):
        conds = (null, cond)
        times = torch.cat([t, t]) if isinstance(t, Tensor) else t
        rows = Cond.cat([conds[k] for k in cat])
        states = x.repeat_interleave(2, 0) if apart else torch.cat([x, x])
        answers = denoise(states, times, rows).chunk(2)
        e_null, e_cond = answers[read[0]], answers[read[1]]
        return e_null + scale * (e_cond - e_null)

    return wrong


def called_twice(denoise, x, t, cond, null, scale):
    e_null = denoise(x, t, null)
    return e_null + scale * (denoise(x, t, cond) - e_null)


one_batch = Exercise(
    "guided_in_one",
    "core",
    "Guidance needs two answers. One call on a batch of 2b rows is faster than two calls on b: "
    "that is how all public samplers do it, and where rows get mixed up. `denoise(x, t, cond)` "
    "takes any number of rows; `cond` and `null` have b rows each, `Cond.cat([..])` puts "
    "conditions one behind the other, and `t` is an int or a LongTensor (b,). Call the network "
    "once, and return the guided noise (b ..).",
    guided_in_one,
    slow_in_one,
    in_one_cases,
    apart="`cfg_batched` makes a network of a network so, with limits on where it guides",
    facts=(Fact("one call, on 2b rows", calls_made),),
    mutants=(
        Mutant(
            "the halves exchanged",
            in_one_like(read=(1, 0)),
            "[null, cond] went in, and [cond, null] was read: the prompt is avoided.",
        ),
        Mutant(
            "states one beside the other",
            in_one_like(apart=True),
            "`repeat_interleave` gives x0, x0, x1, x1; the conditions are all nulls, then all "
            "prompts. With one picture nobody sees it.",
        ),
        Mutant(
            "called twice",
            called_twice,
            "Right, and twice as slow on most machines: one call was asked for.",
        ),
    ),
    hints=(
        "Three things are doubled: states, times if they are a tensor, conditions.",
        "`Cond.cat([null, cond])` and `torch.cat([x, x])` have the same order.",
        "`e_null, e_cond = denoise(torch.cat([x, x]), times, rows).chunk(2)`.",
    ),
    about="guidance in one call, and whose row is whose",
    page=PAGE,
)


# ---- a picture that is looked at twice -----------------------------------------------------------


def anagram_noise(
    denoise: Denoise, x: Tensor, t: int, conds: tuple[Cond, Cond], turn, turn_back
) -> Tensor:
    """The noise (b c h w) of a picture that shows conds[0] as it is and conds[1] when turned."""
    upright = denoise(x, t, conds[0])
    turned = turn_back(denoise(turn(x), t, conds[1]))
    return (upright + turned) / 2


def looks(x, t, cond):
    """A network for which up is not down."""
    heights = torch.arange(x.shape[2], dtype=x.dtype).view(-1, 1)
    return 0.3 * x + 0.1 * cond.label.view(-1, 1, 1, 1) * heights + 0.05 * x.cumsum(3) + t / 1000


def slow_anagram(denoise, x, t, conds, turn, turn_back, before=True, after="back", share=0.5):
    state = turn(x) if before else x
    answer = denoise(state, t, conds[1])
    if after == "back":
        answer = turn_back(answer)
    if after == "again":
        answer = turn(answer)
    return share * denoise(x, t, conds[0]) + share * answer


def quarter(x):
    return x.rot90(1, (2, 3))


def quarter_back(x):
    return x.rot90(-1, (2, 3))


def upside_down(x):
    return x.flip(2)


def anagram_cases(seed):
    conds = (Cond(label=torch.tensor([1])), Cond(label=torch.tensor([4])))
    return [
        (looks, draw(seed, 2, 1, 3, 3), 400, conds, quarter, quarter_back),
        (looks, draw(seed, 1, 2, 4, 4), 900, conds, quarter_back, quarter),
        (looks, draw(seed, 1, 2, 4, 6), 100, conds, upside_down, upside_down),
    ]


def anagram_like(**how):
    return lambda *args: slow_anagram(*args, **how)


anagram = Exercise(
    "anagram_noise",
    "core",
    "A visual anagram shows one thing, and another when it is turned. There is one picture, so "
    "one state x (b c h w) and one noise to move along. The network, `denoise(x, t, cond)`, is to "
    "see conds[0] in it as it is, and conds[1] through `turn`; `turn_back` undoes that. Ask it "
    "about both, and return the noise that serves both alike: for the picture as it IS.",
    anagram_noise,
    slow_anagram,
    anagram_cases,
    apart="`visual_anagrams` has these lines in its loop, for all its views",
    mutants=(
        Mutant(
            "the answer is not turned back",
            anagram_like(after=""),
            "The second answer is noise of the turned picture. Taken off the picture as it is, it "
            "removes the wrong pixels.",
        ),
        Mutant(
            "the state is not turned",
            anagram_like(before=False),
            "The network never looks at the picture through the view: it is asked to see the "
            "second thing upright.",
        ),
        Mutant(
            "turned again",
            anagram_like(after="again"),
            "Right for mirrors and half turns, which undo themselves.",
        ),
        Mutant(
            "a sum for the mean",
            anagram_like(share=1.0),
            "Twice the noise is taken off.",
        ),
    ),
    hints=(
        "How does the network get to see the picture turned, and what does its answer belong to?",
        "`turn_back(denoise(turn(x), t, conds[1]))`.",
        "The mean of that and `denoise(x, t, conds[0])`.",
    ),
    about="one picture, seen two ways: a visual anagram",
    page=ANAGRAMS,
)


# ---- a step undone -------------------------------------------------------------------------------


def slow_up(denoise, sch, x, y, s, t, cond, p, swap, order=(1, 0), moves=(1, 0), late=True):
    """Rows: z[0] is x, z[1] is y; `order` in which they are unmixed and `moves` in which they go
    up, for no swap.
    """
    z = [x, y]
    for k in order:
        z[k] = (z[k] - (1 - p) * z[1 - k]) / p
    for k in moves if not swap else moves[::-1]:
        eps = denoise(z[1 - k], t if late else s, cond)
        clean = (z[k] - sch.sigma[s].item() * eps) / sch.alpha[s].item()
        z[k] = sch.alpha[t].item() * clean + sch.sigma[t].item() * eps
    return z[0], z[1]


def up_cases(seed):
    cases = []
    for denoise, sch, x, y, t, s, cond, p, swap in pairs_of_states(seed):
        cases.append((denoise, sch, x, y, s, t, cond, p, swap))
    return cases


def down_and_up(fn):
    x, y = (v.double() for v in draws(4, (1, 3, 4, 4), (1, 3, 4, 4)))
    lower = down(noise_of, LINEAR, x, y, 600, 500, None, 0.9, True)
    return fn(noise_of, LINEAR, *lower, 500, 600, None, 0.9, True), (x, y)


def up_like(**how):
    return lambda *args: slow_up(*args, **how)


undone = Exercise(
    "up",
    "core",
    "The other half of EDICT (do `down` first): undo its coupled step EXACTLY, from time s back "
    "up to t. `down` moved x with the noise of y, then y with the noise of the new x (`swap`: y "
    "first); then it mixed, $x' = p x + (1 - p) y$ and $y' = p y + (1 - p) x'$. Given are x' and "
    "y'. Each of the four lines can be undone with what is known once the lines after it are. The "
    "network was asked at t, and is again: `denoise(state, t, cond)`. Return (x, y).",
    up,
    slow_up,
    up_cases,
    facts=(Fact("it undoes the project's `down`", down_and_up),),
    tolerance=1e-9,
    mutants=(
        Mutant(
            "unmixed in the same order",
            up_like(order=(0, 1)),
            "y was mixed last, with the new x. So it is unmixed first, while that x is still "
            "there.",
        ),
        Mutant(
            "moved in the same order",
            up_like(moves=(0, 1)),
            "What was moved last is moved back first: only then is the other state the one whose "
            "noise was used.",
        ),
        Mutant(
            "asked at the lower time",
            up_like(late=False),
            "The way down asked at t. Another time is another noise, and nothing is undone.",
        ),
        Mutant(
            "the roles never change",
            lambda d, sch, x, y, s, t, c, p, swap: slow_up(d, sch, x, y, s, t, c, p, False),
            "`swap` says which state was moved first.",
        ),
    ),
    hints=(
        "Write down the four lines of `down`, and read them from the last to the first.",
        "`y = (y - (1 - p) * x) / p`, then x with that y.",
        "Then `y = ddim_step(sch, y, denoise(x, t, cond), s, t)`, then x with that y; with swap "
        "the two have changed roles.",
    ),
    about="EDICT's way back: a step undone exactly",
    page=EDICT,
)


# ---- two lines of CLIP ---------------------------------------------------------------------------


def slow_contrastive(logits):
    n = len(logits)
    total = 0.0
    for i in range(n):
        row = logits[i].logsumexp(0) - logits[i, i]
        column = logits[:, i].logsumexp(0) - logits[i, i]
        total = total + (row + column) / 2
    return total / n


def gradient_of_contrast(fn):
    """Where all pairs look alike, the gradient is known: up on the diagonal, down elsewhere."""
    logits = torch.zeros(4, 4, requires_grad=True)
    wanted = (torch.full((4, 4), 0.25) - torch.eye(4)) / 4
    loss = fn(logits)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return torch.zeros(4, 4), wanted
    return torch.autograd.grad(loss, logits)[0], wanted


contrast = Exercise(
    "contrastive_loss",
    "warm-up",
    "How CLIP learns. `logits` (n n) says how well each of n pictures (rows) fits each of n "
    "captions (columns); the i-th picture belongs to the i-th caption. The loss is small if every "
    "picture picks its own caption among all n, AND every caption its own picture: two "
    "classifications with n classes each. Return their mean cross-entropy, a scalar tensor.",
    contrastive_loss,
    slow_contrastive,
    lambda seed: [(draw(seed, 2, 2),), (3 * draw(seed, 6, 6),)],
    facts=(
        Fact(
            "who only guesses has log n",
            lambda fn: (fn(torch.zeros(5, 5)), math.log(5)),
        ),
        Fact(
            "a gradient flows through it (a tensor, neither `.item()` nor `.detach()`)",
            gradient_of_contrast,
        ),
    ),
    mutants=(
        Mutant(
            "pictures only",
            lambda v: F.cross_entropy(v, torch.arange(len(v))),
            "One of the two directions: nothing keeps one picture from suiting all captions.",
        ),
        Mutant(
            "captions only",
            lambda v: F.cross_entropy(v.T, torch.arange(len(v))),
            "One of the two directions: nothing keeps one caption from suiting all pictures.",
        ),
        Mutant(
            "a sum for the mean",
            lambda v: 2 * contrastive_loss(v),
            "Both directions are added and not halved.",
        ),
        Mutant(
            "the diagonal alone",
            lambda v: -v.diagonal().mean(),
            "All logits may then grow together: only what pairs fit BETTER than others counts.",
        ),
    ),
    hints=(
        "Which class is right in row i?",
        "`F.cross_entropy(logits, torch.arange(n))` is one of the two.",
        "The other is that of `logits.T`; take their mean.",
    ),
    about="how CLIP learns: who belongs to whom",
    page=TEXT,
)


def slow_join(symbols, pair):
    out = []
    i = 0
    while i < len(symbols):
        if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


def join_cases(seed):
    g = torch.Generator().manual_seed(seed)
    letters = ["ab"[k] for k in torch.randint(2, (9,), generator=g).tolist()]
    return [
        (["c", "a", "t"], ("a", "t")),
        (["a", "a", "a", "b", "a", "a"], ("a", "a")),
        (["ab", "c", "a", "b", "c"], ("b", "c")),
        (letters, ("a", "b")),
        ([], ("a", "b")),
    ]


def by_text(symbols, pair):
    marked = " ".join(symbols).replace(" ".join(pair), "".join(pair))
    return marked.split()


def first_pair_only(symbols, pair):
    for i in range(len(symbols) - 1):
        if (symbols[i], symbols[i + 1]) == pair:
            return symbols[:i] + ["".join(pair)] + symbols[i + 2 :]
    return list(symbols)


def from_the_right(symbols, pair):
    turned = slow_join([s[::-1] for s in symbols[::-1]], tuple(p[::-1] for p in pair[::-1]))
    return [s[::-1] for s in turned[::-1]]


def overlapping(symbols, pair):
    out = []
    for i, symbol in enumerate(symbols):
        after = symbols[i + 1] if i + 1 < len(symbols) else None
        before = symbols[i - 1] if i else None
        if (symbol, after) == pair:
            out.append(symbol + after)
        elif (before, symbol) != pair:
            out.append(symbol)
    return out


merged = Exercise(
    "join",
    "warm-up",
    "One step of a tokenizer (byte-pair encoding): a word is a list of symbols, and wherever the "
    "two symbols of `pair` follow each other they become one. Go from left to right; a symbol "
    "that was merged is not merged again. Return a new list.",
    join,
    slow_join,
    join_cases,
    mutants=(
        Mutant(
            "only the first",
            first_pair_only,
            'The second "an" of "banana" stays in two: the tokens are no longer those that the '
            "network was trained on.",
        ),
        Mutant(
            "from the right",
            from_the_right,
            '"aaa" becomes a, aa: the rule is left to right.',
        ),
        Mutant(
            "overlapping",
            overlapping,
            '"aaa" becomes aa, aa: the letter in the middle is used twice.',
        ),
        Mutant(
            "by the text",
            by_text,
            "Symbols end where they end. Replaced in a joined text, the end of one symbol and the "
            "next are taken for the pair.",
        ),
    ),
    hints=(
        "A list grows while another is read.",
        "Look at the last symbol that was written, and the next one.",
        "`if out and (out[-1], s) == pair: out[-1] += s`, else append.",
    ),
    about="one merge of a tokenizer",
    page=TEXT,
)

EXERCISES = (steering, composed, one_batch, anagram, undone, contrast, merged)
