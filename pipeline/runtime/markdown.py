"""Tables of Markdown, for documents, reports and the Prefect UI."""

from collections.abc import Iterable


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a table; its cells are markdown."""
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in body]
