"""The rule that a test which could run must run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = 'pytest.importorskip("no_such_package")\ndef test_a(): pass'
PLAIN = 'def test_a(): pytest.skip("too slow")'
DATA = 'def test_a(): pytest.skip("a list that is not part of the repository")'
WRONG = "@pytest.mark.xfail\ndef test_a(): assert False"


@pytest.mark.parametrize(
    "body, strict, data_here, passes",
    [
        (PLAIN, False, True, True),
        (PLAIN, True, True, False),
        (MODULE, True, True, False),
        (DATA, True, False, True),
        (DATA, True, True, False),
        (WRONG, True, True, True),
    ],
    ids=[
        "allowed",
        "strict",
        "strict module",
        "strict, no data",
        "strict, data is here",
        "xfail is no skip",
    ],
)
def test_a_skip_is_a_failure_unless_its_reason_is_truly_absent(
    tmp_path, body, strict, data_here, passes
):
    tests = tmp_path / "repository" / "tests"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tests / "test_case.py").write_text(f"import pytest\n{body}")
    if data_here:
        (tmp_path / "shared").mkdir()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(tests),
        *["--no-skips"] * strict,
    ]
    env = {k: v for k, v in os.environ.items() if k != "MINIDIFF_NO_SKIPS"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent, env=env)
    assert (done.returncode == 0) is passes, done.stdout
    assert passes or "--no-skips is on" in done.stdout
