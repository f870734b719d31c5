"""What an exercise is made of: a definition of right, facts that must hold, and mistakes that
people really made.

Nothing here knows how answers are graded (`grader.py`) or how stubs are cut (`stub.py`): an
exercise is data.
"""

from collections.abc import Callable
from dataclasses import dataclass

LADDERS = {"warm-up": "15 minutes", "core": "45 minutes", "build": "a weekend"}


@dataclass(frozen=True)
class Fact:
    """A property beyond equality with the specification: `test(fn)` -> (got, want), equal within
    `tolerance`, or that of the exercise.

    by_gradient  it differentiates through the answer, which numbers from another process do not
                 allow: it is not asked there
    """

    says: str
    test: Callable
    tolerance: float | None = None
    by_gradient: bool = False


@dataclass(frozen=True)
class Mutant:
    """A mistake as a callable, and its story: where it comes from and what it does to pictures."""

    name: str
    fn: Callable
    story: str


@dataclass(frozen=True)
class Exercise:
    """`name` is also the name of the function to write.

    task       what to write, in Markdown: shapes, ranges, the equation
    reference  the project's own function; the stub is its signature and docstring
    apart      why the reference is none of the package's own functions but one written for the
               exercise; "" where it is
    spec       the slow and obvious definition of right
    cases      cases(seed) -> tuples of arguments, random shapes included, the simplest first
    behaviour  behaviour(fn) -> (score, needed, what was measured), in seconds; None if nothing is
               to be seen
    page       the tutorial page that explains it
    about      what it is, in a few words, for a list
    read       read(answer) -> the answer in the form of the specification, where several forms are
               as good as each other; None where there is one
    """

    name: str
    ladder: str
    task: str
    reference: Callable
    spec: Callable
    cases: Callable[[int], list[tuple]]
    facts: tuple[Fact, ...] = ()
    behaviour: Callable | None = None
    mutants: tuple[Mutant, ...] = ()
    hints: tuple[str, str, str] = ("", "", "")
    tolerance: float = 1e-5
    page: str = ""
    about: str = ""
    apart: str = ""
    read: Callable | None = None

    def __post_init__(self):
        if self.ladder not in LADDERS:
            raise ValueError(
                f"exercise {self.name}: ladder {self.ladder!r}; choose one of {', '.join(LADDERS)}"
            )
        if not self.about:
            raise ValueError(f"exercise {self.name}: say what it is in a few words (about)")
        if len(self.mutants) < 2 or not all(self.hints):
            raise ValueError(
                f"exercise {self.name}: {len(self.mutants)} mutants and "
                f"{sum(map(bool, self.hints))} hints; "
                "at least two and three were expected"
            )
