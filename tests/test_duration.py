"""A time as it is told: in the largest unit of which there are two."""

import pytest

from highrank.duration import duration


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (172_799, "48.0 h"),
        (172_800, "2.0 days"),
        (1e8, "1,157.4 days"),
    ],
)
def test_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told
