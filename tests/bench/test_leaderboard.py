"""The tables and the page, from rows alone."""

import json

import pytest

from minidiff.bench import leaderboard


def test_a_scene_whose_truth_is_misread_grades_nobody(row, tmp_path):
    rows = [
        row(n, i=i, score=1 - i, T=1 - (n == "truth" and i == 1), K=1.0, B=50.0, C=50.0)
        for n in ("a", "truth")
        for i in range(2)
    ]
    facts = leaderboard.write(rows, tmp_path, split="dev")
    assert facts["unfit"] == [("move", 1)] and [m["score"] for m in facts["methods"]] == [1, 1]
    # half of the truths misread
    assert "move 1" in (tmp_path / "leaderboard.md").read_text() and not facts["passed"]


def test_the_cost_of_a_wrong_word_is_measured_on_the_same_scenes_and_stands_apart(row, tmp_path):
    scores = {"a": 0.5, "a+misread": 0.3, "b+misread": 0.9}
    rows = [row(n, i=i, score=score + 0.1 * i) for n, score in scores.items() for i in (0, 1)]
    facts = leaderboard.write(rows, tmp_path, split="dev")
    assert facts["misread"].keys() == {"a+misread"}  # b never ran with the right caption
    assert facts["misread"]["a+misread"]["difference"] == pytest.approx((-0.2, -0.2, -0.2))
    assert [m["method"] for m in facts["methods"]] == ["b+misread", "a"]
    assert facts["winners"]["told the target prompt alone"]["move"]["best"] == "a"
    assert "one wrong word" in (tmp_path / "leaderboard.md").read_text()


def test_a_page_keeps_its_text_around_the_leaderboard(row, tmp_path):
    rows, page = [row(i=i) for i in range(3)], tmp_path / "page.md"
    page.write_text("before\n<!-- leaderboard -->\nyesterday\n<!-- end -->\nafter\n")
    facts = leaderboard.write(rows, tmp_path, split="dev", page=page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "yesterday" not in text
    assert text.count("| a | P | 3 |") == 1
    assert (
        json.loads((tmp_path / "bench.json").read_text())["methods"][0]["score"]
        == pytest.approx(0.5)
        and facts["passed"]
    )
    with pytest.raises(ValueError, match="no results of split 'test'"):
        leaderboard.write(rows, tmp_path, split="test")


def test_the_hard_split_has_files_and_a_block_of_its_own(row, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- leaderboard -->\nplain\n<!-- end -->\n<!-- leaderboard hard -->\nyesterday\n<!-- end -->\n"
    )
    rows = []
    for i in range(8):
        rows.append(row(i=i, split="test", score=0.75))
        rows.append(row(i=i, split="hard", score=0.5 + 0.01 * (i % 2), Nn=0.25))
    facts = leaderboard.write(rows, tmp_path, split="hard", page=page)
    fallen = facts["methods"][0]["fall"]
    assert fallen["scenes"] == 8 and fallen["means"] == pytest.approx((0.75, 0.505))
    mean, low, high = fallen["all"]
    assert low < 0.245 < high and mean == pytest.approx(0.245)
    text = page.read_text()
    assert "plain" in text and "yesterday" not in text and "falls by" in text
    assert (tmp_path / "bench_hard.json").exists() and not (tmp_path / "bench.json").exists()
    assert "fall" not in leaderboard.write(rows, tmp_path, split="test")["methods"][0]
    page.write_text("<!-- leaderboard -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="no block between <!-- leaderboard hard -->"):
        leaderboard.write(rows, tmp_path, split="hard", page=page)


def test_what_was_refused_and_what_was_never_fitted_is_noted():
    s = {"fitted": False, "refused": 2, "rows": 4}
    assert leaderboard.note(s) == " (not fitted, refused 2 of 4)"


def test_tables_are_by_task_with_the_gap_to_the_control_and_the_best_per_kind(row, tmp_path):
    rows = []
    for i in range(8):
        rows += [
            row("a", i=i, score=0.5 + 0.01 * i, inputs="PS"),
            row("a@per_kind", i=i, score=0.75, inputs="PS"),
            row("b", i=i, score=0.3, inputs="PM"),
            row("inverted", i=i, score=0.25 + 0.01 * i, inputs="PS"),
        ]
    facts = leaderboard.write(rows, tmp_path, split="dev")
    by = {s["method"]: s for s in facts["methods"]}
    assert by.keys() == {"a", "b", "inverted"} and by["a"]["per_kind"] == 0.75
    assert by["a"]["against"]["all"] == pytest.approx((0.25, 0.25, 0.25))
    text = (tmp_path / "leaderboard.md").read_text()
    tasks = ["**Told both prompts**", "**Told the exact mask**", "**Controls**"]
    places = [text.index(task) for task in tasks]
    assert places == sorted(places) and "+0.250 (+0.250 to +0.250)" in text
    assert (tmp_path / "matrix.png").exists() and "a,b,8," in (tmp_path / "matrix.csv").read_text()
