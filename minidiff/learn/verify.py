"""Is every exercise fit to be given? Its stub must fail, its reference pass, every mutant be caught
and called by name.

    python -m minidiff.learn.verify [NAME ...]            # what `make verify-exercises` runs
"""

import sys
import time

from minidiff.learn.check import grade
from minidiff.learn.exercise import Exercise
from minidiff.learn.exercises import exercises, find
from minidiff.learn.stub import empty, stub


def faults(e: Exercise) -> list[str]:
    """Everything that is wrong with an exercise; empty if nothing is."""
    found = []
    if f"def {e.name}(" not in stub(e):
        found.append("its stub defines no function of that name")
    if grade(e, empty(e)).passed:
        found.append("its stub passes")
    for what, fn in (("reference", e.reference), ("specification", e.spec)):
        verdict = grade(e, fn)
        if not verdict.passed:
            found.append(f"its {what} fails: {verdict.says}")
    for m in e.mutants:
        verdict = grade(e, m.fn)
        if verdict.passed:
            found.append(f"the mutant {m.name!r} passes")
        elif verdict.mutant is not m:
            said = verdict.mutant.name if verdict.mutant else "nothing"
            found.append(
                f"the mutant {m.name!r} is called {said} ({verdict.layer}: {verdict.says})"
            )
    return found


def main(names: list[str]) -> int:
    chosen, wrong, begun = (
        [find(n) for n in names] or list(exercises().values()),
        0,
        time.perf_counter(),
    )
    for e in chosen:
        start = time.perf_counter()
        found = faults(e)
        wrong += bool(found)
        print(
            f"{e.ladder:8} {e.name:28} {len(e.mutants)} mutants "
            f"{time.perf_counter() - start:6.1f} s  "
            f"{'; '.join(found) or 'good'}",
            flush=True,
        )
    mutants = sum(len(e.mutants) for e in chosen)
    print(
        f"{len(chosen)} exercises, {mutants} mutants, {wrong} not fit, "
        f"{time.perf_counter() - begun:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
