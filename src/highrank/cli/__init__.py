"""Argument parsing and printing; the work is done below."""
