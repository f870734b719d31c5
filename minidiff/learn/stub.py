"""Stubs are cut from the project's own source, so that they never drift: signature and docstring
stay, the body goes.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable

from minidiff.learn.exercise import Exercise


def source(fn: Callable) -> str:
    """The source of a function, not indented."""
    return textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))


def stub(e: Exercise) -> str:
    """The function to fill in, as text."""
    text = source(e.reference)
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef))
    lines = text.splitlines()
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    head = lines[node.lineno - 1 : (first.end_lineno if documented else first.lineno - 1)]
    head[0] = head[0].replace(f"def {node.name}(", f"def {e.name}(", 1)
    return "\n".join([*head, f'    raise NotImplementedError("write {e.name}")', ""])


def empty(e: Exercise) -> Callable:
    """The stub as a function, for those who check that it fails."""

    def unwritten(*args, **kwargs):
        raise NotImplementedError(f"write {e.name}")

    return unwritten
