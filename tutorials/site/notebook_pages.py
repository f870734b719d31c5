"""The notebooks as pages of the site, with what came out when they were run.

A notebook is JSON, and is read as such. Its text becomes Markdown, its code is highlighted, its
pictures become files. Only the solved notebooks of notebooks/ become pages: the blank ones of
notebooks/blank/ hold no outputs, and are there to be downloaded.
"""

import base64
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pages
from fences import fenced, raw

ROOT = pages.ROOT
LONG = 20  # lines of text that came out, above which they are folded
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # what a terminal would show as colours
# "About 20 minutes of reading, half a minute of running on one core, no network."
COST = re.compile(
    r"About ([^.]*? minutes?) of reading, ([^.]*? minutes?) of running[,;]? ?([^.]*)\."
)
SHIPPED = re.compile(r"""minidiff\.load\(\s*["']([\w-]+)["']""")


@dataclass(frozen=True)
class Notebook:
    """`path` in the repository; `cells` as the file has them."""

    path: str
    cells: tuple[dict, ...]

    @property
    def stem(self) -> str:
        return Path(self.path).stem

    @property
    def blank(self) -> str:
        """The version to fill in; the path says nothing of whether there is one."""
        return f"notebooks/blank/{self.stem}.ipynb"

    @property
    def title(self) -> str:
        return source(self.cells[0]).splitlines()[0].removeprefix("# ")

    @property
    def exercises(self) -> list[str]:
        """The functions that the blank version asks for."""
        return [c["metadata"]["exercise"] for c in self.cells if "exercise" in c["metadata"]]


@dataclass(frozen=True)
class Cost:
    """What a notebook says in its head: "20 minutes", "half a minute", "no network"."""

    reading: str
    running: str
    needs: str


def joined(text: str | list[str]) -> str:
    """The format stores a text as one string or as a list of its lines."""
    return text if isinstance(text, str) else "".join(text)


def source(cell: dict) -> str:
    return joined(cell["source"])


def read(path: str, root: Path = ROOT) -> Notebook:
    """ValueError: it does not begin with its title, or was not run."""
    facts = json.loads((root / path).read_text())
    made = Notebook(path, tuple(facts["cells"]))
    if not made.cells or not source(made.cells[0]).startswith("# "):
        raise ValueError(f"{path} must begin with a cell of text whose first line is its title")
    unrun = [c for c in made.cells if c["cell_type"] == "code" and not c.get("execution_count")]
    if unrun:
        raise ValueError(
            f"{path} has {len(unrun)} cells that were not run, so its page would lack what they "
            f"print and draw; run: python notebooks/build.py {made.stem[:2]}"
        )
    return made


def every(root: Path = ROOT) -> list[Notebook]:
    """The solved notebooks, in their order."""
    found = sorted((root / "notebooks").glob("*.ipynb"))
    return [read(str(p.relative_to(root)), root) for p in found]


def cost(notebook: Notebook) -> Cost | None:
    """What its first cell says it takes; None if it does not say it."""
    said = COST.search(" ".join(source(notebook.cells[0]).split()))
    return Cost(*said.groups()) if said else None


# ---- what came out -------------------------------------------------------------------------------


def picture_name(notebook: Notebook, cell: int, output: int) -> str:
    """Where a picture lies, seen from the page."""
    return f"pictures/{notebook.stem}-{cell:02}-{output}.png"


def interactive(data: dict) -> bool:
    """Would it need a script? A page shows the picture instead, if there is one."""
    return "<script" in joined(data.get("text/html", ""))


def shows_html(data: dict) -> bool:
    return "text/html" in data and not interactive(data)


def text_shown(text: str) -> str:
    """Printed text as HTML; folded if it is long."""
    text = COLOURS.sub("", text).rstrip("\n")
    block = f'<pre class="output">{html.escape(text)}</pre>'
    lines = text.count("\n") + 1
    if lines <= LONG:
        return block
    return f'<details class="output"><summary>{lines} lines of text</summary>{block}</details>'


def output_shown(notebook: Notebook, cell: int, number: int, output: dict) -> str:
    """One output as a piece of a page; "" if there is nothing to see.

    ValueError: an error, which a solved notebook may not hold.
    """
    if output["output_type"] == "stream":
        return raw(text_shown(joined(output["text"])))
    if output["output_type"] == "error":
        raise ValueError(
            f"{notebook.path}: cell {cell} stopped with {output.get('ename')}: "
            f"{output.get('evalue')}"
        )
    data = output.get("data", {})
    if shows_html(data):
        return raw(f'<div class="output">{joined(data["text/html"])}</div>')
    if "image/png" in data:
        said = f"What cell {cell + 1} of {notebook.title} draws"
        return f"![{said}]({picture_name(notebook, cell, number)})\n"
    if "text/plain" in data:
        return raw(text_shown(joined(data["text/plain"])))
    return ""


def together(outputs: list[dict]) -> list[dict]:
    """Outputs, with what was printed piece by piece in one piece."""
    out: list[dict] = []
    for one in outputs:
        text = joined(one["text"]) if one["output_type"] == "stream" else None
        if text is not None and out and out[-1].get("name") == one.get("name") is not None:
            out[-1] = {**out[-1], "text": joined(out[-1]["text"]) + text}
        else:
            out.append(one)
    return out


def drawn(notebook: Notebook) -> dict[str, bytes]:
    """{place seen from the page: PNG} of every picture that the page shows as a file."""
    found = {}
    for n, cell in enumerate(notebook.cells):
        for k, output in enumerate(together(cell.get("outputs", []))):
            data = output.get("data", {})
            if "image/png" in data and not shows_html(data):
                found[picture_name(notebook, n, k)] = base64.b64decode(joined(data["image/png"]))
    return found


# ---- pages ---------------------------------------------------------------------------------------


def place(notebook: Notebook) -> str:
    return f"notebooks/{notebook.stem}.md"


def head(notebook: Notebook, before: Notebook | None, after: Notebook | None, root: Path) -> str:
    """The box below the title: what it takes, where to get it, the neighbours."""
    said = cost(notebook)
    takes = f"{said.reading} of reading, {said.running} of running" if said else "The notebook"
    lines = []
    models = dict.fromkeys(
        name
        for cell in notebook.cells
        if cell["cell_type"] == "code"
        for name in SHIPPED.findall(source(cell))
    )
    needs = [said.needs] if said and said.needs else []
    if models:
        needs.append("model: " + ", ".join(f"`{m}`" for m in models) + ", which comes along")
    if needs:
        lines.append(f"**Needs:** {'; '.join(needs)}.")
    gets = [f"[with its outputs]({notebook.stem}.ipynb)"]
    if (root / notebook.blank).is_file():
        gets.append(f"[to fill in](blank/{notebook.stem}.ipynb)")
    lines.append(f"**Download:** {', '.join(gets)}. Both open in JupyterLab.")
    if notebook.exercises:
        asked = ", ".join(f"`{name}`" for name in notebook.exercises)
        lines.append(f"**In the one to fill in you write:** {asked}.")
    near = ["[all notebooks](../notebooks.md)"]
    if before:
        near.insert(0, f"[← {before.title}]({before.stem}.md)")
    if after:
        near.append(f"[{after.title} →]({after.stem}.md)")
    lines.append(" · ".join(near))
    return fenced(":class: notebook\n\n" + "\n\n".join(lines), f"{{admonition}} {takes}")


def page(
    notebook: Notebook,
    before: Notebook | None,
    after: Notebook | None,
    code: set[str],
    root: Path = ROOT,
) -> str:
    """The page of a notebook; `before` and `after` are its neighbours."""
    _, _, rest = source(notebook.cells[0]).partition("\n")
    text = pages.relinked(rest.strip("\n"), notebook.path, code, root)
    parts = [f"# {notebook.title}\n", head(notebook, before, after, root), text + "\n"]
    for n, cell in enumerate(notebook.cells[1:], 1):
        if cell["cell_type"] == "markdown":
            parts.append(pages.relinked(source(cell), notebook.path, code, root) + "\n")
        elif cell["cell_type"] == "code":
            if name := cell["metadata"].get("exercise"):
                parts.append(f"*The version to fill in asks for* `{name}` *here.*\n")
            parts.append(fenced(source(cell).rstrip("\n"), "python"))
            for k, output in enumerate(together(cell.get("outputs", []))):
                parts.append(output_shown(notebook, n, k, output))
    return "\n".join(part for part in parts if part)


def site_pages(code: set[str], root: Path = ROOT) -> dict[str, str]:
    """{place in the site's sources: text} of every solved notebook. `code`: the files that have a
    page of code and explanation.
    """
    found = every(root)
    made = {}
    for before, one, after in zip([None, *found[:-1]], found, [*found[1:], None]):
        made[place(one)] = page(one, before, after, code, root)
    return made


def pictures(to: Path, root: Path = ROOT) -> set[Path]:
    """Write the pictures of all notebooks beside their pages, below `to`; returns the files."""
    written = set()
    for notebook in every(root):
        for where, data in drawn(notebook).items():
            file = to / "notebooks" / where
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists() or file.read_bytes() != data:
                file.write_bytes(data)
            written.add(file)
    return written


def tree(root: Path = ROOT) -> str:
    """What the page of the notebooks needs so that each is found below it."""
    listed = "\n".join(place(notebook) for notebook in every(root))
    return "\n" + fenced(f":hidden:\n:maxdepth: 1\n\n{listed}", "{toctree}")
