"""PromQL read into what it asks for: which metrics, under which labels, and which labels it answers with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    MatchOp,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    StringLiteral,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)

#: What Prometheus itself adds to every sample.
TARGET = frozenset(("job", "instance"))


@dataclass(frozen=True)
class Selected:
    """One selector: a metric, and the values that its labels are held against (None: any, or a pattern)."""

    metric: str
    matched: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def labels(self) -> set[str]:
        return {label for label, _ in self.matched}


@dataclass
class Asked:
    """What an expression asks for, and the labels by which it groups (all of them must be there to be grouped by)."""

    selected: list[Selected]
    grouped: list[tuple[set[str], list[str]]]
    #: The labels of the answer, where the expression fixes them.
    answers: set[str] | None


def read(expression: str) -> Asked:
    """Read it. Raises ValueError where it is no PromQL."""
    asked = Asked([], [], None)
    asked.answers = _walk(promql_parser.parse(expression), asked)
    return asked


def _walk(node: object, asked: Asked) -> set[str] | None:
    """Gather what is below; the labels of its result, None where they are those of the metric."""
    match node:
        case VectorSelector():
            asked.selected.append(Selected(node.name or "", tuple(_matched(node))))
        case MatrixSelector():
            return _walk(node.vector_selector, asked)
        case AggregateExpr():
            before = len(asked.selected)
            _walk(node.expr, asked)
            if node.param is not None:
                _walk(node.param, asked)
            labels = set(node.modifier.labels) if node.modifier is not None else set()
            if node.modifier is not None and node.modifier.type != AggModifierType.By:
                raise ValueError("`without` hides which labels are there: group with `by`")
            asked.grouped.append((labels, [each.metric for each in asked.selected[before:]]))
            return labels
        case Call():
            results = [_walk(argument, asked) for argument in node.args]
            fixed = [each for each in results if each is not None]
            if node.func.name == "histogram_quantile" and fixed:
                if "le" not in fixed[0]:
                    raise ValueError("a quantile needs the buckets: group by le")
                return fixed[0] - {"le"}
            return fixed[0] if fixed else None
        case BinaryExpr():
            left, right = _walk(node.lhs, asked), _walk(node.rhs, asked)
            return left if left is not None else right
        case ParenExpr() | UnaryExpr() | SubqueryExpr():
            return _walk(node.expr, asked)
        case NumberLiteral() | StringLiteral():
            return None
        case _:
            raise ValueError(f"what is a {type(node).__name__}?")
    return None


def _matched(node: VectorSelector) -> Iterator[tuple[str, tuple[str, ...]]]:
    for each in node.matchers.matchers:
        values = tuple(each.value.split("|")) if each.op in (MatchOp.Re, MatchOp.NotRe) else (each.value,)
        yield each.name, () if values == (".*",) else values
