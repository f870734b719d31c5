"""Opens the built site in a real browser, from its files, and fails if anything is wrong.

    make check-site                               # or: python tutorials/site/check.py [SITE] [--shots DIR]

Every page, at 1400 and 390 pixels, light and dark: nothing wider than the window, no Markdown left
as text, enough contrast (check_pages.py), no console error, no failed script, nothing asked for
outside the site. Every link and every picture: what it names exists, the #place on a page too. The
gallery filters, the leaderboard sorts, the search finds. What the playground must do is in
check_playground.py. Screenshots of some pages at 1400, 390 and 360 pixels, light and dark, for
eyes. Needs Chromium: MINIDIFF_CHROMIUM=PATH, or `chromium` on the PATH (Debian: apt-get install
chromium), or what `playwright install chromium` brought.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import check_pages
import check_playground

ROOT = Path(__file__).resolve().parents[2]
SHOTS = (
    "index.html",
    "gallery.html",
    "leaderboard.html",
    "editing/prompt_to_prompt.html",
    "code/editing/prompt_to_prompt.html",
    "playground.html",
)
VIEWS = (
    (1400, "light", SHOTS),
    (390, "light", SHOTS),
    (1400, "dark", SHOTS[1::2]),
    (390, "dark", SHOTS[-1:]),
    (360, "light", SHOTS[-1:]),
)
MADE_UP = {
    "split": "made up, to try the table",
    "scenes": 1,
    "seeds": 1,
    "controls": [],
    "methods": [
        {
            "method": m,
            "inputs": "P",
            "T": t,
            "T_ci": [t / 2, t],
            "K": 0.5,
            "score": s,
            "score_ci": [0, s],
            "seconds": None if s == 0.4 else 9.5 * s,
        }
        for m, t, s in (("b", 0.5, 0.4), ("a", 1.0, 0.09), ("c", 0.25, 0.7))
    ],
}


class Page(HTMLParser):
    """`links` and `ids` of one page; `outside`: what it would fetch from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.outside = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if k in ("id", "name") and v:
                self.ids.add(v)
            fetched = k == "src" or (tag == "link" and k == "href")
            if fetched and re.match(r"(https?:)?//", v or ""):
                self.outside.append(v)
            elif k in ("href", "src") and v and not re.match(r"[a-z]+:", v):
                self.links.append(v)


def links(site: Path) -> tuple[int, list[str]]:
    """(how many were followed, what is wrong)."""
    read = {p.resolve(): Page(p.read_text()) for p in site.rglob("*.html")}
    seen, wrong = 0, []
    for file, page in read.items():
        wrong += [f"{file.relative_to(site)}: fetches {u}" for u in page.outside]
        for link in page.links:
            path, _, place = unquote(link).partition("#")
            target = (file.parent / path.partition("?")[0]).resolve() if path else file
            seen += 1
            if not target.is_file():
                wrong.append(f"{file.relative_to(site)}: {link} does not exist")
            elif (
                place
                and target in read
                and place not in read[target].ids
                and file.name not in ("search.html",)
            ):
                wrong.append(
                    f"{file.relative_to(site)}: {link}: the page has no place of that name"
                )
    styles = [
        f"{p.name}: fetches {u}"
        for p in site.rglob("*.css")
        for u in re.findall(r"url\([\"']?(https?:[^)]*)", p.read_text())
    ]
    return seen, wrong + styles


def chromium() -> str | None:
    return (
        os.environ.get("MINIDIFF_CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("google-chrome")
    )


def column(page, i: int) -> list[str]:
    return page.eval_on_selector_all(
        "table.sortable tbody tr", f"rows => rows.map(r => r.cells[{i}].dataset.v)"
    )


def ordered(values: list[str], up: bool) -> bool:
    """Numbers in order, what is missing last."""
    there = [float(v) for v in values if v]
    return there == sorted(there, reverse=not up) and not any(values[len(there) :])


def sorts(page, url: str) -> list[str]:
    """What is wrong with the leaderboard's columns."""
    page.goto(url)
    wrong, heads = [], page.locator("table.sortable th button")
    names = [t.strip() for t in heads.all_inner_texts()]
    for name in ("EditScore", "T %", "s/edit"):
        i = names.index(name)
        head = heads.nth(i).locator("xpath=..")
        fallen = head.get_attribute("aria-sort") == "descending"  # as the page comes: EditScore
        for up in (True, False) if fallen else (False, True):
            heads.nth(i).click()
            if not ordered(column(page, i), up):
                wrong.append(f"{name}, {'up' if up else 'down'}: {column(page, i)}")
    heads.nth(0).click()
    if column(page, 0) != page.evaluate(
        "names => names.sort((a, b) => a.localeCompare(b))", column(page, 0)
    ):
        wrong.append(f"by name: {column(page, 0)}")
    return wrong


def filters(page, url: str) -> list[str]:
    """What is wrong with the gallery's buttons and field."""
    page.goto(url)
    wrong, shown = [], lambda: page.locator(".card:visible").count()
    total = shown()
    rooms = [b for b in page.locator(".filters button").all() if b.get_attribute("data-room")]
    for b in rooms:
        b.click()
        room = b.get_attribute("data-room")
        there = page.eval_on_selector_all(
            ".card:not([hidden])", "cards => cards.map(c => c.dataset.room)"
        )
        if not there or set(there) != {room} or shown() != len(there) or len(there) == total:
            wrong.append(f"room {room}: {there}")
    page.locator('.filters button[data-room=""]').click()
    page.locator(".filters input").fill("attend-and")
    if shown() != 1:
        wrong.append(f"'attend-and' shows {shown()} cards")
    page.locator(".filters input").fill("no such thing at all")
    if shown() or not page.locator(".empty").is_visible():
        wrong.append("nothing found is not said")
    page.locator(".filters input").fill("")
    if shown() != total:
        wrong.append("not all cards came back")
    broken = page.eval_on_selector_all(
        ".card img",
        """all => Promise.all(all.map(i => {
        i.loading = "eager"; return i.decode().then(() => 0, () => 1); })).then(x => x.reduce((a, b) => a + b, 0))""",
    )
    return wrong + ([f"{broken} pictures do not load"] if broken else [])


def finds(page, url: str) -> list[str]:
    """What is wrong with the search."""
    page.goto(f"{url}?q=inversion")
    try:
        page.wait_for_selector("#search-results li a", timeout=20000)
    except Exception as e:
        return [f"nothing is found for 'inversion': {str(e).splitlines()[0]}"]
    return []


def browse(site: Path, shots: Path) -> tuple[int, list[str]]:
    """(pages opened, what is wrong)."""
    from playwright.sync_api import sync_playwright

    wrong, url = [], lambda where: (site / where).resolve().as_uri()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60000)
        page.on(
            "console",
            lambda m: (
                wrong.append(f"{page.url}: {m.type}: {m.text}") if m.type == "error" else None
            ),
        )
        page.on("pageerror", lambda e: wrong.append(f"{page.url}: {e}"))
        page.on(
            "request",
            lambda r: (
                r.url.startswith(("file:", "data:", "blob:"))
                or wrong.append(f"{page.url}: asks {r.url}")
            ),
        )
        # left while a lazy picture was coming
        page.on(
            "requestfailed",
            lambda r: "ABORTED" in (r.failure or "") or wrong.append(f"{page.url}: {r.url} failed"),
        )
        opened = sorted(site.rglob("*.html"))
        for file in opened:
            where = file.relative_to(site)
            wrong += [f"{where}: {w}" for w in check_pages.faults(page, file.resolve().as_uri())]
        page.set_viewport_size({"width": 1400, "height": 900})
        page.emulate_media(color_scheme="light")
        with tempfile.TemporaryDirectory() as tmp:
            wrong += blind(page, Path(tmp))
        wrong += [f"gallery: {w}" for w in filters(page, url("gallery.html"))]
        wrong += [f"search: {w}" for w in finds(page, url("search.html"))]
        wrong += [f"playground: {w}" for w in check_playground.checks(page, site)]
        if 'table class="sortable"' in (site / "leaderboard.html").read_text():
            wrong += [f"leaderboard: {w}" for w in sorts(page, url("leaderboard.html"))]
        # the same script on three rows that need sorting
        with tempfile.TemporaryDirectory() as tmp:
            wrong += [f"leaderboard (made up): {w}" for w in sorts(page, stand_in(Path(tmp), site))]
        page.close()
        shots.mkdir(parents=True, exist_ok=True)
        for width, scheme, which in VIEWS:
            page = browser.new_page(
                viewport={"width": width, "height": 1000 if width > 500 else 844},
                color_scheme=scheme,
            )
            for where in which:
                page.goto(url(where))
                over = page.evaluate(
                    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                if over > 1:
                    wrong.append(f"{where} at {width}: {over} pixels wider than the window")
                page.screenshot(
                    path=shots
                    / f"{where.removesuffix('.html').replace('/', '.')}-{width}-{scheme}.png"
                )
            page.close()
        browser.close()
    return len(opened), wrong


def blind(page, tmp: Path) -> list[str]:
    """What the look at every page does not see on a page where everything is wrong."""
    (tmp / "bad.html").write_text(check_pages.BAD)
    said = " ".join(check_pages.faults(page, (tmp / "bad.html").as_uri()))
    expected = ("wider than the window", "Markdown", "contrast", "without a description")
    return [f"a page made to be bad: {what!r} is not seen" for what in expected if what not in said]


def stand_in(tmp: Path, site: Path) -> str:
    """A page with a made up table and the site's own script; its address."""
    import pages

    script = next((site / "_static").glob("site.js")).resolve().as_uri()
    body = f'{pages.board(MADE_UP)}<script src="{script}"></script>'
    (tmp / "x.html").write_text(f'<!doctype html><meta charset="utf-8">{body}')
    return (tmp / "x.html").as_uri()


def main() -> int:
    p = argparse.ArgumentParser(description="check the built site in a browser")
    p.add_argument("site", type=Path, nargs="?", default=ROOT / "out/site")
    p.add_argument("--shots", type=Path, help="where screenshots go (default: SITE-shots)")
    a = p.parse_args()
    site = a.site.resolve()
    if not (site / "index.html").exists():
        print(f"{site} has no index.html; run `make site` first")
        return 2
    shots = a.shots or site.with_name(site.name + "-shots")
    count, wrong = links(site)
    opened, more = browse(site, shots)
    for w in wrong + more:
        print("WRONG", w)
    print(
        f"{opened} pages opened, {count} links followed, {len(wrong + more)} wrong; "
        f"screenshots in {shots}"
    )
    return 1 if wrong or more else 0


if __name__ == "__main__":
    sys.exit(main())
