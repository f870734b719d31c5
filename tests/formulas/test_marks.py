"""The marks on the pages and the tests of this folder: each has the other."""

import re
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
MARK = re.compile(r"^<!-- formula (\w+) -->(.*)\n\n(\$\$)?", re.M)
PASS = " <sub>checked by <code>tests/formulas/{}::test_{}</code></sub>"


def formulas(files: dict[str, str]) -> dict[str, str]:
    """{name of an equation: the file that tests it}. A name that two files use stands under both,
    and fits neither.
    """
    found = {}
    for file, text in files.items():
        for name in re.findall(r"^def test_(\w+)", text, re.M):
            found[name] = f"{found[name]} and {file}" if name in found else file
    return found


def wrong(pages: dict[str, str], tests: dict[str, str]) -> list[str]:
    """What is not as it should be with the marks of some pages."""
    found, faults = set(), []
    for page, text in pages.items():
        if text.count("<!-- formula") != len(MARK.findall(text)):
            faults.append(f"{page}: a mark is not alone on its line with a blank line below")
        for name, rest, equation in MARK.findall(text):
            found.add(name)
            faults += [f"{page}: {name} has no test"] * (name not in tests)
            faults += [f"{page}: {name} without its pass mark"] * (
                rest != PASS.format(tests.get(name), name)
            )
            faults += [f"{page}: no equation below {name}"] * (not equation)
    return faults + [f"{name} stands on no page" for name in tests if name not in found]


def test_every_mark_has_a_test_and_every_test_a_mark():
    pages = {
        str(p.relative_to(ROOT)): p.read_text() for p in sorted((ROOT / "tutorials").rglob("*.md"))
    }
    tests = formulas(
        {
            p.name: p.read_text()
            for p in sorted(HERE.glob("test_*.py"))
            if p.name != Path(__file__).name
        }
    )
    assert not wrong(pages, tests) and len(tests) >= 65


def test_a_mark_that_is_not_kept_is_found():
    good, a = (
        f"text\n\n<!-- formula a -->{PASS.format('test_x.py', 'a')}\n\n$$x = y$$\n",
        {"a": "test_x.py"},
    )
    assert not wrong({"page": good}, a)
    for page, tests in (
        (good, a | {"b": "test_x.py"}),
        (good, {}),
        (good.replace("$$x = y$$", "text"), a),
        (good.replace("test_a", "test_b"), a),
        (good.replace("\n\n$$", "\n$$"), a),
        (good, {"a": "test_y.py"}),
    ):
        assert len(wrong({"page": page}, tests)) >= 1


def test_names_are_read_off_the_files_and_one_used_twice_fits_no_mark():
    files = {
        "test_x.py": "@mark\ndef test_a(sch):\n    pass\n\n\ndef b():\n    pass\n",
        "test_y.py": "def test_c():",
    }
    assert formulas(files) == {"a": "test_x.py", "c": "test_y.py"}
    twice = formulas({"test_x.py": "def test_a():", "test_y.py": "def test_a():"})
    assert (
        len(wrong({"page": f"<!-- formula a -->{PASS.format('test_x.py', 'a')}\n\n$$x$$"}, twice))
        == 1
    )
