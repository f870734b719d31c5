"""A stream of pictures: frames at different levels of noise share one call of the network.

StreamDiffusion: A Pipeline-level Solution for Real-time Interactive Generation, Akio Kodaira,
Chenfeng Xu, Toshiki Hazama, Takanori Yoshimoto, Kohei Ohno, Shogo Mitsuhori, Soichi Sugano,
Hanying Cho, Zhijian Liu, Kurt Keutzer, 2023, arXiv 2312.12491.

A few-step model treats a frame n times: noise it to t_1, guess the clean picture, noise the guess
to t_2 < t_1, guess again, down to t_n. The n calls for one frame must wait for each other. The
calls for n frames need not: while the newest frame is at t_1, the one before is at t_2, and the
oldest at t_n. Together they are one batch, with a time for each row:

    z   = [noised to t_1: the new frame] + [on their way: n - 1 older ones]
    x0  = guess(z, [t_1 .. t_n])            one call a tick
    out = x0's last row;  row i goes on at alpha_{i+1} x0_i + sigma_{i+1} noise_{i+1}

Guidance without its second call (residual guidance): what an unconditional model would say is
replaced by the noise that leads from the state back to a known picture, the frame itself ("self"),
or the guess that one unconditional call made at t_1 ("initialize"). And a frame that resembles the
last one is skipped at random (`Similar`).

Try: a still frame: from the n-th tick on every output is the same; "full" beside "self"; a clip
with doubled frames.

Weakness: the first n - 1 outputs are of nothing (`tick` returns None), and every output is n - 1
ticks late. It needs a network that guesses well from few levels (a consistency or turbo model);
the arithmetic here holds for any. A new prompt meets frames that are half done. The noises stay the
same from tick to tick, so that a still scene stands still: an error does, too.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff.core.cfg import guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.process import eps_to_x0, q_sample, x0_to_eps
from minidiff.core.schedule import Schedule

GUIDANCE = ("none", "full", "self", "initialize")


@dataclass(frozen=True, eq=False)
class Stream:
    """What stays the same from tick to tick.

    times     n falling times > 0
    noises    n .., one for each level, drawn once
    cond      one row, or None; null likewise, for "full" and "initialize"
    scale     of the guidance, 1 is off; delta: the share of the virtual noise
    """

    denoise: Denoise
    sch: Schedule
    times: tuple[int, ...]
    noises: Tensor
    cond: Cond | None = None
    null: Cond | None = None
    guidance: str = "none"
    scale: float = 1.2
    delta: float = 1.0

    def __post_init__(self) -> None:
        self.sch.checked([*self.times, 0])
        if len(self.noises) != len(self.times):
            raise ValueError(
                f"{len(self.noises)} noises for {len(self.times)} times: one for each level"
            )
        if self.guidance not in GUIDANCE:
            raise ValueError(f"guidance={self.guidance!r}: choose one of {', '.join(GUIDANCE)}")
        if self.guidance in ("full", "initialize") and (self.null is None or self.cond is None):
            raise ValueError(f"guidance={self.guidance!r} needs both cond and null")


@dataclass(frozen=True, eq=False)
class Flight:
    """What is on its way: k <= n - 1 states, the newest first, each with the picture that residual
    guidance leads back to.
    """

    states: Tensor
    origins: Tensor


def take_off(frame: Tensor) -> Flight:
    """Nothing on its way yet, for frames like this one (1 ..)."""
    return Flight(frame[:0], frame[:0])


@torch.no_grad()
def tick(stream: Stream, flight: Flight, frame: Tensor) -> tuple[Flight, Tensor | None]:
    """One frame (1 ..) in, one call of the network, one picture (1 ..) out: that of the frame n - 1
    ticks ago; None while there was none.
    """
    sch = stream.sch
    z = torch.cat([q_sample(sch, frame, stream.times[0], stream.noises[:1]), flight.states])
    t = torch.tensor(stream.times[: len(z)])
    origins = torch.cat([frame, flight.origins])
    eps, origins = noise_of(stream, z, t, origins)
    x0 = eps_to_x0(sch, z, eps, t)
    n = len(stream.times)
    out = x0[n - 1 :] if len(x0) == n else None
    goes_on = x0[: n - 1]
    states = next_level(sch, goes_on, stream.times, stream.noises)
    return Flight(states, origins[: n - 1]), out


def next_level(sch: Schedule, x0: Tensor, times: tuple[int, ...], noises: Tensor) -> Tensor:
    """The guesses x0 (k .., newest first; row i was made at times[i]), each noised to the time
    after its own, with the noise of that level.
    """
    k = len(x0)
    after = torch.tensor(times[1 : k + 1], dtype=torch.int64)
    return q_sample(sch, x0, after, noises[1 : k + 1])


def noise_of(stream: Stream, z: Tensor, t: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
    """The guided noise in the states z (k ..) at the times t (k,), in one call; and where residual
    guidance leads them back to.
    """
    k = len(z)
    cond = None if stream.cond is None else stream.cond.expand(k)
    if stream.guidance == "none" or stream.scale == 1:
        return stream.denoise(z, t, cond), origins
    if stream.guidance == "self":
        eps = stream.denoise(z, t, cond)
    else:  # unconditional rows in front: all, or the newest alone
        assert stream.null is not None and cond is not None
        u = k if stream.guidance == "full" else 1
        both = Cond.cat([stream.null.expand(u), cond])
        answers = stream.denoise(torch.cat([z[:u], z]), torch.cat([t[:u], t]), both)
        eps_null = answers[:u]
        eps = answers[u:]
        if stream.guidance == "full":
            return guide(eps_null, eps, stream.scale), origins
        guess = eps_to_x0(stream.sch, z[:1], eps_null, t[:1])
        origins = torch.cat([guess, origins[1:]])
    virtual = x0_to_eps(stream.sch, z, origins, t)
    return guide(stream.delta * virtual, eps, stream.scale), origins


class Similar:
    """The stochastic similarity filter: is this frame so much like the last one that was treated
    that it may be skipped? The more it is, the likelier:

        P(skip) = max(0, 1 - (1 - cos) / (1 - threshold))

    and after `longest` skips in a row one is treated anyhow.
    """

    def __init__(self, threshold: float = 0.98, longest: int = 10, seed: int = 0):
        if not -1 <= threshold < 1:
            raise ValueError(f"threshold={threshold}: a cosine from -1 to below 1; .98 is usual")
        self.threshold = threshold
        self.longest = longest
        self.chance = torch.Generator().manual_seed(seed)
        self.last: Tensor | None = None
        self.skipped = 0

    def __call__(self, frame: Tensor) -> bool:
        drawn = torch.rand((), generator=self.chance, dtype=torch.float64).item()
        if self.last is not None and self.skipped < self.longest:
            if drawn < skip_probability(self.last, frame, self.threshold):
                self.skipped += 1
                return True
        self.last = frame.clone()
        self.skipped = 0
        return False


def skip_probability(last: Tensor, frame: Tensor, threshold: float) -> float:
    cos = torch.cosine_similarity(last.flatten(), frame.flatten(), dim=0, eps=1e-6).item()
    return max(0.0, 1 - (1 - cos) / (1 - threshold))


def streamed(
    stream: Stream, frames: Iterable[Tensor], similar: Similar | None = None
) -> Iterator[Tensor | None]:
    """One output for each frame (1 ..); for a skipped one the output before, without a call."""
    flight: Flight | None = None
    out: Tensor | None = None
    for frame in frames:
        if flight is None:
            flight = take_off(frame)
        if similar is None or not similar(frame):
            flight, out = tick(stream, flight, frame)
        yield out


@torch.no_grad()
def one_by_one(stream: Stream, frame: Tensor) -> Tensor:
    """The same treatment of one frame (1 ..) with nothing beside it: n calls, one after the other.
    What the stream must equal.
    """
    x0 = frame
    origins = frame
    for i, t in enumerate(stream.times):
        z = q_sample(stream.sch, x0, t, stream.noises[i : i + 1])
        at_first = stream.guidance == "initialize" and i > 0  # the unconditional call was made
        how = dataclasses.replace(stream, guidance="self") if at_first else stream
        eps, origins = noise_of(how, z, torch.tensor([t]), origins)
        x0 = eps_to_x0(stream.sch, z, eps, t)
    return x0
