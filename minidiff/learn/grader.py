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
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minidiff.core.schedule import Schedule
from minidiff.learn import records
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises import find
from minidiff.learn.exercises.inputs import shifted
from minidiff.learn.pictures import draw_difference, show
from minidiff.learn.values import (
    clone,
    close,
    difference,
    in_words,
    is_number,
    is_sequence,
    kind,
    leaves,
    scale,
)

LIMIT = 20.0  # seconds for one call
SEEDS = (0, 1, 2)
EXPLAINED = 0.01  # the share of an error that a known mistake may leave unexplained
OF_FLOATS = (
    " For an int time `sch.at` gives two Python floats, for a LongTensor two tensors: `v ** 0.5` "
    "is the root of both."
)
OF_ROWS = (
    " Here t is a LongTensor (b,), a time for each row: `sch.at(t, x)` then gives tensors of shape "
    "(b, 1, 1, 1)."
)


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
        raise Wrong(_what_it_raised(fn, e) + _what_was_given(args, e)) from None
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


def _what_was_given(args: tuple, error: Exception) -> str:
    """What a function of a schedule that failed may not have thought of; "" if nothing is known."""
    if not any(isinstance(value, Schedule) or hasattr(value, "schedule") for value in args):
        return ""
    if any(isinstance(value, Tensor) and value.dtype == torch.int64 for value in args):
        return OF_ROWS
    of_float = "'float' object" in str(error) or "not float" in str(error)
    return OF_FLOATS if of_float else ""


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


def judge(
    exercise: Exercise,
    guarded: Callable,
    draw: bool = False,
    shift: int = 0,
    remote: bool = False,
) -> Verdict:
    """The three layers for a function that raises `Wrong` and nothing else, wherever it runs.

    `shift`: another one draws other cases. `remote`: it runs in another process, and its answers
    come as numbers.
    """

    def asked(*args):
        return _read(exercise, guarded(*args))

    try:
        cases = answer_cases(exercise, asked, shift)
        off = [c for c in cases if not close(c.answer, c.target, exercise.tolerance)]
        if off:
            for case in off[:6]:
                _same_twice(asked, case)
            return _off(exercise, cases, off, draw)
    except Wrong as wrong:
        return Verdict(exercise.name, False, "contract", str(wrong))
    for fact in exercise.facts:
        if remote and fact.by_gradient:
            continue
        verdict = _broken(exercise, fact, asked, cases)
        if verdict:
            return verdict
    return _behaviour(exercise, asked)


def answer_cases(exercise: Exercise, guarded: Callable, shift: int = 0) -> list[Case]:
    """Every case with its answer. `Wrong` at the first that is not of the right kind."""
    cases = []
    for args, target in questions(exercise, shift):
        try:
            answer = guarded(*args)
            contract(answer, target, args)
        except Wrong as wrong:
            if not cases:
                raise
            end = "" if str(wrong)[-1] in ".?" else "."
            raise Wrong(f"{wrong}{end} So it is with {_asked(exercise, args)}.") from None
        cases.append(Case(args, answer, target))
    return cases


@cache
def questions(exercise: Exercise, shift: int = 0) -> list[tuple[tuple, Any]]:
    """(arguments, the right answer) of every case; kept, since specifications are slow."""
    asked = []
    for seed in SEEDS:
        with shifted(shift):
            drawn = list(exercise.cases(seed))
        for args in drawn:
            asked.append((args, _read(exercise, exercise.spec(*clone(args)))))
    return asked


def _read(exercise: Exercise, answer):
    """An answer in the form of the specification."""
    return exercise.read(answer) if exercise.read else answer


def _same_twice(guarded: Callable, case: Case) -> None:
    """`Wrong` if a function gives another answer to the same question.

    Asked from three states of the generator: the first answer may have come from one of them, and
    a draw may decide alike in two.
    """
    for state in (1, 2, 3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            again = guarded(*case.args)
        if difference(case.answer, again)[0] > 0:
            raise Wrong(
                "Asked the same twice, it gives two answers: it draws noise of its own. All that "
                "it needs is among its arguments."
            )


def contract(answer, target, args: tuple = ()) -> None:
    """Is the answer to `args` of the kind that was asked for? `Wrong` says what came and what was
    expected.
    """
    tensors = isinstance(answer, Tensor) and isinstance(target, Tensor)
    numbers = is_number(answer) and is_number(target)
    sequences = is_sequence(answer) and is_sequence(target)
    if not (tensors or numbers or sequences or type(answer) is type(target)):
        raise Wrong(f"It returned {kind(answer)}; expected {kind(target)}{_remedy(answer, target)}")
    if sequences and any(is_number(b) and isinstance(a, str) for a, b in zip(answer, target)):
        raise Wrong("It returned texts; expected numbers.")
    answers = list(leaves(answer))
    targets = list(leaves(target))
    if [path for path, _ in answers] != [path for path, _ in targets]:
        if isinstance(target, list):  # of another length: wrong, but of the right kind
            return
        raise Wrong(f"It returned {kind(answer)}; expected {kind(target)}.")
    if is_sequence(target) and any(isinstance(part, str) for part in target):
        return  # texts are right or wrong
    for (path, x), (_, y) in zip(answers, targets):
        _same_kind(path, x, y)
    if tensors and answer.dtype != target.dtype:
        raise Wrong(_other_dtype(answer.dtype, target.dtype, args))


def _remedy(answer, target) -> str:
    """What to do about an answer of another type, as the end of a sentence."""
    if answer is None:
        return ": is a `return` missing?"
    if is_sequence(target) and hasattr(answer, "tolist"):
        return ": `.tolist()` makes a list."
    if type(answer).__module__ == "numpy":
        return ": stay in torch (torch.from_numpy)."
    return "."


def _other_dtype(dtype: torch.dtype, wanted: torch.dtype, args: tuple) -> str:
    of_input = any(part.ndim and part.dtype == wanted for _, part in leaves(args))
    reason = "that of the input" if of_input else "the task asks for it"
    return f"The dtype is {dtype}; expected {wanted}, {reason}: `.to({wanted})` makes it so."


def _same_kind(path: str, x: Tensor, y: Tensor) -> None:
    """Shape, device and finite numbers of the answer's part x beside the target's part y; ints
    where there are ints.
    """
    at = f" at {path}" if path else ""
    if x.shape != y.shape:
        raise Wrong(f"The shape{at} is {tuple(x.shape)}; expected {tuple(y.shape)}.")
    if path and not x.ndim and x.is_floating_point() and not y.is_floating_point():
        raise Wrong(f"The number{at} is a float, {x.item():g}; ints are expected, such as int(..).")
    if x.device != y.device:
        raise Wrong(f"The answer is on {x.device}; expected {y.device}, where the input is.")
    if (x.isnan() & ~y.isnan()).any():
        what = "NaN"
    elif y.isfinite().all() and not x.isfinite().all():
        what = "infinite values"
    else:
        return
    raise Wrong(
        f"The answer{at} holds {what}: is there a division by zero, zero times infinity, or a root "
        "of something negative?"
    )


def _off(exercise: Exercise, cases: list[Case], off: list[Case], draw: bool) -> Verdict:
    """The verdict on an answer with other numbers than the specification's."""
    first = off[0]
    error, where = difference(first.answer, first.target)
    return Verdict(
        exercise.name,
        False,
        "facts",
        f"{len(off)} of {len(cases)} cases are off; {_how_far(first, error, where)}. The first is "
        f"{_asked(exercise, first.args)}.",
        error,
        where,
        mistake(exercise, cases) or mistake(exercise, off),
        draw_difference(exercise.name, first.answer, first.target) if draw else "",
    )


def _asked(exercise: Exercise, args: tuple) -> str:
    """A call of the learner's function, as text."""
    return f"{exercise.name}({', '.join(in_words(value) for value in args)})"


def _how_far(case: Case, error: float, where: str) -> str:
    """The end of a sentence on the first case that is off."""
    answer = case.answer
    target = case.target
    if is_sequence(target) and len(answer) != len(target):
        return f"the first list has {len(answer)} entries; expected {len(target)}"
    if is_sequence(target):
        for k, (a, b) in enumerate(zip(answer, target)):
            if isinstance(b, str) and a != b:
                return f"the first list has {a!r} at [{k}]; expected {b!r}"
            if is_number(b) and not is_number(a):
                return f"the first list has {kind(a)} at [{k}]; expected a number"
    infinite = torch.zeros(0)
    if isinstance(target, Tensor) and isinstance(answer, Tensor):
        infinite = (target.isinf() | answer.isinf()) & (answer != target)
    if infinite.any():
        place = tuple(infinite.nonzero()[0].tolist())
        return (
            f"{_spelled(target[place])} is expected at {list(place)} of the first, and yours is "
            f"{_spelled(answer[place])}"
        )
    at = f" at {where}" if where else ""
    return f"in the first the largest error is {error:.3g}{at} (values reach {scale(target):.3g})"


def _spelled(number: Tensor) -> str:
    if number.isinf():
        return "infinity" if number > 0 else "minus infinity"
    return f"{number.item():.3g}"


def _broken(exercise: Exercise, fact: Fact, guarded: Callable, cases: list[Case]) -> Verdict | None:
    """The verdict on a function for which the fact does not hold; None if it does."""
    try:
        got, wanted = fact.test(guarded)
    except Wrong as wrong:
        return Verdict(exercise.name, False, "facts", f"{fact.says}: {wrong}")
    if close(got, wanted, _tolerance(exercise, fact)):
        return None
    error, where = difference(got, wanted)
    off = f"off by {error:.3g}" if error < float("inf") else "NaN, infinity, or another shape"
    says = f"This does not hold: {fact.says} ({off})."
    mutant = breaker(exercise, fact, cases)
    return Verdict(exercise.name, False, "facts", says, error, where, mutant)


def _tolerance(exercise: Exercise, fact: Fact) -> float:
    return exercise.tolerance if fact.tolerance is None else fact.tolerance


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
        wrong = _read(exercise, mutant.fn(*clone(case.args)))
    except Exception:  # a mutant that cannot run here is not the one
        return False
    if close(case.answer, wrong, exercise.tolerance):
        return True
    left, _ = difference(case.answer, wrong)
    error, _ = difference(case.answer, case.target)
    return left < EXPLAINED * error < float("inf")


def breaker(exercise: Exercise, fact: Fact, cases: list[Case]) -> Mutant | None:
    """If exactly one mutant breaks that fact and none of the (rightly answered) cases, it is the
    likely mistake.
    """
    breakers = []
    for mutant in exercise.mutants:
        right = all(_agrees(exercise, mutant, case) for case in cases)
        if right and _breaks(exercise, mutant, fact):
            breakers.append(mutant)
    return breakers[0] if len(breakers) == 1 else None


def _breaks(exercise: Exercise, mutant: Mutant, fact: Fact) -> bool:
    def wrong(*args):
        return _read(exercise, mutant.fn(*args))

    try:
        got, wanted = fact.test(wrong)
        return not close(got, wanted, _tolerance(exercise, fact))
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
