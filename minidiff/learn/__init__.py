"""Learn by writing: exercises that grade your function and say which mistake you made.

from minidiff.learn import check, hint, reveal, progress, task
task("q_sample")                       # what to write
check("q_sample", my_q_sample)  # is it right? if not, where, and which known mistake is it
hint("q_sample")                       # three of them, one at a time
reveal("q_sample")  # the project's own lines, once yours are right (or anyway=True)
progress()
"""

from minidiff.learn.check import check
from minidiff.learn.desk import hint, progress, reveal, task

__all__ = ["check", "hint", "progress", "reveal", "task"]
