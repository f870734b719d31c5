"""Stubs are cut from the project's own source, so that they never drift: signature and docstring
stay, the body goes, and what the body needs is imported above.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

from minidiff.learn.exercise import Exercise


def source(fn: Callable) -> str:
    """The source of a function, not indented."""
    return textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))


def imports(fn: Callable, known: set[str] = frozenset(), private: bool = True) -> list[str]:
    """The import lines that the source of a function needs to run on its own.

    known    names that are there already
    private  also the names with an underscore, which only its body can need
    """
    fn = inspect.unwrap(fn)
    nodes = list(ast.walk(ast.parse(source(fn))))
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names &= fn.__globals__.keys()
    names -= arguments | {fn.__name__} | known
    if not private:
        names = {name for name in names if not name.startswith("_")}
    origins = import_lines(fn)
    plain = set()
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        origin = origins.get(name, (fn.__module__, name))
        if isinstance(origin, str):
            plain.add(origin)
        else:
            module, member = origin
            members.setdefault(module, []).append(member)
    members = {module: ", ".join(parts) for module, parts in members.items()}
    order = sorted(members, key=lambda module: (module.startswith("minidiff"), module))
    return sorted(plain) + [f"from {module} import {members[module]}" for module in order]


def import_lines(fn: Callable) -> dict[str, str | tuple[str, str]]:
    """How the module of a function imports each name: a whole line such as "import math", or
    (module, "name as other").
    """
    tree = ast.parse(Path(inspect.getfile(fn)).read_text())
    lines: dict[str, str | tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                spelled = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
                whole = isinstance(node, ast.Import)
                lines[alias.asname or alias.name] = (
                    f"import {spelled}" if whole else (node.module, spelled)
                )
    return lines


def stub(exercise: Exercise) -> str:
    """The function to fill in, as text: the whole of it, but for its imports."""
    text = source(exercise.reference)
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef))
    body = node.body[0]
    documented = ast.get_docstring(node) is not None
    last = body.end_lineno if documented else body.lineno - 1
    head = text.splitlines()[node.lineno - 1 : last]
    head[0] = head[0].replace(f"def {node.name}(", f"def {exercise.name}(", 1)
    return "\n".join([*head, f'    raise NotImplementedError("write {exercise.name}")', ""])


def start(exercise: Exercise) -> str:
    """What a learner's file can begin with: the imports and the stub, which run as they are."""
    lines = imports(exercise.reference, known={exercise.name}, private=False)
    return "\n".join([*lines, "", "", stub(exercise)] if lines else [stub(exercise)])


def empty(exercise: Exercise) -> Callable:
    """What the stub defines when it is run, for those who check that it runs, and fails."""
    space: dict = {}
    exec(start(exercise), space)
    return space[exercise.name]
