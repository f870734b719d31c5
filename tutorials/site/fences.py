"""Blocks of a page of Markdown that are not Markdown: code, and HTML as it is."""

import re


def fenced(text: str, kind: str) -> str:
    """`text` between two fences that are longer than any row of backticks in it."""
    longest = max([2, *[len(row) for row in re.findall(r"`+", text)]])
    fence = "`" * (longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}\n"


def raw(block: str) -> str:
    """HTML that Sphinx puts on the page unread."""
    return fenced(block, "{raw} html")
