"""The process: one pure function per equation of x_t = alpha_t x0 + sigma_t eps.

Nothing here assumes variance preservation, so each line serves DDPM, flow and VE tables alike.
Times t and s are a python int (then every coefficient is a float) or a LongTensor (b,) (then b 1 1
..); images keep their shape. A state belongs to the time it is AT: after a move t -> s, blend,
re-noise and compare at s.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from minidiff.core.schedule import Schedule


def v_target(alpha: float | Tensor, sigma: float | Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """What a network of v-prediction is trained to output, for the picture x0 (b ..) and its noise
    eps (Salimans & Ho 2022, arXiv 2202.00512).
    """
    return alpha * eps - sigma * x0


# What networks are trained to output: (the target from x0 and eps, eps from x_t and the output).
# The divisors of v are 1 on VP tables, those of flow on flow tables.
PREDICTIONS = {
    "eps": (
        lambda a, s, x0, eps: eps,
        lambda a, s, x_t, out: out,
    ),
    "x0": (
        lambda a, s, x0, eps: x0,
        lambda a, s, x_t, out: (x_t - a * out) / s,
    ),
    "v": (
        v_target,
        lambda a, s, x_t, out: (s * x_t + a * out) / (a * a + s * s),
    ),
    "flow": (  # d x_t / d sigma on flow tables
        lambda a, s, x0, eps: eps - x0,
        lambda a, s, x_t, out: (x_t + a * out) / (a + s),
    ),
}


def _any(said: bool | Tensor) -> bool:
    # a bool made a tensor costs more than a move
    return bool(said.any()) if isinstance(said, Tensor) else said


def _root(v: Any) -> Any:
    # rounding may dip below 0
    return v.clamp(min=0).sqrt() if isinstance(v, Tensor) else max(v, 0.0) ** 0.5


def q_sample(sch: Schedule, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
    """The noisy picture at time t."""
    a, s = sch.at(t, x0)
    return a * x0 + s * eps  # DDPM eq. 4


def eps_to_x0(sch: Schedule, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """The clean picture that x_t and its noise imply;
    for the best denoiser E[x0 | x_t] (Tweedie).
    """
    a, s = sch.at(t, x_t)
    return (x_t - s * eps) / a  # DDIM eq. 9


def x0_to_eps(sch: Schedule, x_t: Tensor, x0: Tensor, t: int | Tensor) -> Tensor:
    """The noise that x_t and its clean picture imply; not defined at t = 0, where there is none."""
    a, s = sch.at(t, x_t)
    return (x_t - a * x0) / s


def to_eps(sch: Schedule, x_t: Tensor, out: Tensor, t: int | Tensor, prediction: str) -> Tensor:
    """Read a network's output as eps, whichever of `PREDICTIONS` it was trained for."""
    _, read = _prediction(prediction)
    alpha, sigma = sch.at(t, x_t)
    return read(alpha, sigma, x_t, out)


def target(sch: Schedule, x0: Tensor, eps: Tensor, t: int | Tensor, prediction: str) -> Tensor:
    """What a network of that prediction type is trained to output: the inverse of `to_eps`."""
    make, _ = _prediction(prediction)
    alpha, sigma = sch.at(t, x0)
    return make(alpha, sigma, x0, eps)


def _prediction(name: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    if name not in PREDICTIONS:
        raise ValueError(f"prediction={name!r} is unknown; choose one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]


def transition(sch: Schedule, s: int | Tensor, t: int | Tensor, like: Tensor) -> tuple[Any, Any]:
    """(a, var) of the forward jump q(x_t | x_s) = N(a
    x_s, var), s <= t. For VP var is the strided beta.
    """
    (a_s, sig_s), (a_t, sig_t) = sch.at(s, like), sch.at(t, like)
    a = a_t / a_s
    return a, sig_t**2 - a**2 * sig_s**2


def renoise(sch: Schedule, x_s: Tensor, s: int | Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
    """Jump forward from time s to t >= s: RePaint's way
    of undoing a move. With s = 0 this is `q_sample`.
    """
    if _any(s > t):
        raise ValueError(
            f"renoise goes from s up to t, got s={s}, t={t}; to go down use ddim_step or posterior"
        )
    a, var = transition(sch, s, t, x_s)
    return a * x_s + _root(var) * noise


def posterior(
    sch: Schedule, x_t: Tensor, x0: Tensor, t: int | Tensor, s: int | Tensor
) -> tuple[Tensor, Any]:
    """(mean, var) of q(x_s | x_t, x0), s < t: where
    ancestral sampling draws the next state from.
    """
    (a_s, sig_s), (_, sig_t) = sch.at(s, x_t), sch.at(t, x_t)
    a, var = transition(sch, s, t, x_t)
    mean = a * sig_s**2 / sig_t**2 * x_t + a_s * var / sig_t**2 * x0  # DDPM eq. 7
    return mean, posterior_variance(sch, t, s, x_t)


def posterior_variance(sch: Schedule, t: int | Tensor, s: int | Tensor, like: Tensor) -> Any:
    """The variance of q(x_s | x_t, x0), s < t, which depends on neither state."""
    (_, sig_s), (_, sig_t) = sch.at(s, like), sch.at(t, like)
    _, var = transition(sch, s, t, like)
    return var * sig_s**2 / sig_t**2  # DDPM eq. 7, beta tilde


def ddim_step(
    sch: Schedule,
    x_t: Tensor,
    eps: Tensor,
    t: int | Tensor,
    s: int | Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
    eps_dir: Tensor | None = None,
) -> Tensor:
    """Move a state from time t to time s: s < t denoises, s > t inverts (with eta = 0).

    eta = 0 is deterministic, eta = 1 is ancestral sampling with the small variance; between,
    `noise` has the weight eta. `eps_dir` replaces eps in the second term, "the direction pointing
    to x_t", but not in x0 (Asyrp).
    """
    (a_t, s_t), (a, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    if eta == 0 and eps_dir is None:
        # DDIM eq. 12 with eq. 9 put in: half the work
        return a / a_t * x_t + (s_s - a / a_t * s_t) * eps
    direction = eps if eps_dir is None else eps_dir
    if eta == 0:
        return a * eps_to_x0(sch, x_t, eps, t) + s_s * direction  # DDIM eq. 12
    if not 0 < eta <= 1 or noise is None or _any(s > t):
        raise ValueError(
            f"eta={eta}, t={t}, s={s}: eta > 0 needs eta <= 1, a noise tensor, s <= t; invert at "
            "eta=0"
        )
    sig = eta * _root(posterior_variance(sch, t, s, x_t))  # DDIM eq. 16
    kept = _root(s_s**2 - sig**2)
    if eps_dir is None:
        # eq. 12 with eq. 9 put in, as above
        return a / a_t * x_t + (kept - a / a_t * s_t) * eps + sig * noise
    return a * eps_to_x0(sch, x_t, eps, t) + kept * eps_dir + sig * noise  # DDIM eq. 12
