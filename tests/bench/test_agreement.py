"""What the order of the methods owes to the way their scores are put together."""

import pytest

from minidiff.bench import agreement


def test_a_mean_forgives_what_a_product_does_not(row):
    parts = {
        "even": dict(T=1, K=0.6, Bn=0.6, Cn=0.2, score=0.6),
        "nothing kept": dict(T=1, K=1.0, Bn=0.0, Cn=1.0, score=0.0),
        "poor": dict(T=1, K=0.2, Bn=0.2, Cn=0.0, score=0.27),
    }
    groups = {name: [row(name, **p)] for name, p in parts.items()}
    assert agreement.mean_score(groups["nothing kept"][0]) == pytest.approx(2 / 3)
    found = agreement.mean_instead(groups)
    assert found["methods"] == 3 and found["rho"] < 1
    assert found["moved"][0] == ("nothing kept", 3, 1)
    assert agreement.mean_instead({"even": groups["even"]}) is None


def test_the_order_of_photographs_is_compared_where_enough_methods_have_both():
    lines = {
        name: {"D": d, "B_pie": b, "Q2": q, "score": b}
        for name, (d, b, q) in agreement.PIE_BENCH.items()
    }
    found = agreement.with_pie_bench(lines)
    same = {what: rho for what, rho in found["rho"].items() if "EditScore" not in what}
    assert len(found["methods"]) == 4 and [*same.values()] == pytest.approx([1, 1, 1])
    assert agreement.with_pie_bench({"masactrl": lines["masactrl"]}) is None
