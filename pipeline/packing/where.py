"""Conditions on the columns of a source, such as `aesthetic > 5 and punsafe < 0.1`: parsed, never evaluated as code.

The grammar is a part of Python's: names, numbers, texts, True, False, None, lists; < <= > >= == != in, not in; and, or,
not; parentheses. `a.b` is the field b of an object a; a name that is no identifier stands in backticks. A null or
absent value makes a comparison unknown, as in SQL, and an image is kept only when the condition is true. A text that
is a number is compared with numbers as one: the values of csv files are texts.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_LONGEST = 2000
_DEEPEST = 32
_QUOTED = re.compile(r"`([^`]+)`")
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}

Values = Mapping[str, Any]
_Evaluate = Callable[[Values], Any]


class Where:
    """A parsed condition.

    Attributes:
        text: as given.
        columns: the columns that it names, sorted.
    """

    def __init__(self, text: str) -> None:
        """Parse a condition; ValueError that names the part that is not allowed."""
        self.text = text
        self._names: dict[str, str] = {}
        if len(text) > _LONGEST:
            raise ValueError(f"where has {len(text)} characters: more than {_LONGEST} are refused")
        try:
            tree = ast.parse(_QUOTED.sub(self._quoted, text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"where {text!r} cannot be parsed ({error}): write {_EXAMPLE}") from None
        self._columns: set[str] = set()
        self._value = self._parsed(tree, 0)
        if not self._columns:
            raise ValueError(f"where {text!r} names no column: write {_EXAMPLE}")
        self.columns = tuple(sorted(self._columns))

    def __call__(self, values: Values) -> bool:
        """Return whether the condition is true of a row; null and absent values are unknown."""
        return self._value(values) is True

    def _quoted(self, found: re.Match[str]) -> str:
        name = f"_hyco_{len(self._names)}"
        self._names[name] = found[1]
        return name

    def _parsed(self, node: ast.expr, depth: int) -> _Evaluate:
        if depth > _DEEPEST:
            raise ValueError(f"where is nested more than {_DEEPEST} levels deep")
        match node:
            case ast.BoolOp():
                parts = [self._parsed(part, depth + 1) for part in node.values]
                return _all(parts) if isinstance(node.op, ast.And) else _any(parts)
            case ast.UnaryOp(op=ast.Not()):
                inner = self._parsed(node.operand, depth + 1)
                return lambda row: None if (value := inner(row)) is None else not value
            case ast.Compare():
                sides = [self._operand(side) for side in (node.left, *node.comparators)]
                steps = [
                    _comparison(_operator(step), a, b)
                    for step, a, b in zip(node.ops, sides, sides[1:], strict=False)
                ]
                return _all(steps)
            case ast.Name() | ast.Attribute():
                column = self._operand(node)
                return lambda row: None if (value := column(row)) is None else bool(value)
        raise ValueError(f"where: {ast.unparse(node)!r} is no condition: write {_EXAMPLE}")

    def _operand(self, node: ast.expr) -> _Evaluate:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return lambda row, value=node.value: value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return lambda row: -number
            case ast.List() | ast.Tuple():
                inner = [self._operand(item) for item in node.elts]
                return lambda row: [item(row) for item in inner]
            case ast.Name(id=name):
                name = self._names.get(name, name)
                self._columns.add(name)
                return lambda row: row.get(name)
            case ast.Attribute(value=below, attr=field):
                holder = self._operand(below)
                return lambda row: held.get(field) if isinstance(held := holder(row), Mapping) else None
        raise ValueError(
            f"where: {ast.unparse(node)!r} is neither a column nor a value: columns are compared with numbers, texts "
            "and lists, and nothing is called or computed"
        )


_EXAMPLE = "such as 'aesthetic > 5 and punsafe < 0.1'"


def _operator(step: ast.cmpop) -> Callable[[Any, Any], bool]:
    if type(step) not in _COMPARE:
        raise ValueError(
            "where: `is` does not compare values: write == or !=; leave a test of null out, since null is never kept"
        )
    return _COMPARE[type(step)]


def _comparison(compare: Callable[[Any, Any], bool], left: _Evaluate, right: _Evaluate) -> _Evaluate:
    def value(row: Values) -> bool | None:
        a, b = left(row), right(row)
        if a is None or b is None:
            return None
        try:
            return bool(compare(_alike(a, b), _alike(b, a)))
        except TypeError:
            return None

    return value


def _alike(value: Any, other: Any) -> Any:
    """The number in a text that is compared with a number; other values as they are."""
    if isinstance(value, str) and isinstance(other, int | float):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, str) and isinstance(other, list) and any(isinstance(o, int | float) for o in other):
        return _alike(value, 0)
    return value


def _all(parts: list[_Evaluate]) -> _Evaluate:
    def value(row: Values) -> bool | None:
        values = [part(row) for part in parts]
        return False if False in values else None if None in values else True

    return value


def _any(parts: list[_Evaluate]) -> _Evaluate:
    def value(row: Values) -> bool | None:
        values = [part(row) for part in parts]
        return True if True in values else None if None in values else False

    return value
