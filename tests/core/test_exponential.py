import math

import pytest

from minidiff.core.exponential import check_order, exponential_weights, phi, step_orders


def integral(f, z, n=2000):
    """int_0^1 e^((1 - u) z) f(u) du by Simpson's rule."""
    total = 0.0
    for i in range(n + 1):
        u = i / n
        weight = 1 if i in (0, n) else 4 if i % 2 else 2
        total += weight * math.exp((1 - u) * z) * f(u)
    return total / (3 * n)


@pytest.mark.parametrize("z", [-30.0, -1.5, -0.3, -1e-3, 0.0, 1e-6, 0.7, 2.0, 9.0])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_is_its_integral(k, z):
    want = integral(lambda u: u ** (k - 1) / math.factorial(k - 1), z)
    assert phi(k, z) == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_series_and_the_recursion_meet(k):
    for z in (-1.0, 1.0):
        assert phi(k, z) == pytest.approx(phi(k, z * (1 + 1e-13)), rel=1e-11)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, -1.3], [0.0, -0.8, -2.0], [0.0, -0.8, -2.0, 1.0]])
@pytest.mark.parametrize("z", [-2.0, -0.1, 0.5])
def test_the_weights_integrate_every_polynomial_that_the_nodes_can_tell(nodes, z):
    weights = exponential_weights(nodes, z)
    for power in range(len(nodes)):
        got = sum(w * node**power for w, node in zip(weights, nodes))
        assert got == pytest.approx(integral(lambda u, k=power: u**k, z), rel=1e-9)


def test_orders_rise_at_first_and_fall_towards_clean_alone():
    assert step_orders(3, [9, 7, 5, 3, 1, 0]) == [1, 2, 3, 2, 1]
    assert step_orders(3, [9, 7, 5, 3, 1]) == [1, 2, 3, 3]
    assert step_orders(2, [9, 0]) == [1]
    assert step_orders(3, [9, 5, 0]) == [1, 1]


def test_public_code_lowers_the_end_of_short_grids_alone():
    short, long = [*range(14, -1, -1)], [*range(15, -1, -1)]
    assert step_orders(3, short, literal=True)[-3:] == [3, 2, 1]
    assert step_orders(3, long, literal=True)[-3:] == [3, 3, 1]
    assert step_orders(3, [t + 1 for t in short], literal=True)[-3:] == [3, 2, 1]
    assert step_orders(3, [t + 1 for t in long], literal=True)[-3:] == [3, 3, 3]


def test_an_order_that_there_is_not_is_refused():
    check_order(2, (1, 2, 3))
    with pytest.raises(ValueError, match="order=4 is unknown; choose one of 1, 2, 3"):
        check_order(4, (1, 2, 3))
