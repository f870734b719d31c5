"""Sphinx's configuration. `make site` calls build.py, which first lays the sources out in
out/site-src.

Why furo: it is one small style sheet and one script, light and dark, fit for a phone, and fetches
nothing from anywhere; pydata-sphinx-theme brings Bootstrap and icon fonts for menus that this site
does not have.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for the extension `mathml` beside this file

project = "minidiff"
author = "the minidiff authors"
html_title = "minidiff"

extensions = ["myst_parser", "mathml"]
exclude_patterns = ["figures/sheets/*.md"]
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True  # $$..$$ in the middle of a paragraph
myst_heading_anchors = 3  # page.md#a-heading, as GitHub has them
suppress_warnings = [
    "myst.header",  # code pages go from # to ##; tutorials may skip
    "misc.highlighting_failure",
]  # a ``` block may be a table or a transcript

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]  # build.py adds the folder of contact sheets
html_css_files = ["site.css", "reference.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_search_summary = False  # it fetches pages, which file:// forbids
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "github-dark"
