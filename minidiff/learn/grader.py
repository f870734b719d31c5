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
from typing import Any

import torch
from torch import Tensor

from minidiff.learn import records
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises import find
from minidiff.learn.exercises.inputs import shifted
from minidiff.learn.pictures import draw_difference, show
from minidiff.learn.values import clone, close, difference, is_number, kind, leaves, scale

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
    """`layer` is where it failed, "" if it passed; `error` is the largest difference, and `where`
    the place of it.
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
        lines = [f"{self.name}: not yet ({self.layer}). {self.says}"]
        if self.mutant:
            lines.append(f"  This is a known mistake: {self.mutant.name}. {self.mutant.story}")
        if self.picture:
            lines.append(f"  Yours, the target and the difference: {self.picture}")
        lines.append(
            f'  For a hint: hint("{self.name}"), or in a shell: '
            f"python -m minidiff learn hint {self.name}"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Case:
    """One call: its arguments, what the learner's function returned, what it should have."""

    args: tuple
    answer: Any
    target: Any


# ---- calling a foreign function ------------------------------------------------------------------


@contextmanager
def at_most(seconds: float):
    """Interrupt what takes longer, where the system can: in a main thread that has alarms."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "setitimer"):
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


def call(fn: Callable, args: tuple, limit: float = LIMIT):
    """fn(*args) on copies; every way in which a foreign function can fail becomes a sentence
    (`Wrong`).
    """
    copies = clone(args)
    try:
        with at_most(limit), torch.random.fork_rng(devices=[]):
            answer = fn(*copies)
    except NotImplementedError:
        raise Wrong("It is not written yet: it raises NotImplementedError.") from None
    except TimeUp:
        raise Wrong(
            f"It did not return within {limit:.0f} seconds: is there a loop that never ends?"
        ) from None
    except RecursionError:
        raise Wrong("It calls itself without end.") from None
    except Exception as e:
        raise Wrong(_what_it_raised(fn, e)) from None
    changed, _ = difference(copies, args)
    if changed > 0:
        raise Wrong(
            "It changes its input in place: work on a new tensor, such as x = x + y and not x += y."
        )
    return answer


def _what_it_raised(fn: Callable, error: Exception) -> str:
    """The error, and the last line of the learner's own file on the way to it."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    file = code.co_filename if code else ""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    place = ""
    if frames and frames[-1].line:
        place = f" in line {frames[-1].lineno}, `{frames[-1].line}`"
    message = str(error).splitlines()[0] if str(error) else "without a message"
    return f"It raised {type(error).__name__}{place}: {message}"


# ---- the three layers ----------------------------------------------------------------------------


def grade(exercise: Exercise, fn: Callable, draw: bool = False, limit: float = LIMIT) -> Verdict:
    """The three layers, stopping at the first that fails. Nothing is printed or remembered.

    `draw`: a wrong answer becomes a picture in the learner's folder, if it can be shown. `limit`:
    seconds for one call.
    """
    if not callable(fn):
        says = f"A function was expected, got {kind(fn)}."
        return Verdict(exercise.name, False, "contract", says)

    def guarded(*args):
        return call(fn, args, limit)

    return judge(exercise, guarded, draw)


def judge(exercise: Exercise, guarded: Callable, draw: bool = False, shift: int = 0) -> Verdict:
    """The three layers for a function that raises `Wrong` and nothing else, wherever it runs.

    `shift`: another one draws other cases.
    """
    try:
        cases = answer_cases(exercise, guarded, shift)
    except Wrong as wrong:
        return Verdict(exercise.name, False, "contract", str(wrong))
    off = [c for c in cases if not close(c.answer, c.target, exercise.tolerance)]
    if off:
        return _off(exercise, cases, off, draw)
    for fact in exercise.facts:
        verdict = _broken(exercise, fact, guarded)
        if verdict:
            return verdict
    return _behaviour(exercise, guarded)


def answer_cases(exercise: Exercise, guarded: Callable, shift: int = 0) -> list[Case]:
    """Every case with its answer. `Wrong` at the first that is not of the right kind."""
    cases = []
    for seed in SEEDS:
        with shifted(shift):
            drawn = list(exercise.cases(seed))
        for args in drawn:
            target = exercise.spec(*clone(args))
            answer = guarded(*args)
            contract(answer, target)
            cases.append(Case(args, answer, target))
    return cases


def contract(answer, target) -> None:
    """Is the answer of the kind that was asked for? `Wrong` says what came and what was
    expected.
    """
    if type(answer).__module__ == "numpy":
        raise Wrong(
            f"It returned a numpy {type(answer).__name__}; expected {kind(target)}: stay in torch "
            "(torch.from_numpy)."
        )
    tensors = isinstance(answer, Tensor) and isinstance(target, Tensor)
    numbers = is_number(answer) and is_number(target)
    if not (tensors or numbers or type(answer) is type(target)):
        end = ": is a `return` missing?" if answer is None else "."
        raise Wrong(f"It returned {kind(answer)}; expected {kind(target)}{end}")
    answers = list(leaves(answer))
    targets = list(leaves(target))
    if [path for path, _ in answers] != [path for path, _ in targets]:
        if isinstance(target, list):  # of another length: wrong, but of the right kind
            return
        raise Wrong(f"It returned {kind(answer)}; expected {kind(target)}.")
    for (path, x), (_, y) in zip(answers, targets):
        _same_kind(path, x, y, of_tensor=isinstance(target, Tensor))


def _same_kind(path: str, x: Tensor, y: Tensor, of_tensor: bool) -> None:
    """Shape, dtype, device and finite numbers of the answer's part x beside the target's part y."""
    at = f" at {path}" if path else ""
    if x.shape != y.shape:
        raise Wrong(f"The shape{at} is {tuple(x.shape)}; expected {tuple(y.shape)}.")
    if of_tensor and x.dtype != y.dtype:
        raise Wrong(f"The dtype is {x.dtype}; expected {y.dtype}, that of the input.")
    if x.device != y.device:
        raise Wrong(f"The answer is on {x.device}; expected {y.device}, where the input is.")
    if y.isfinite().all() and not x.isfinite().all():
        what = "NaN" if x.isnan().any() else "infinite values"
        raise Wrong(
            f"The answer{at} holds {what}: is there a division by zero, or a root of "
            "something negative?"
        )


def _off(exercise: Exercise, cases: list[Case], off: list[Case], draw: bool) -> Verdict:
    """The verdict on an answer with other numbers than the specification's."""
    first = off[0]
    error, where = difference(first.answer, first.target)
    place = f" at {where}" if where else ""
    return Verdict(
        exercise.name,
        False,
        "facts",
        f"{len(off)} of {len(cases)} cases are off; in the first the largest error is "
        f"{error:.3g}{place} (values reach {scale(first.target):.3g}).",
        error,
        where,
        mistake(exercise, cases) or mistake(exercise, off),
        draw_difference(exercise.name, first.answer, first.target) if draw else "",
    )


def _broken(exercise: Exercise, fact: Fact, guarded: Callable) -> Verdict | None:
    """The verdict on a function for which the fact does not hold; None if it does."""
    try:
        got, wanted = fact.test(guarded)
    except Wrong as wrong:
        return Verdict(exercise.name, False, "facts", f"{fact.says}: {wrong}")
    if close(got, wanted, exercise.tolerance):
        return None
    error, where = difference(got, wanted)
    says = f"This does not hold: {fact.says} (off by {error:.3g})."
    return Verdict(exercise.name, False, "facts", says, error, where, breaker(exercise, fact))


def _behaviour(exercise: Exercise, guarded: Callable) -> Verdict:
    """The last verdict: does the function do its work, where there is a measure of that?"""
    if exercise.behaviour is None:
        return Verdict(exercise.name, True)
    try:
        score, needed, what = exercise.behaviour(guarded)
    except Wrong as wrong:
        says = f"Plugged in, it fails: {wrong}"
        return Verdict(exercise.name, False, "behaviour", says)
    if not score >= needed:  # NaN fails, too
        says = f"{what}: {score:.3g}, at least {needed:.3g} was expected."
        return Verdict(exercise.name, False, "behaviour", says)
    return Verdict(exercise.name, True, says=f"{what}: {score:.3g} (needed: {needed:.3g}).")


# ---- which mistake it is -------------------------------------------------------------------------


def mistake(exercise: Exercise, cases: list[Case]) -> Mutant | None:
    """The mutant that gives the learner's answers in all of these cases."""
    for mutant in exercise.mutants:
        if all(_agrees(exercise, mutant, case) for case in cases):
            return mutant
    return None


def _agrees(exercise: Exercise, mutant: Mutant, case: Case) -> bool:
    try:
        return close(case.answer, mutant.fn(*clone(case.args)), exercise.tolerance)
    except Exception:  # a mutant that cannot run here is not the one
        return False


def breaker(exercise: Exercise, fact: Fact) -> Mutant | None:
    """If exactly one mutant breaks that fact and no case, it is the likely mistake."""
    breakers = [m for m in exercise.mutants if _breaks(exercise, m, fact)]
    return breakers[0] if len(breakers) == 1 else None


def _breaks(exercise: Exercise, mutant: Mutant, fact: Fact) -> bool:
    try:
        got, wanted = fact.test(mutant.fn)
        return not close(got, wanted, exercise.tolerance)
    except Exception:
        return False


# ---- what a learner calls ------------------------------------------------------------------------


def check(name: str, fn: Callable, must: bool = False) -> Verdict:
    """Grade `fn` as the exercise `name`, print the verdict and remember it. KeyError: no exercise
    of that name.

    `must`: do not go on with a wrong one (`NotYet`); in a notebook what follows needs it.
    """
    verdict = grade(find(name), fn, draw=True)
    records.add_try(name, verdict.passed)
    print(verdict)
    if verdict.picture:
        show(verdict.picture)
    if must and not verdict.passed:
        raise NotYet(f"The notebook stops here until {name} is right.")
    return verdict
