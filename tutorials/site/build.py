"""The site: lays the sources out in out/site-src (from README, tutorials/ and the code itself),
then calls Sphinx.

    python tutorials/site/build.py  # -> out/site/index.html, which opens from the file
    python tutorials/site/build.py --bench FILE --out DIR          # another bench.json, another place

Nothing in out/ is a source: change the tutorials, the code or site/, and build again.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import api
import beside
import front
import live
import notebook_pages
import pages
import playground

ROOT, HERE = pages.ROOT, Path(__file__).resolve().parent
WIDE = "---\nhide-toc: true\n---\n\n"


def toctree(caption: str, entries: list[str], hidden: bool = True) -> str:
    flag = ":hidden:\n" if hidden else ""
    return (
        f"```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n{flag}\n"
        + "\n".join(entries)
        + "\n```\n"
    )


def write(file: Path, text: str) -> None:
    """Only what changed is written, so that Sphinx reads only that again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def lay_out(
    to: Path, bench: Path | None, drawing: dict[str, Path] | None = None, missing: str = ""
) -> list[Path]:
    """All sources of the site, below `to`; returns the pages. What an earlier build left there is
    removed.

    `drawing`: the scripts that let the playground draw; or else `missing` says why there are none.
    """
    code, made = set(pages.code_files()), {}
    for file in sorted((ROOT / "tutorials").rglob("*.md")):
        path = str(file.relative_to(ROOT))
        made[pages.place(path, code)] = pages.relinked(file.read_text(), path, code)
    rows = pages.papers((ROOT / "tutorials/papers.md").read_text())
    for path in code:
        row = next((r for r in rows if path in r.files), None)
        lead = f"`{path}`"
        if row:
            said = [
                f"{row.paper}: *{row.answers}*",
                f"Page: `{row.tutorial}`." if row.tutorial else "",
                f"Test: {', '.join(f'`{t}`' for t in row.tests)}.",
            ]
            lead = "  \n".join(s for s in said if s)
        where = pages.place(path, code)
        title = path.removeprefix("minidiff/")
        made[where] = beside.page((ROOT / path).read_text(), title, "")
        made[where] = made[where].replace(
            f"# {title}\n\n", f"# {title}\n\n" + in_place(lead, path, code), 1
        )
    facts = bench and json.loads(bench.read_text())
    made["gallery.md"] = WIDE + (
        "# Gallery of techniques\n\nEach card shows one scene, its true edit, and what the "
        "technique made of it. The picture is the best of those on the technique's page, where "
        "its knob is turned from end to end.\n\n````{raw} html\n"
        + pages.gallery(pages.cards(), code)
        + "\n````\n"
    )
    made["leaderboard.md"] = WIDE + pages.leaderboard(facts, code)
    made["playground.md"] = playground.page(
        json.loads(playground.SWEEPS.read_text()), missing, code
    )
    made["code/index.md"] = code_index(sorted(w for w in made if w.startswith("code/")))
    made |= notebook_pages.site_pages(code)
    made["notebooks.md"] += notebook_pages.tree()
    made |= api.site_pages(code)
    readme = pages.relinked((ROOT / "README.md").read_text(), "README.md", code)
    made["index.md"] = front.page(readme, facts, set(made), code)
    made["index.md"] += "\n" + "\n".join(navigation(set(made)))

    for where, text in made.items():
        write(to / where, text)
    figures = ROOT / "tutorials/figures"
    files = [
        (p, to / p.relative_to(ROOT / "tutorials")) for p in (ROOT / "tutorials").rglob("*.png")
    ]
    # once more, where the pages that are written here in HTML find them
    for triptych in sorted((figures / "triptychs").glob("*.png")):
        files.append((triptych, to / "static/triptychs" / triptych.name))
    for picture in front.PICTURES:
        files.append((figures / picture, to / "static/front" / picture))
    files += [
        (p, to / p.relative_to(ROOT))
        for p in (ROOT / "notebooks").rglob("*.ipynb")
        if "checkpoints" not in str(p)
    ]
    files += [(p, to / "static/live" / name) for name, p in (drawing or {}).items()]
    for source, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            shutil.copyfile(source, target)
    kept = {to / w for w in made} | {target for _, target in files} | notebook_pages.pictures(to)
    for old in [p for p in to.rglob("*") if p.is_file() and p not in kept]:
        old.unlink()
    return [to / w for w in made]


def code_index(files: list[str]) -> str:
    """The page that lists the files of code, by folder."""
    folders: dict[str, list[str]] = {}
    for file in files:
        inside = file.removeprefix("code/")
        folders.setdefault(inside.split("/")[0] if "/" in inside else "", []).append(inside)
    trees = [toctree(folder, entries, hidden=False) for folder, entries in folders.items()]
    head = "# Code, explained\n\nEach file beside what its docstrings and comments say about it."
    return "\n\n".join([head, *trees])


def navigation(known: set[str]) -> list[str]:
    """The tables of contents of the bar at the left: the rooms of pages.NAVIGATION, then the rooms
    of techniques, then whatever is left. Every page but those of code and API stands in one.
    """
    trees = []
    listed = {"index.md"}
    for caption, entries in pages.NAVIGATION:
        there = [entry for entry in entries if entry.split("<")[-1].strip(">") in known]
        trees.append(toctree(caption, there))
        listed |= {entry.split("<")[-1].strip(">") for entry in there}
    below = ("code/", "api/", "notebooks/")  # have a page that lists them
    left = sorted(page for page in known - listed if not page.startswith(below))
    folders = {page.split("/")[0] for page in left if "/" in page}
    rooms = [room for room in pages.ROOMS if room in folders]
    for room in [*rooms, *sorted(folders - set(rooms))]:
        mine = [page for page in left if page.startswith(room + "/")]
        mine.sort(key=lambda page: not page.endswith("README.md"))
        trees.append(toctree(pages.ROOMS.get(room, room.capitalize()), mine))
    rest = [page for page in left if "/" not in page]
    if rest:
        trees.append(toctree("More", rest))
    return trees


def in_place(lead: str, path: str, code: set[str]) -> str:
    """The lines under a code page's title, linked as seen from there (a page named in backticks
    becomes a link).
    """
    return pages.relinked(lead, path, code) + "\n\n"


def build(
    out: Path, sources: Path, bench: Path | None, strict: bool = True, draws: bool = True
) -> int:
    """Sphinx's exit code: with `strict`, 1 if there was any warning (the site is written all the
    same).
    """
    from sphinx.cmd.build import main

    drawing, missing = {}, "" if draws else "it was built without the model"
    try:
        drawing = live.make(ROOT / "out/live") if draws else {}
    except live.Missing as e:
        missing = str(e)
        print(f"the playground will not draw: {missing}")
    made = lay_out(sources, bench, drawing, missing)
    args = [
        "-q",
        "-a",
        "-b",
        "html",
        "-c",
        str(HERE),
        "-d",
        str(sources) + "-doctrees",
        "-D",
        f"html_static_path={HERE / 'static'},{sources / 'static'}",
        *(["-W", "--keep-going"] if strict else []),
    ]
    started = time.time()  # -a: pages depend on site/ too
    code = main([*args, str(sources), str(out)])
    print(f"{len(made)} pages, {time.time() - started:.0f} s: {out / 'index.html'}")
    return code


def main() -> int:
    p = argparse.ArgumentParser(description="build the site")
    p.add_argument("--out", type=Path, default=ROOT / "out/site")
    p.add_argument("--sources", type=Path, help="where the sources are laid out (default: OUT-src)")
    p.add_argument(
        "--bench", type=Path, help="a bench.json (default: the first there is of pages.BENCH)"
    )
    p.add_argument(
        "--no-live",
        action="store_true",
        help="leave out the model that draws in the browser (14 MB)",
    )
    p.add_argument("--lenient", action="store_true", help="warnings do not fail")
    a = p.parse_args()
    bench = a.bench or next((b for b in pages.BENCH if b.exists()), None)
    out = a.out.resolve()
    return build(
        out,
        (a.sources or out.with_name(out.name + "-src")).resolve(),
        bench,
        not a.lenient,
        not a.no_live,
    )


if __name__ == "__main__":
    sys.exit(main())
