"""Is every exercise fit to be given? Its stub must run and fail, its reference must pass, and every
mutant must be caught and called by its name.

    python -m minidiff.learn.verify [NAME ...]            # what `make verify-exercises` runs
"""

import sys
import time

from minidiff.learn.exercise import Exercise, Mutant
from minidiff.learn.exercises import exercises, find
from minidiff.learn.grader import grade
from minidiff.learn.stub import empty


def faults(exercise: Exercise) -> list[str]:
    """Everything that is wrong with an exercise; empty if nothing is."""
    wrong = []
    if grade(exercise, empty(exercise)).passed:
        wrong.append("its stub passes")
    for what, fn in (("reference", exercise.reference), ("specification", exercise.spec)):
        verdict = grade(exercise, fn)
        if not verdict.passed:
            wrong.append(f"its {what} fails: {verdict.says}")
    for mutant in exercise.mutants:
        fault = mutant_fault(exercise, mutant)
        if fault:
            wrong.append(fault)
    return wrong


def mutant_fault(exercise: Exercise, mutant: Mutant) -> str:
    """What is wrong with the verdict on a mutant; "" if it is caught and called by its name."""
    verdict = grade(exercise, mutant.fn)
    if verdict.passed:
        return f"the mutant {mutant.name!r} passes"
    if verdict.mutant is mutant:
        return ""
    name = verdict.mutant.name if verdict.mutant else "nothing"
    return f"the mutant {mutant.name!r} is called {name} ({verdict.layer}: {verdict.says})"


def main(names: list[str]) -> int:
    chosen = [find(name) for name in names] or list(exercises().values())
    begun = time.perf_counter()
    unfit = 0
    for exercise in chosen:
        start = time.perf_counter()
        wrong = faults(exercise)
        spent = time.perf_counter() - start
        unfit += bool(wrong)
        print(
            f"{exercise.ladder:8} {exercise.name:28} {len(exercise.mutants)} mutants "
            f"{spent:6.1f} s  {'; '.join(wrong) or 'good'}",
            flush=True,
        )
    mutants = sum(len(exercise.mutants) for exercise in chosen)
    spent = time.perf_counter() - begun
    print(f"{len(chosen)} exercises, {mutants} mutants, {unfit} not fit, {spent:.0f} s")
    return 1 if unfit else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
