"""A local page on a trained run: type a context, see what comes next and which component says so."""

from highrank.explore.explorer import Adapted, Change, Explorer, View

__all__ = ["Adapted", "Change", "Explorer", "View"]
