"""Filter expressions over named fields, as `motion > 2 and not blurred`: a small part of Python, read but never run."""

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokvid.errors import UserError, did_you_mean

Row = Mapping[str, Any]
Part = Callable[[Row], Any]

LONGEST = 2000  # characters
COMPARED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda part, whole: part in whole,
    ast.NotIn: lambda part, whole: part not in whole,
}
COMPUTED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
ALLOWED = "fields, numbers, 'texts', and, or, not, < <= > >= == !=, in, + - * / and brackets are allowed"


def filter_of(expression: str, fields: Iterable[str]) -> Callable[[Row], bool]:
    """The test that an expression describes. UserError for one that isn't allowed, and where a row doesn't fit it."""
    shown = f"the filter {expression!r:.200}"
    if len(expression) > LONGEST:
        raise UserError(f"{shown} has {len(expression)} characters; at most {LONGEST} are allowed")
    try:
        test = _built(ast.parse(expression.strip(), mode="eval").body, tuple(fields))
    except UserError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"cannot read {shown}: {error}; {ALLOWED}") from error

    def passes(row: Row) -> bool:
        try:
            return bool(test(row))
        except (TypeError, ArithmeticError) as error:
            raise UserError(f"{shown} cannot be computed: {error}; compare numbers with numbers") from error

    return passes


def _built(node: ast.expr, fields: tuple[str, ...]) -> Part:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return lambda row: value
        case ast.Name(id=name):
            if name not in fields:
                raise UserError(did_you_mean(name, fields, "field"))
            return lambda row: row[name]
        case ast.BoolOp(op=op, values=values):
            parts = [_built(value, fields) for value in values]
            joined = all if isinstance(op, ast.And) else any
            return lambda row: joined(part(row) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _built(operand, fields)
            return lambda row: not inner(row)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _built(operand, fields)
            return lambda row: -_number(inner(row))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in COMPUTED:
            first, second, computed = _built(left, fields), _built(right, fields), COMPUTED[type(op)]
            return lambda row: computed(_number(first(row)), _number(second(row)))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in COMPARED for op in ops):
            terms, compared = [_built(term, fields) for term in (left, *others)], [COMPARED[type(op)] for op in ops]
            return lambda row: all(
                compare(terms[index](row), terms[index + 1](row)) for index, compare in enumerate(compared)
            )
    raise ValueError(f"{ast.unparse(node)!r:.60} isn't allowed")


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):  # a text times a number could fill the memory
        raise TypeError(f"{value!r:.60} is no number")
    return value
