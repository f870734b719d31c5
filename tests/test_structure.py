"""The house: which room may import which. Arrows run down only."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A room may import itself and those before it. `io` and `techniques` are single files.
ORDER = [
    "io",
    "techniques",
    "core",
    "data",
    "models",
    "samplers",
    "pipe",
    "foundations",
    "train",
    "control",
    "formats",
    "weights",
    "inversion",
    "editing",
    "guidance",
    "restoration",
    "analysis",
    "evaluate",
    "bench",
    "proofs",
    "shipped",
    "learn",
    "cli",
]


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minidiff."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("minidiff.")}
    return found


def test_every_folder_has_its_place_in_the_order():
    rooms = {f.parent.name for f in (ROOT / "minidiff").glob("*/*.py")}
    assert rooms <= set(ORDER)


def test_arrows_run_down_only():
    up = []
    for path in sorted((ROOT / "minidiff").rglob("*.py")):
        parts = path.relative_to(ROOT / "minidiff").with_suffix("").parts
        room = parts[0]
        if room not in ORDER:
            continue  # the package itself and __main__
        for other in imports(path):
            if ORDER.index(other) > ORDER.index(room):
                up.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not up


def test_the_core_imports_no_other_room():
    for path in (ROOT / "minidiff/core").glob("*.py"):
        assert imports(path) <= {"core"}, path
