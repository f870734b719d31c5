"""What guidances refuse alike."""

import math


def check_strength(name: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    """ValueError unless low <= value <= high and it is a finite number."""
    if not math.isfinite(value) or not low <= value <= high:
        upto = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name}={value}: expected a number of at least {low:g}{upto}")
