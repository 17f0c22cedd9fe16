"""A time as it is told."""

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """In seconds up to two minutes, in minutes up to two hours, in hours up to two days, then in days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:,.1f} days"
