"""The reference: every public function and class of the rooms that users call, from the source.

One page for each room, `api/ROOM.md`; one section for each file; one entry for each name, with its
signature and its docstring. Nothing is imported: `ast` reads the files. Public is what `__all__`
names, or else every function, class and name of a type that does not begin with an underscore.

The place of an entry is `api/editing.html#sdedit.sdedit`: room, file, name. A method's is
`api/pipe.html#pipe.Pipe.generate`. The text of a docstring is escaped before anything else is done
with it, so that `*args`, `_x_` and `<b>` stay what they are.
"""

import ast
import html
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import beside
import pages
from fences import raw

ROOT = pages.ROOT


@dataclass(frozen=True)
class Room:
    """A folder of minidiff/, or one of its single files. `only`: the files that users call, where
    the others serve these.
    """

    title: str
    about: str
    only: tuple[str, ...] = ()


# In the order in which a newcomer meets them. "minidiff" is the package itself.
ROOMS = {
    "minidiff": Room("minidiff", "Load a model that ships with it or your own, or build one."),
    "pipe": Room("pipe", "One model in one bundle, and the door in front of every technique."),
    "io": Room("io", "Pictures and masks: read from files, written to files, put into one sheet."),
    "core": Room("core", "The words that need no model: schedule, process, denoiser, tap."),
    "samplers": Room("samplers", "From noise to a picture."),
    "guidance": Room("guidance", "Steer while sampling."),
    "inversion": Room("inversion", "From a picture back to its noise."),
    "editing": Room("editing", "Change a picture by words."),
    "restoration": Room("restoration", "Undo damage that is known."),
    "control": Room("control", "Tell a model where things are: edges, poses, depths."),
    "analysis": Room("analysis", "What is inside a network."),
    "evaluate": Room("evaluate", "Measures and oracles: who is right?"),
    "bench": Room("bench", "Every method of editing on the same scenes, against the right answer."),
    "data": Room("data", "The toy world, where the true edit can be drawn, and other small data."),
    "models": Room("models", "The networks and the tokenizers."),
    "foundations": Room("foundations", "The losses that the models are trained with."),
    "train": Room("train", "The training loop, its optimisers, and fine-tuning."),
    "formats": Room("formats", "Public files of weights, read and written; nothing is executed."),
    "weights": Room("weights", "Find, load and export weights."),
    "learn": Room("learn", "Exercises that check what you wrote.", ("__init__", "twins")),
    "techniques": Room("techniques", "The list of techniques: one record each."),
}
# Rooms without a page, and why.
LEFT_OUT = {
    "cli": "commands; `minidiff --help` is their reference",
    "proofs": "each measures one technique's claim; the pages of the techniques show the outcome",
    "shipped": "the recipes of the shipped weights, run once",
}


@dataclass
class Entry:
    """One public name.

    place      its anchor on the page of its room: FILE.NAME, or FILE.CLASS.METHOD
    kind       function, class, method, property, type or value
    signature  as Python
    takes      the names of its parameters or fields
    says       its docstring, cleaned of the indentation; "" if there is none
    door       whether `@door` stands before it
    members    of a class: what is public in it
    """

    name: str
    place: str
    kind: str
    signature: str
    says: str
    takes: tuple[str, ...] = ()
    door: bool = False
    members: list["Entry"] = field(default_factory=list)


@dataclass
class File:
    """One section of a page. `path` in the repository; `stem` is `ROOM` for its `__init__.py`."""

    path: str
    stem: str
    says: str
    entries: list[Entry]


# ---- reading -------------------------------------------------------------------------------------


def as_written(node: ast.AST, source: str) -> str:
    """An expression in its own spelling, on one line."""
    return " ".join((ast.get_source_segment(source, node) or ast.unparse(node)).split())


def parameter(argument: ast.arg, default: ast.expr | None, source: str, stars: str = "") -> str:
    text = stars + argument.arg
    if argument.annotation:
        text += f": {as_written(argument.annotation, source)}"
    if default is None:
        return text
    equals = " = " if argument.annotation else "="
    return text + equals + as_written(default, source)


def parameters(node: ast.FunctionDef, source: str) -> list[str]:
    """What stands between the brackets of a function, in order, with `/` and `*` where they are."""
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    # the last arguments are those that have defaults
    defaults = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
    out = []
    for n, (argument, default) in enumerate(zip(positional, defaults)):
        out.append(parameter(argument, default, source))
        if a.posonlyargs and n == len(a.posonlyargs) - 1:
            out.append("/")
    if a.vararg:
        out.append(parameter(a.vararg, None, source, "*"))
    elif a.kwonlyargs:
        out.append("*")
    for argument, default in zip(a.kwonlyargs, a.kw_defaults):
        out.append(parameter(argument, default, source))
    if a.kwarg:
        out.append(parameter(a.kwarg, None, source, "**"))
    return out


WIDE = 88  # letters, above which a signature takes one line for each parameter


def called(node: ast.FunctionDef, source: str, name: str = "") -> str:
    """`def name(...) -> ...`, without a body."""
    start = "async def " if isinstance(node, ast.AsyncFunctionDef) else "def "
    start += (name or node.name) + "("
    end = ")" + (f" -> {as_written(node.returns, source)}" if node.returns else "")
    inside = parameters(node, source)
    line = start + ", ".join(inside) + end
    if len(line) <= WIDE or not inside:
        return line
    return "\n".join([start, *[f"    {p}," for p in inside], end])


def decorators(node: ast.AST) -> set[str]:
    """The names before a function or class: "dataclass" for `@dataclass(frozen=True)`."""
    found = set()
    for one in node.decorator_list:
        target = one.func if isinstance(one, ast.Call) else one
        found.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return found


def public(name: str) -> bool:
    return not name.startswith("_")


def function_entry(node: ast.FunctionDef, source: str, place: str, name: str, kind: str) -> Entry:
    marks = decorators(node)
    lines = []
    for mark in ("property", "cached_property", "classmethod", "staticmethod", "contextmanager"):
        if mark in marks:
            lines.append(f"@{mark}")
    if marks & {"property", "cached_property"}:
        kind = "property"
    lines.append(called(node, source))
    says = ast.get_docstring(node) or ""
    takes = tuple(a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg))
    return Entry(name, place, kind, "\n".join(lines), says, takes, "door" in marks)


def class_entry(node: ast.ClassDef, source: str, place: str, name: str) -> Entry:
    """A class: its fields if it is a dataclass, or else what it is made from."""
    lines = [f"@{as_written(d, source)}" for d in node.decorator_list]
    bases = [as_written(b, source) for b in node.bases]
    lines.append(f"class {name}" + (f"({', '.join(bases)})" if bases else "") + ":")
    remarks = beside.comments(source)
    members, takes = [], []
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and public(ast.unparse(part.target)):
            line = f"    {as_written(part, source)}"
            _, remark = remarks.get(part.end_lineno, (0, ""))
            lines.append(f"{line}  {remark}" if remark else line)
            takes.append(part.target.id)
        elif isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            speaks = part.name.startswith("__") and ast.get_docstring(part)
            # how one is made and called belongs to the class
            if part.name == "__init__" or (part.name == "__call__" and not speaks):
                made = called(part, source)
                lines += [f"    {line}" for line in made.split("\n")]
                takes += [a.arg for a in ast.walk(part.args) if isinstance(a, ast.arg)]
            # of the other methods between underscores, those that have something to say
            if public(part.name) or speaks:
                member = function_entry(
                    part, source, f"{place}.{part.name}", f"{name}.{part.name}", "method"
                )
                members.append(member)
    if lines[-1].endswith(":") and lines[-1].startswith("class "):
        lines[-1] = lines[-1][:-1]
    says = ast.get_docstring(node) or ""
    return Entry(name, place, "class", "\n".join(lines), says, tuple(takes), members=members)


def assigned(node: ast.stmt) -> str:
    """The name that a line of a module gives to a value, or ""."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return getattr(node.targets[0], "id", "")
    if isinstance(node, ast.AnnAssign):
        return getattr(node.target, "id", "")
    return ""


SHOWN = 240  # letters of a value; a longer one is a table, to be looked up in the code


def value_entry(node: ast.stmt, source: str, place: str, name: str) -> Entry:
    text = ast.get_source_segment(source, node) or ast.unparse(node)
    if len(text) > SHOWN:
        of = f": {as_written(node.annotation, source)}" if hasattr(node, "annotation") else ""
        text = f"{name}{of} = ..."
    _, remark = beside.comments(source).get(node.end_lineno, (0, ""))
    # `Step = Callable[..., Tensor]`: a name for a type, which signatures use
    kind = "type" if re.match("[A-Z][a-z]", name) else "value"
    return Entry(name, place, kind, text, remark.lstrip("# "))


def exported(tree: ast.Module) -> list[str] | None:
    """The names in `__all__`; None if there is none."""
    for node in tree.body:
        if assigned(node) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module, source: str, stem: str) -> dict[str, Entry]:
    """Everything that a file defines at its top, private names as well, in its order."""
    found = {}
    for node in tree.body:
        name = getattr(node, "name", "") or assigned(node)
        place = f"{stem}.{name}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found[name] = function_entry(node, source, place, name, "function")
        elif isinstance(node, ast.ClassDef):
            found[name] = class_entry(node, source, place, name)
        elif name:
            found[name] = value_entry(node, source, place, name)
    return found


def imported(tree: ast.Module) -> dict[str, str]:
    """{name: the module of minidiff it comes from}, also where only type checkers import it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minidiff."):
            for one in node.names:
                found[one.asname or one.name] = node.module
    return found


def read(path: str, stem: str, shown: set[str], root: Path = ROOT) -> File:
    """The public names of a file. What it only passes on is left to the file it comes from, if that
    one is among `shown`.
    """
    source = (root / path).read_text()
    tree = ast.parse(source)
    own, names = defined(tree, source, stem), exported(tree)
    if names is None:
        entries = [e for name, e in own.items() if public(name) and e.kind != "value"]
        return File(path, stem, ast.get_docstring(tree) or "", entries)
    entries = [e for name, e in own.items() if name in names and public(name)]
    origin = imported(tree)
    for name in names:
        if name in own or name not in origin:
            continue
        there = origin[name].replace(".", "/") + ".py"
        if there in shown:
            continue
        text = (root / there).read_text()
        entries.append(defined(ast.parse(text), text, stem)[name])
    return File(path, stem, ast.get_docstring(tree) or "", entries)


def paths(room: str, root: Path = ROOT) -> list[str]:
    """The files of a room: its `__init__.py`, the one that is called like the room, the others."""
    if room == "minidiff":
        return ["minidiff/__init__.py"]
    if (root / f"minidiff/{room}.py").is_file():
        return [f"minidiff/{room}.py"]
    only = ROOMS[room].only
    found = []
    for file in sorted((root / "minidiff" / room).glob("*.py")):
        stem = file.stem
        if (public(stem) or stem == "__init__") and (not only or stem in only):
            found.append(str(file.relative_to(root)))
    first = ("__init__", room)
    return sorted(found, key=lambda path: Path(path).stem not in first)


def reference(root: Path = ROOT) -> dict[str, list[File]]:
    """{room: its files that have a public name}."""
    out = {}
    for room in ROOMS:
        mine = paths(room, root)
        files = []
        for path in mine:
            stem = room if path.endswith("__init__.py") else Path(path).stem
            file = read(path, stem, set(mine), root)
            if file.entries:
                files.append(file)
        out[room] = files
    return out


# ---- docstrings as HTML --------------------------------------------------------------------------

# "name   what it is": one word, or several with commas; at least two spaces; the text
ITEM = re.compile(r"^( *)((?:[^\s=,]+, )*[^\s=,]+)( {2,})(?=\S)")
LAID_OUT = re.compile(r"^ {2,}\S|\S {2,}\S")  # a line whose spaces mean something


def definitions(lines: list[str]) -> list[tuple[str, str]] | None:
    """(name, what it is) of a list in a docstring; None if the lines are not such a list.

    What follows a name must stand in the column where its text began, and have no columns of its
    own. So a formula with remarks beside it is no list.
    """
    found, column = [], 0
    start = len(lines[0]) - len(lines[0].lstrip())
    for line in lines:
        indent = len(line) - len(line.lstrip())
        item = ITEM.match(line)
        if item and indent == start:
            column = item.end()
            name, text = item[2], line[column:]
            found.append((name, text))
        elif found and indent == column:
            name, before = found[-1]
            text = line.strip()
            found[-1] = (name, f"{before} {text}")
        else:
            return None
        if re.search(r"\S {2,}\S", text):
            return None
    return found


def inline(text: str, links: dict[str, str]) -> str:
    """A piece of prose: escaped; what stands in backticks is code, and a link if it names an
    entry.
    """

    def link(m: re.Match) -> str:
        href = links.get(m[1].removesuffix("()"))
        return f'<a href="{href}">{m[0]}</a>' if href else m[0]

    return re.sub(r"<code>([^<]+)</code>", link, beside.inline(text))


def readable(text: str, links: dict[str, str] | None = None) -> str:
    """A docstring as HTML: paragraphs, lists of names as definition lists, and what is laid out in
    columns as it is.
    """
    links = links or {}
    # Lines of one kind that follow one another: (laid out?, the lines). A blank line ends a
    # paragraph, but not what is laid out: formulas have blank lines between them.
    runs: list[tuple[bool, list[str]]] = []
    ended = True
    for line in text.splitlines():
        if not line.strip():
            ended = True
            continue
        laid = bool(LAID_OUT.search(line))
        if runs and runs[-1][0] == laid and (laid or not ended):
            if laid and ended:
                runs[-1][1].append("")
            runs[-1][1].append(line)
        else:
            runs.append((laid, [line]))
        ended = False
    out = []
    for laid, lines in runs:
        if not laid:
            out.append(f"<p>{inline(' '.join(line.strip() for line in lines), links)}</p>")
            continue
        listed = definitions([line for line in lines if line])
        if listed is None:
            common = min(len(line) - len(line.lstrip()) for line in lines if line)
            shown = "\n".join(inline(line[common:], links) for line in lines)
            out.append(f'<pre class="laid">{shown}</pre>')
            continue
        items = []
        for name, what in listed:
            term = inline(name, links)
            term = term if "<code>" in term else f"<code>{term}</code>"
            items.append(f"<dt>{term}</dt><dd>{inline(what, links)}</dd>")
        out.append(f"<dl>{''.join(items)}</dl>")
    return "".join(out)


def near(entry: Entry, room: str, links: dict[str, str]) -> dict[str, str]:
    """The links that the docstring of an entry may hold. A parameter is no entry, whatever it is
    called; and a plain word, such as `step`, means something else in another room.
    """
    kept = {}
    for name, href in links.items():
        telling = not name.islower() or "_" in name or "." in name
        if name not in entry.takes and (telling or href.startswith(f"{room}.html")):
            kept[name] = href
    return kept


# ---- pages ---------------------------------------------------------------------------------------


def every(entries: list[Entry]) -> list[Entry]:
    """Entries and their members, in order."""
    out = []
    for entry in entries:
        out += [entry, *entry.members]
    return out


def addresses(found: dict[str, list[File]]) -> dict[str, str]:
    """{name: ROOM.html#PLACE} of every name that only one entry has; methods as CLASS.METHOD."""
    places: dict[str, set[str]] = {}
    for room, files in found.items():
        for file in files:
            for entry in every(file.entries):
                places.setdefault(entry.name, set()).add(f"{room}.html#{entry.place}")
    # the package passes on what a room defines; there the two are one thing
    for entry in every([e for f in found.get("minidiff", []) for e in f.entries]):
        places[entry.name] = {f"minidiff.html#{entry.place}"}
    return {name: next(iter(where)) for name, where in places.items() if len(where) == 1}


def shown(entry: Entry, room: str, links: dict[str, str]) -> str:
    """An entry as HTML, on the page of its room."""
    code = "\n".join(beside.coloured(entry.signature.split("\n")))
    anchor = html.escape(entry.place)
    parts = [
        f'<div class="entry {entry.kind}" id="{anchor}">',
        f'<div class="signature highlight"><pre>{code}</pre>'
        f'<a class="headerlink" href="#{anchor}" title="Link to {html.escape(entry.name)}">#</a>'
        "</div>",
        '<div class="said">',
    ]
    if entry.door:
        there = links.get("door", "pipe.html#checks.door")
        parts.append(
            f'<p class="behind">Behind the <a href="{there}">door</a>: a picture may be a tensor, '
            "an array, a PIL picture or a path, and bad input is refused before any work.</p>"
        )
    parts.append(readable(entry.says, near(entry, room, links)))
    parts += [shown(member, room, links) for member in entry.members]
    parts.append("</div></div>")
    return "\n".join(parts)


def dotted(path: str) -> str:
    """minidiff/editing/sdedit.py -> minidiff.editing.sdedit"""
    return path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")


def opening(text: str) -> str:
    """The first sentence of a docstring, without the full stop."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^.][.!?])\s(?=[A-Z`(])", paragraph)[0].rstrip(".")


def module_says(file: File, links: dict[str, str]) -> str:
    """The docstring of a file: its first sentence, and the rest folded below it."""
    first, _, rest = file.says.partition("\n\n")
    head = opening(file.says)
    if head.split() != " ".join(first.split()).rstrip(".").split():
        rest = file.says  # the first paragraph has more to say
    if not rest:
        return f'<p class="module">{inline(head, links)}.</p>'
    return (
        f'<details class="module"><summary>{inline(head, links)}</summary>\n'
        f"{readable(rest, links)}\n</details>"
    )


def page(
    room: str, files: list[File], links: dict[str, str], code: set[str], tutorials: dict[str, str]
) -> str:
    """The page of a room. `tutorials`: {file of a technique: its page in the repository}."""
    about = ROOMS[room]
    out = [f"# {about.title}\n\n{about.about}\n"]
    for file in files:
        where = [f"<code>{dotted(file.path)}</code>"]
        if file.path in code:
            where.append(f'<a href="../{pages.html_of(file.path, code)}">code | explanation</a>')
        if file.path in tutorials:
            where.append(f'<a href="../{pages.html_of(tutorials[file.path], code)}">the page</a>')
        out.append(f"## {file.stem}\n")
        block = [f'<p class="where">{" · ".join(where)}</p>']
        if file.says:
            block.append(module_says(file, near(Entry("", "", "", "", ""), room, links)))
        block += [shown(entry, room, links) for entry in file.entries]
        out.append(raw("\n".join(block)))
    return "\n".join(out)


def index(found: dict[str, list[File]], links: dict[str, str]) -> str:
    """The first page: the rooms, and what each of their files is for."""
    out = [
        "# API\n\nEvery public name, with its signature and what its docstring says. "
        "All are in the [index of names](names.md).\n\n"
        "```python\nimport minidiff\n\n"
        'pipe = minidiff.load("tiny")\n'
        'image = pipe.generate("a red circle on a blue background", seed=0)\n```\n'
    ]
    for room, files in found.items():
        out.append(f"## {ROOMS[room].title}\n\n{ROOMS[room].about}\n")
        rows = []
        for file in files:
            names = ", ".join(
                f'<a href="{room}.html#{html.escape(e.place)}"><code>{html.escape(e.name)}</code></a>'
                for e in file.entries
            )
            head = inline(opening(file.says), links)
            rows.append(
                f'<dt><a href="{room}.html#{html.escape(file.entries[0].place)}">'
                f"<code>{dotted(file.path)}</code></a></dt>"
                f"<dd>{head}<br><small>{names}</small></dd>"
            )
        out.append(raw(f'<dl class="modules">{"".join(rows)}</dl>'))
    listed = "\n".join([*found, "names"])
    out.append(f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{listed}\n```\n")
    return "\n".join(out)


def names(found: dict[str, list[File]]) -> str:
    """The index of names, by letters. Methods stand under their own name, with their class."""
    rows = []
    for room, files in found.items():
        for file in files:
            for entry in every(file.entries):
                own = entry.name.split(".")[-1]
                rows.append((own.strip("_").lower(), own, entry, room, file))
    rows.sort(key=lambda row: (row[0], row[2].name, row[2].place, row[3]))
    letters: dict[str, list[str]] = {}
    for key, own, entry, room, file in rows:
        of = entry.name.rpartition(".")[0]
        said = f" of <code>{html.escape(of)}</code>" if of else ""
        letters.setdefault(key[0].upper(), []).append(
            f'<li><a href="{room}.html#{html.escape(entry.place)}"><code>{html.escape(own)}</code>'
            f"</a> <small>{entry.kind}{said}, {dotted(file.path)}</small></li>"
        )
    out = [f"# Index of names\n\n{len(rows)} names, by their letters.\n"]
    for letter, items in letters.items():
        out += [f"## {letter}\n", raw(f'<ul class="names">{"".join(items)}</ul>')]
    return "\n".join(out)


def site_pages(code: set[str], root: Path = ROOT) -> dict[str, str]:
    """{place in the site's sources: text} of the whole reference. `code`: the files that have a
    page of code and explanation.
    """
    found = reference(root)
    links = addresses(found)
    tutorials = {card.file: card.page for card in pages.cards(root) if card.page}
    made = {"api/index.md": index(found, links), "api/names.md": names(found)}
    for room, files in found.items():
        made[f"api/{room}.md"] = page(room, files, links, code, tutorials)
    return made


def repeated(found: dict[str, list[File]]) -> list[str]:
    """Places that two entries of one page would share."""
    out = []
    for room, files in found.items():
        count = Counter(e.place for f in files for e in every(f.entries))
        out += [f"{room}.html#{place}" for place, n in count.items() if n > 1]
    return out
