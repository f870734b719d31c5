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


def imports(fn: Callable, known: Set[str] = frozenset(), whole: bool = True) -> list[str]:
    """The import lines that a function needs where its module is not around it.

    known  names that are there already
    whole  for its body too. Otherwise for the one who writes the body: what stands beside the
           function in its own module is left out, since it is a part of the answer
    """
    fn = inspect.unwrap(fn)
    origins = import_origins(fn)
    names = global_names(fn, source(fn))
    if not whole:
        others = {name for name in names if name in origins}
        names = others | global_names(fn, head(fn) + "\n    pass")
    modules = []
    members: dict[str, list[str]] = {}
    for name in sorted(names - known):
        module, spelled = origins.get(name, (fn.__module__, name))
        if module:
            members.setdefault(module, []).append(spelled)
        else:
            modules.append(f"import {spelled}")
    ours_last = sorted(members, key=lambda module: (module.startswith("minidiff"), module))
    return sorted(modules) + [
        f"from {module} import {', '.join(members[module])}" for module in ours_last
    ]


def global_names(fn: Callable, text: str) -> set[str]:
    """The names of its module, but its own, that the text of a function uses."""
    arguments = set()
    names = set()
    for node in ast.walk(ast.parse(text)):
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


def head(fn: Callable) -> str:
    """Signature and docstring, without the body."""
    text = source(fn)
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef))
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    last = first.end_lineno if documented else first.lineno - 1
    kept = text.splitlines()[node.lineno - 1 : last]
    return "\n".join(kept)


def stub(exercise: Exercise) -> str:
    """The function to fill in, as text: the whole of it, but for its imports."""
    fn = inspect.unwrap(exercise.reference)
    text = head(fn).replace(f"def {fn.__name__}(", f"def {exercise.name}(", 1)
    return f'{text}\n    raise NotImplementedError("write {exercise.name}")\n'


def start(exercise: Exercise) -> str:
    """What a learner's file can begin with: the imports and the stub, which run as they are."""
    lines = imports(exercise.reference, known={exercise.name}, whole=False)
    return "\n".join([*lines, "", "", stub(exercise)] if lines else [stub(exercise)])


def empty(exercise: Exercise) -> Callable:
    """What the stub defines when it is run, for those who check that it runs, and fails."""
    space: dict = {}
    exec(start(exercise), space)
    return space[exercise.name]
