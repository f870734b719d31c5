"""Grade a function that somebody wrote: contract, facts, behaviour; and say which known mistake it
makes.

    check("ddim_step", my_ddim_step)

Every failure is one sentence about the learner's function, never a traceback of ours. A mistake is
named when the answer equals that of a known mutant on every case in which it is wrong.
"""

import inspect
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff.learn import home
from minidiff.learn.exercise import Exercise, Mutant
from minidiff.learn.exercises import find
from minidiff.learn.values import clone, close, difference, kind, leaves, scale

LIMIT = 20.0  # seconds for one call
SEEDS = (0, 1, 2)


class Wrong(Exception):
    """What is wrong with an answer, in a sentence."""


class NotYet(Exception):
    """What `check(..., must=True)` raises: a notebook stops there, and shows its sentence alone."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this instead of its own
        return [str(self)]


class TimeUp(BaseException):
    """Not an Exception, so that a learner's `except Exception` does not swallow it."""


@dataclass(frozen=True)
class Verdict:
    """`layer` is where it failed, "" if it passed; `error` the largest difference and `where` it
    is.
    """

    name: str
    passed: bool
    layer: str = ""
    says: str = ""
    error: float = 0.0
    where: str = ""
    mutant: Mutant | None = None
    picture: str = ""

    def __str__(self) -> str:
        if self.passed:
            return f"{self.name}: right. {self.says}".strip()
        named = (
            f"\n  This is a known mistake: {self.mutant.name}. {self.mutant.story}"
            if self.mutant
            else ""
        )
        shown = f"\n  Yours, the target and the difference: {self.picture}" if self.picture else ""
        return (
            f"{self.name}: not yet ({self.layer}). {self.says}{named}{shown}\n  "
            f'hint("{self.name}") gives a hint.'
        )


@contextmanager
def at_most(seconds: float):
    """Interrupts what takes longer, where the system can (a main thread that has alarms)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def ring(*_):
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def called(fn: Callable, args: tuple, limit: float = LIMIT):
    """fn(*args) on copies; every way in which a foreign function can fail becomes a sentence
    (`Wrong`).
    """
    given = clone(args)
    try:
        with at_most(limit), torch.random.fork_rng(devices=[]):
            out = fn(*given)
    except NotImplementedError:
        raise Wrong("It is not written yet: it raises NotImplementedError.") from None
    except TimeUp:
        raise Wrong(
            f"It did not return within {limit:.0f} seconds: is there a loop that never ends?"
        ) from None
    except RecursionError:
        raise Wrong("It calls itself without end.") from None
    except Exception as e:
        lines = [f for f in traceback.extract_tb(e.__traceback__) if f.filename == _file(fn)]
        place = (
            f" in line {lines[-1].lineno}, `{lines[-1].line}`" if lines and lines[-1].line else ""
        )
        said = str(e).splitlines()[0] if str(e) else "without a message"
        raise Wrong(f"It raised {type(e).__name__}{place}: {said}") from None
    if difference(given, args)[0] > 0:
        raise Wrong(
            "It changes its input in place: work on a new tensor, such as x = x + y and not x += y."
        )
    return out


def _file(fn: Callable) -> str:
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return code.co_filename if code else ""


def contract(out, want) -> None:
    """Is the answer of the kind that was asked for? `Wrong` says what came and what was
    expected.
    """
    if type(out).__module__ == "numpy":
        raise Wrong(
            f"It returned a numpy {type(out).__name__}; expected {kind(want)}: stay in torch "
            "(torch.from_numpy)."
        )
    number = lambda v: isinstance(v, (int, float)) or (isinstance(v, Tensor) and v.ndim == 0)  # noqa: E731
    tensors = isinstance(want, Tensor) and isinstance(out, Tensor)
    if not (tensors or (number(out) and number(want)) or type(out) is type(want)):
        more = ": is a `return` missing?" if out is None else "."
        raise Wrong(f"It returned {kind(out)}; expected {kind(want)}{more}")
    got, due = list(leaves(out)), list(leaves(want))
    if [p for p, _ in got] != [p for p, _ in due]:
        if isinstance(want, list):  # of another length: wrong, but of the right kind
            return
        raise Wrong(f"It returned {kind(out)}; expected {kind(want)}.")
    for (path, x), (_, y) in zip(got, due):
        at = f" at {path}" if path else ""
        if x.shape != y.shape:
            raise Wrong(f"The shape{at} is {tuple(x.shape)}; expected {tuple(y.shape)}.")
        if isinstance(want, Tensor) and x.dtype != y.dtype:
            raise Wrong(f"The dtype is {x.dtype}; expected {y.dtype}, that of the input.")
        if x.device != y.device:
            raise Wrong(f"The answer is on {x.device}; expected {y.device}, where the input is.")
        if y.isfinite().all() and not x.isfinite().all():
            what = "NaN" if x.isnan().any() else "infinite values"
            raise Wrong(
                f"The answer{at} holds {what}: is there a division by zero, or a root of "
                "something negative?"
            )


def grade(e: Exercise, fn: Callable, draw: bool = False) -> Verdict:
    """The three layers, stopping at the first that fails; nothing is printed or remembered (`draw`:
    a picture is).
    """
    if not callable(fn):
        return Verdict(e.name, False, "contract", f"A function was expected, got {kind(fn)}.")
    cases = [args for seed in SEEDS for args in e.cases(seed)]
    rows = []  # (args, out, want) of every case
    for args in cases:
        want = e.spec(*clone(args))
        try:
            out = called(fn, args)
            contract(out, want)
        except Wrong as w:
            return Verdict(e.name, False, "contract", str(w))
        rows.append((args, out, want))
    wrong = [r for r in rows if not close(r[1], r[2], e.tolerance)]
    if wrong:
        args, out, want = wrong[0]
        error, where = difference(out, want)
        says = (
            f"{len(wrong)} of {len(cases)} cases are off; in the first the largest error is "
            f"{error:.3g}"
            f"{' at ' + where if where else ''} (values reach {scale(want):.3g})."
        )
        return Verdict(
            e.name,
            False,
            "facts",
            says,
            error,
            where,
            mistake(e, rows) or mistake(e, wrong),
            home.picture(e.name, out, want) if draw else "",
        )
    for fact in e.facts:
        try:
            got, want = fact.test(lambda *args: called(fn, args))
        except Wrong as w:
            return Verdict(e.name, False, "facts", f"{fact.says}: {w}")
        if not close(got, want, e.tolerance):
            error, where = difference(got, want)
            return Verdict(
                e.name,
                False,
                "facts",
                f"This does not hold: {fact.says} (off by {error:.3g}).",
                error,
                where,
                failing(e, fact),
            )
    if e.behaviour:
        try:
            score, needed, what = e.behaviour(lambda *args: called(fn, args))
        except Wrong as w:
            return Verdict(e.name, False, "behaviour", f"Plugged in, it fails: {w}")
        if not score >= needed:
            return Verdict(
                e.name,
                False,
                "behaviour",
                f"{what}: {score:.3g}, at least {needed:.3g} was expected.",
            )
        return Verdict(e.name, True, says=f"{what}: {score:.3g} (needed: {needed:.3g}).")
    return Verdict(e.name, True)


def mistake(e: Exercise, rows: list[tuple]) -> Mutant | None:
    """The mutant that gives the learner's answers in all of these (args, out, want)."""
    for m in e.mutants:
        try:
            if all(close(out, m.fn(*clone(args)), e.tolerance) for args, out, _ in rows):
                return m
        except Exception:  # a mutant that cannot run here is not the one
            continue
    return None


def failing(e: Exercise, fact) -> Mutant | None:
    """If exactly one mutant breaks that fact and no case, it is the likely mistake."""

    def breaks(m):
        try:
            return not close(*fact.test(m.fn), e.tolerance)
        except Exception:
            return False

    found = [m for m in e.mutants if breaks(m)]
    return found[0] if len(found) == 1 else None


def check(name: str, fn: Callable, must: bool = False) -> Verdict:
    """Grade `fn` as the exercise `name`, print the verdict and remember it. KeyError: no exercise
    of that name.

    `must`: do not go on with a wrong one (`NotYet`); in a notebook what follows needs it.
    """
    verdict = grade(find(name), fn, draw=True)
    home.remember(name, verdict.passed)
    print(verdict)
    if verdict.picture:
        home.show(verdict.picture)
    if must and not verdict.passed:
        raise NotYet(f"The notebook stops here until {name} is right.")
    return verdict
