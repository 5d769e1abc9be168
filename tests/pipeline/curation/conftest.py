"""Fixtures of the tests of curation."""

from tests.factories.mining import detector, home, source

__all__ = ["detector", "home", "source"]
