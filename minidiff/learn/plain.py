"""Formulas for a terminal: LaTeX as plain words, in the letters that every keyboard has.

    plain(r"$x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$")     # "x_t = alpha_t x_0 + sigma_t eps"

It knows what the tasks use and no more; a test reads every task.
"""

import re

# commands without arguments, and what is written for them
WORDS = {
    r"\epsilon": "eps",
    r"\varnothing": "null",
    r"\odot": "*",
    r"\cdot": "*",
    r"\times": "x",
    r"\le": "<=",
    r"\ge": ">=",
    r"\mid": "|",
    r"\prod": "product",
    r"\sum": "sum",
    r"\lfloor": "floor(",
    r"\rfloor": ")",
    r"\nabla": "grad",
    r"\big": "",
}
SPACES = re.compile(r"\\[,;]")
ATOM = re.compile(r"[\w.]+(\^\d)?")  # what needs no brackets beside a sign


def plain(text: str) -> str:
    """The text with each formula between dollar signs spelled in plain words."""
    return re.sub(r"\$([^$]+)\$", lambda found: formula(found[1]), text)


def formula(latex: str) -> str:
    """One formula, without its dollar signs."""
    text = SPACES.sub(" ", latex).replace(r"\tfrac", r"\frac")
    text = re.sub(r"\\frac(\\[a-z]+|\w)(\w)", r"\\frac{\1}{\2}", text)  # \frac12, \frac\pi2
    for latex_word, word in WORDS.items():
        text = re.sub(re.escape(latex_word) + r"(?![a-zA-Z])", lambda _, w=word: w, text)
    text = _marked(text)
    text = _arguments(text)
    text = re.sub(r"\\([a-zA-Z]+)", r"\1", text)  # Greek letters and functions: by their names
    text = text.replace("{", "").replace("}", "")
    text = re.sub(r" {2,}", " ", text).strip()
    return text.replace("( ", "(").replace(" )", ")")


def _marked(text: str) -> str:
    """A hat or a bar becomes a part of the name: \\hat x_0 is x_0_hat."""
    name = r"\{?(\\?[a-zA-Z]+)\}?(_\{[^{}]*\}|_\w)?"
    text = re.sub(r"\\hat\s*" + name, r"\1_hat\2", text)
    return re.sub(r"\\bar\s*" + name, r"\1_bar\2", text)


def _arguments(text: str) -> str:
    """Innermost first: \\frac{a}{b} is a / b, \\sqrt{a} is sqrt(a), \\text{a} is a; a raised or
    lowered group has brackets if it is no single name.
    """
    group = r"\{([^{}]*)\}"
    before = ""
    while before != text:
        before = text
        text = re.sub(r"\\(?:text|mathrm)" + group, r"\1", text)
        text = re.sub(r"\\sqrt" + group, r"sqrt(\1)", text)
        text = re.sub(r"([_^])" + group, lambda m: m[1] + _bracketed(m[2]), text)
        text = re.sub(r"\\frac" + group + group, _quotient, text)
    return text


def _bracketed(part: str) -> str:
    part = part.strip()
    return part if ATOM.fullmatch(part.replace("\\", "")) else f"({part})"


def _quotient(found: re.Match) -> str:
    above = found[1].strip()
    if "+" in above or "-" in above:
        above = f"({above})"
    return f"({above} / {_bracketed(found[2])})"
