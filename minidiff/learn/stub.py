"""Stubs are cut from the project's own source, so that they never drift: signature and docstring
stay, the body goes, and what the body needs is imported above.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Set
from pathlib import Path

from minidiff.learn.exercise import Exercise


def source(fn: Callable) -> str:
    """The source of a function, not indented."""
    return textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))


def imports(fn: Callable, known: Set[str] = frozenset(), private: bool = True) -> list[str]:
    """The import lines that the source of a function needs to run on its own.

    known    names that are there already
    private  also the names with an underscore, which only its body can need
    """
    fn = inspect.unwrap(fn)
    names = global_names(fn) - known
    if not private:
        names = {name for name in names if not name.startswith("_")}
    origins = import_origins(fn)
    whole = []
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        module, spelled = origins.get(name, (fn.__module__, name))
        if module:
            members.setdefault(module, []).append(spelled)
        else:
            whole.append(f"import {spelled}")
    ours_last = sorted(members, key=lambda module: (module.startswith("minidiff"), module))
    return whole + [f"from {module} import {', '.join(members[module])}" for module in ours_last]


def global_names(fn: Callable) -> set[str]:
    """The names of its module that a function uses, but for its own."""
    arguments = set()
    names = set()
    for node in ast.walk(ast.parse(source(fn))):
        if isinstance(node, ast.arg):
            arguments.add(node.arg)
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return (names & fn.__globals__.keys()) - arguments - {fn.__name__}


def import_origins(fn: Callable) -> dict[str, tuple[str, str]]:
    """{name: (module, "member as name")} of what the module of a function imports; the first is ""
    for a module that is imported whole.
    """
    tree = ast.parse(Path(inspect.getfile(fn)).read_text())
    origins = {}
    for node in tree.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        module = "" if isinstance(node, ast.Import) else node.module
        for alias in node.names:
            spelled = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
            origins[alias.asname or alias.name] = (module, spelled)
    return origins


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
