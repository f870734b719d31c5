"""A perfect oracle, and rows as the bench writes them."""

import pytest

from minidiff.bench import summary
from minidiff.data.attributes import canonical


@pytest.fixture
def told():
    """scene -> what a perfect oracle says of it."""
    return _told


@pytest.fixture
def row():
    """(method, kind, ...) -> one row of scores, all 0 but what is given."""
    return _row


def _told(s):
    s = canonical(s)
    return {
        "objects": [{"shape": o.shape, "color": o.color, "size": o.size} for o in s.objects],
        "position": s.position if s.objects else None,
        "background": s.background,
        "texture": s.texture,
    }


def _row(name="a", kind="move", i=0, k=0, score=0.5, **kw):
    zero = dict.fromkeys(summary.MEANS, 0.0)
    return (
        zero
        | {
            "method": name,
            "inputs": "P",
            "split": "dev",
            "fitted": True,
            "kind": kind,
            "i": i,
            "k": k,
            "cfg": "x",
            "objects": 1 + i % 2,
            "batch": 1,
            "seconds": 1.0,
            "mb": None,
            "score": score,
        }
        | kw
    )
