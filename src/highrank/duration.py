"""A time as it is told."""

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """In seconds up to two minutes, in minutes up to two hours, then in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
