"""What the tests of inversions share: float64, since they ask how exactly a run is undone."""

import pytest
import torch


@pytest.fixture(scope="session")
def pipe(awake):
    """The tiny model, random weights of which none is zero, in float64. Nobody changes them."""
    return awake("tiny", 0.1).to(dtype=torch.float64)


@pytest.fixture(scope="session")
def image():
    """Two small random pictures, which no test changes."""
    unit = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return unit * 2 - 1
