"""Code | explanation: a source file as rows of (what is said, the lines it is said of), as HTML
that stacks on a phone.

Docstrings stand beside the signature they belong to, comments beside their lines. Nothing is
written twice: the page is the file, taken apart by `ast` and `tokenize`. Layout of docstrings
(tables of symbols, formulas) is kept line by line.
"""

import ast
import html
import inspect
import io
import re
import tokenize
from dataclasses import dataclass, field

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

SECTION = re.compile(r"#\s*-{2,}\s*(\S.*?)\s*-*$")  # "# ---- the edit ------"
TOOLS = re.compile(r"\s*#?\s*(noqa|type:|fmt:|pragma)\b.*$")  # said to tools, not to readers
LAID_OUT = re.compile(r"^\s{2,}\S|\S {2,}\S")  # a line whose spaces mean something
HANG = re.compile(r"^(\s*\S[^\n]{0,18}?\s{2,})\S")  # "  name   text": where the text begins
ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")


@dataclass
class Row:
    """`code` are line numbers (from 1); `gap`: a blank line came before; a `heading` stands
    alone.
    """

    says: str = ""
    code: list[int] = field(default_factory=list)
    gap: bool = False
    heading: str = ""


def docstrings(tree: ast.Module) -> list[tuple[int, int, int, str]]:
    """(first line of the owner, first and last line of the docstring, its text) for module, classes
    and functions.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                first = (
                    min([node.lineno, *[d.lineno for d in node.decorator_list]])
                    if hasattr(node, "lineno")
                    else 0
                )
                found.append((first, node.body[0].lineno, node.body[0].end_lineno, text))
    return found


def comments(source: str) -> dict[int, tuple[int, str]]:
    """{line: (column, comment)}; a # inside a string is none."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: (t.start[1], t.string) for t in tokens if t.type == tokenize.COMMENT}


def taken_apart(source: str) -> tuple[list[Row], list[str]]:
    """(rows, lines without their docstrings and comments). SyntaxError: not Python."""
    tree, notes = ast.parse(source), comments(source)
    docs = docstrings(tree)
    spoken = {owner: text for owner, _, _, text in docs}  # said where its owner begins
    silent = {n for _, a, b, _ in docs for n in range(a, b + 1)}
    tops = {
        min([n.lineno, *[d.lineno for d in getattr(n, "decorator_list", [])]])
        for n in tree.body
        if isinstance(n, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    }
    lines, bare = source.splitlines(), []
    rows, said_by_line = [Row(spoken.get(0, ""))], False
    gap = False
    for n, line in enumerate(lines, 1):
        column, note = notes.get(n, (None, ""))
        text = line if column is None else line[:column].rstrip()
        bare.append("" if n in silent else text)
        note = "" if n in silent or note.startswith("#!") else TOOLS.sub("", note)
        if n in silent:
            continue
        if not line.strip():
            gap = bool(rows[-1].code) or gap
            continue
        if not text:  # a comment with a line of its own
            if section := SECTION.match(note):
                rows.append(Row(heading=section[1]))
            elif note:
                said = note.lstrip("# ")
                if rows[-1].code or rows[-1].heading or said_by_line:
                    rows.append(Row(said, gap=gap))
                else:
                    rows[-1].says = f"{rows[-1].says}\n{said}".strip()
            said_by_line, gap = False, False
            continue
        said = note.lstrip("# ")
        if n in spoken or said or n in tops:
            if (
                rows[-1].code
                or rows[-1].heading
                or (rows[-1] is rows[0] and rows[0].says and n in spoken)
            ):
                rows.append(Row(gap=gap or n in tops))
            rows[-1].says = "\n\n".join(s for s in (rows[-1].says, spoken.get(n, ""), said) if s)
        elif said_by_line or rows[-1].heading:  # the comment was about that line alone
            rows.append(Row(gap=gap))
        elif gap and rows[-1].code:
            rows[-1].code.append(0)  # a blank line inside the row
        rows[-1].code.append(n)
        said_by_line, gap = bool(said) and n not in spoken, False
    return [r for r in rows if r.says or r.code or r.heading], bare


def coloured(lines: list[str]) -> list[str]:
    """HTML of each line, highlighted as a whole so that a string over several lines keeps its
    colour.
    """
    out = highlight("\n".join(lines) + "\n", PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    return out.split("\n")[: len(lines)]


def prose(text: str) -> str:
    """A docstring or comment as HTML: paragraphs; laid out lines as they are; `code` and arXiv
    numbers as such.
    """
    parts, plain = [], []

    def flush() -> None:
        if plain:
            parts.append(f"<p>{inline(' '.join(plain))}</p>")
            plain.clear()

    table = blank = False
    for line in inspect.cleandoc(text).splitlines():
        laid = bool(LAID_OUT.search(line))
        if laid:
            flush()
            hang = HANG.match(line)
            wide = len(hang[1]) if hang else len(line) - len(line.lstrip()) + 2
            line = f'<span class="line" style="--hang:{wide}ch">{inline(line)}</span>'
            if table:
                parts[-1] = (
                    parts[-1].removesuffix("</div>")
                    + ('<span class="line"> </span>' * blank)
                    + line
                    + "</div>"
                )
            else:
                parts.append(f'<div class="laid">{line}</div>')
        elif line.strip():
            plain.append(line.strip())
        else:
            flush()
        blank = not line.strip()
        table = laid or (table and blank)
    flush()
    return "".join(parts)


def inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return ARXIV.sub(r'arXiv <a href="https://arxiv.org/abs/\1">\1</a>', text)


def code(numbers: list[int], bare: list[str], shown: list[str]) -> str:
    out = []
    for n in numbers:
        text = bare[n - 1] if n else ""
        hang = len(text) - len(text.lstrip()) + 4
        number = f' data-n="{n}"' if n else ""
        out.append(
            f'<span class="line"{number} '
            f'style="--hang:{hang}ch">{shown[n - 1] if n else " "}</span>'
        )
    return "".join(out)


def page(source: str, title: str, lead: str = "") -> str:
    """A MyST page of one file: sections are Markdown headings (so that they are in the contents),
    the rest is HTML.
    """
    rows, bare = taken_apart(source)
    shown, parts, block = coloured(bare), [f"---\nhide-toc: true\n---\n\n# {title}\n\n{lead}\n"], []

    def flush() -> None:
        if block:
            parts.append(
                '````{raw} html\n<div class="beside">\n' + "\n".join(block) + "\n</div>\n````\n"
            )
            block.clear()

    for r in rows:
        if r.heading:
            flush()
            parts.append(f"## {r.heading[0].upper() + r.heading[1:]}\n")
            continue
        lines = code(r.code, bare, shown)
        right = (
            f'<div class="code highlight"><pre>{lines}</pre></div>'
            if r.code
            else '<div class="code"></div>'
        )
        kind = "row" + " gap" * r.gap + " first" * (r is rows[0])
        block.append(f'<div class="{kind}"><div class="says">{prose(r.says)}</div>{right}</div>')
    flush()
    return "\n".join(parts)
