"""Fixtures of the tests of mining."""

from tests.factories.mining import detector, home, source

__all__ = ["detector", "home", "source"]
