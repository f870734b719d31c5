"""A renderer of formulas for Sphinx: TeX -> MathML while building. Readers need no script, and
nothing is fetched.
"""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

log = logging.getLogger(__name__)
# names of operators that the converter lacks
NAMES = re.compile(r"\\(arg|lcm|sgn|supp)(?![a-zA-Z])")
BARS = re.compile(r"\\[lr]Vert(?![a-zA-Z])")  # so does it these, which \| stands for


def mathml(tex: str, display: str) -> str:
    """ValueError, with the formula: it could not be read, or a command would appear as it is
    written.
    """
    try:
        out = convert(
            NAMES.sub(r"\\operatorname{\1}", BARS.sub(r"\\|", tex.strip())), display=display
        )
    except Exception as e:  # a parser's own errors, of many kinds
        raise ValueError(f"this formula cannot be read ({type(e).__name__}): {tex}") from e
    if left := re.search(r"\\[a-zA-Z]+", out):
        raise ValueError(f"the converter does not know {left[0]}: {tex}")
    return out


def write(self, node, display: str) -> None:
    try:
        shown = mathml(node.astext(), display)
    except ValueError as e:
        log.warning(str(e), location=node)
        shown = f"<code>{self.encode(node.astext())}</code>"
    self.body.append(f'<div class="math">{shown}</div>' if display == "block" else shown)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: write(self, node, "inline"), None),
        (lambda self, node: write(self, node, "block"), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
