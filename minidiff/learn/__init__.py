"""Learn by writing: exercises that grade your function and say which mistake you made.

from minidiff.learn import check, hint, progress, reveal, task
task("q_sample")                # what to write, and the stub to start from
check("q_sample", my_q_sample)  # is it right? if not: where, and which known mistake is it?
hint("q_sample")                # three of them, one at a time
reveal("q_sample")              # the project's own lines, once yours are right (or anyway=True)
progress()                      # how far you are

In a shell: `minidiff learn task q_sample`, then `minidiff learn check FILE`. For a course, with
points and submissions of strangers: `assignment.py`, `grading.py`, and tutorials/course.md.
"""

from minidiff.learn.grader import check
from minidiff.learn.tasks import hint, progress, reveal, task

__all__ = ["check", "hint", "progress", "reveal", "task"]
