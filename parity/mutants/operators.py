"""Mutation operators: every small change of a source file that is worth trying.

A mutant is one change of one place in the syntax tree. What is changed is what
computes. Left as it is, by rule, because it decides what is refused or said and not
what comes out:

- annotations, docstrings, imports, decorators, and everything inside ``raise``;
- guards: an ``if`` whose body only raises, functions and statements named
  ``check_…``, loops over nothing else, ``strict`` of a zip, and ``np.errstate``;
- text, except where it is compared, and ``None``, except as an added axis.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

OPERATORS = {
    "operator": "another arithmetic or logical operator",
    "term": "a term, factor or exponent dropped",
    "swap": "operands exchanged",
    "sign": "a sign flipped",
    "constant": "another number, text or truth value",
    "comparison": "the edge of a comparison moved, or the comparison reversed",
    "condition": "a branch taken when it should not be",
    "statement": "a statement dropped",
    "return": "something dropped from what is returned",
    "argument": "an argument dropped, as axis, keepdims or a mask source",
    "function": "another function of the same kind",
    "transpose": "a transposition dropped, or its axes exchanged",
    "slice": "the bound of a slice moved or dropped, or an added axis dropped",
    "loop": "a loop cut short, or run in another order",
}

Node = TypeVar("Node", bound=ast.AST)

_Binary = dict[type[ast.operator], type[ast.operator]]
_OTHER_OPERATOR: _Binary = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.LShift: ast.RShift,
    ast.BitAnd: ast.BitOr,
}
_COMMUTATIVE = (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)
_COMMUTATIVE_CALLS = frozenset(
    ("add", "multiply", "maximum", "minimum", "vdot", "vecdot", "clip")
)

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}

# Of modules and of arrays: what could be typed in place of what.
_OTHER_FUNCTION = {
    "exp": "expm1",
    "exp2": "exp",
    "expm1": "exp",
    "log": "log1p",
    "log2": "log",
    "sqrt": "square",
    "tanh": "arctan",
    "sin": "cos",
    "cos": "sin",
    "abs": "negative",
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "sum": "mean",
    "mean": "sum",
    "all": "any",
    "any": "all",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "subtract": "add",
    "add": "subtract",
    "multiply": "divide",
    "divide": "multiply",
    "stack": "concatenate",
    "vecdot": "vdot",
    "prod": "sum",
}
_OTHER_OF_MATH = {"sqrt": "exp", "log2": "log", "cos": "sin", "prod": "fsum"}
# Functions of one array that a defect leaves out.
_UNARY = frozenset(
    ("exp", "exp2", "log", "sqrt", "tanh", "sin", "cos", "abs", "copy", "astype")
)
_FREE = frozenset(("column_sum", "row_mean", "reversed", "list", "softmax"))


@dataclass(frozen=True)
class Mutant:
    """One change of one source file.

    Attributes
    ----------
    file : str
        Path below the package, with slashes: 'layers/linear.py'.
    function : str
        Dotted name of the function or class around it; '' at the top of the file.
    text : str
        The source line on which it begins, without indentation.
    operator : str
        One of `OPERATORS`.
    before, after : str
        What is replaced, and by what.
    occurrence : int
        Which of several equal ones in this function, from 0.
    line : int
        Number of that line; no part of the identity, as it moves.
    lines : frozenset of int
        Lines of the file of which a case must run one to see it: those of the
        statement, of the function whose default it is, or those that use a constant.
        Where there are none, it is used in other files.
    local : bool
        Whether it is inside a function, and runs when that is called.
    site, variant : int
        Where the change is found again in the tree.
    """

    file: str
    function: str
    text: str
    operator: str
    before: str
    after: str
    occurrence: int
    line: int
    lines: frozenset[int]
    local: bool
    site: int
    variant: int

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What identifies the mutant as long as its own line stays as it is."""
        return (
            self.file,
            self.function,
            self.text,
            self.before,
            self.after,
            self.occurrence,
        )

    def __str__(self) -> str:
        where = f"{self.file}:{self.line} {self.function}".rstrip()
        return f"{where}: {self.before}  →  {self.after or 'nothing'}"


@dataclass(frozen=True)
class _Site:
    """A node that may be replaced, and where it hangs."""

    node: ast.AST
    replace: Callable[[ast.AST], None]
    parent: ast.AST
    function: str
    local: bool
    lines: frozenset[int]


def mutants(source: str, file: str) -> list[Mutant]:
    """Return every mutant of a source file, in the order of the file.

    Parameters
    ----------
    source : str
    file : str
        Its path, for the record.
    """
    lines = source.splitlines()
    found: list[Mutant] = []
    seen: dict[tuple[str, str, str, str], int] = {}
    for number, site in enumerate(_sites(ast.parse(source))):
        before = _text(site.node)
        for variant, (operator, node) in enumerate(_variants(site)):
            after = _text(node)
            line = getattr(site.node, "lineno", 0) or min(site.lines)
            text = lines[line - 1].strip()
            identity = (site.function, text, before, after)
            occurrence = seen.get(identity, 0)
            seen[identity] = occurrence + 1
            found.append(
                Mutant(
                    file=file,
                    function=site.function,
                    text=text,
                    operator=operator,
                    before=before,
                    after=after,
                    occurrence=occurrence,
                    line=line,
                    lines=site.lines,
                    local=site.local,
                    site=number,
                    variant=variant,
                )
            )
    return found


def mutate(source: str, mutant: Mutant) -> ast.Module:
    """Return the syntax tree of a file with the one change made."""
    tree = ast.parse(source)
    for number, site in enumerate(_sites(tree)):
        if number == mutant.site:
            _, node = list(_variants(site))[mutant.variant]
            site.replace(ast.copy_location(node, site.node))
            return ast.fix_missing_locations(tree)
    raise ValueError(f"the file has no place for this mutant any more: {mutant}")


def function_lines(source: str) -> frozenset[int]:
    """Return the lines of a file that are inside a function, and run when it does."""
    return frozenset(
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        for line in _span(node.body[0].lineno, node.end_lineno)
    )


def _text(node: ast.AST) -> str:
    """Return the code of a node on one line, shortened."""
    if isinstance(node, ast.Pass):
        return ""
    if isinstance(node, ast.If | ast.While):
        node = node.test
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 160 else f"{text[:157]}..."


# --- where ----------------------------------------------------------------------------


def _sites(tree: ast.Module) -> Iterator[_Site]:
    for index, statement in enumerate(tree.body):
        uses = _uses(tree, statement)
        yield from _statement(statement, tree, tree.body, index, "", uses)


def _uses(tree: ast.Module, statement: ast.stmt) -> frozenset[int]:
    """Return the lines that use what a statement at the top of a file assigns.

    Those that assign from it at the top are followed, as they run at import.
    """
    names = _assigned(statement)
    lines: set[int] = set()
    for other in tree.body:
        used = {
            node.lineno
            for node in ast.walk(other)
            if isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load)
            and node.id in names
        }
        if used and _assigned(other):
            lines |= _uses(tree, other)
        lines |= used
    return frozenset(lines)


def _assigned(statement: ast.stmt) -> set[str]:
    """Return the names that a statement at the top of a file assigns."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return set()
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _statement(
    node: ast.stmt,
    parent: ast.AST,
    siblings: list[ast.stmt],
    index: int,
    function: str,
    outside: frozenset[int],
    *,
    local: bool = False,
) -> Iterator[_Site]:
    if _says_or_refuses(node):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        if node.name.lstrip("_").startswith("check_"):
            return
        name = f"{function}.{node.name}".lstrip(".")
        inside = isinstance(node, ast.FunctionDef)
        lines = _span(node.body[0].lineno, node.end_lineno)
        if isinstance(node, ast.FunctionDef):
            for defaults in (node.args.defaults, node.args.kw_defaults):
                yield from _expressions(defaults, node, name, lines, local=False)
        for i, child in enumerate(node.body):
            yield from _statement(child, node, node.body, i, name, lines, local=inside)
        return
    if not local and isinstance(node, ast.Assign | ast.AnnAssign) and _is_type(node):
        return
    bodies: list[list[ast.stmt]] = [
        body
        for name in ("body", "orelse", "finalbody")
        if (body := getattr(node, name, None))
    ]
    last = bodies[0][0].lineno - 1 if bodies else node.end_lineno
    span = _span(node.lineno, last) if local else outside

    def replace(new: ast.AST) -> None:
        siblings[index] = new  # type: ignore[call-overload]

    yield _Site(node, replace, parent, function, local, span)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "body", "orelse", "finalbody", "handlers"):
            continue
        if name == "target" and isinstance(value, ast.Name):
            continue
        if isinstance(value, list):
            yield from _expressions(value, node, function, span, local=local)
        elif isinstance(value, ast.expr):
            yield from _expression(
                value, node, _setter(node, name), function, span, local=local
            )
    for statements in bodies:
        for i, child in enumerate(statements):
            yield from _statement(
                child, node, statements, i, function, outside, local=local
            )


def _expressions(
    values: list[Any],
    parent: ast.AST,
    function: str,
    span: frozenset[int],
    *,
    local: bool,
) -> Iterator[_Site]:
    for i, value in enumerate(values):
        if isinstance(value, ast.AST):
            replace = _item_setter(values, i)
            yield from _expression(value, parent, replace, function, span, local=local)


def _expression(
    node: ast.AST,
    parent: ast.AST,
    replace: Callable[[ast.AST], None],
    function: str,
    span: frozenset[int],
    *,
    local: bool,
) -> Iterator[_Site]:
    if isinstance(node, ast.Lambda | ast.JoinedStr) or _refuses_or_warns(node):
        return
    yield _Site(node, replace, parent, function, local, span)
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
    if negative or (isinstance(node, ast.Call) and _is_transpose(node)):
        # The number is changed with its sign, the axes with their call.
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            setter = _setter(node.func, "value")
            yield from _expression(
                value, node.func, setter, function, span, local=local
            )
        return
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            yield from _expressions(value, node, function, span, local=local)
        elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
            yield from _expression(
                value, node, _setter(node, name), function, span, local=local
            )


def _span(first: int, last: int | None) -> frozenset[int]:
    return frozenset(range(first, max(first, last or first) + 1))


def _setter(node: ast.AST, name: str) -> Callable[[ast.AST], None]:
    return lambda new: setattr(node, name, new)


def _item_setter(values: list[Any], i: int) -> Callable[[ast.AST], None]:
    def replace(new: ast.AST) -> None:
        values[i] = new

    return replace


def _says_or_refuses(node: ast.stmt) -> bool:
    """Tell whether a statement computes nothing: a docstring, an import, a guard."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.Global):
        return True
    if isinstance(node, ast.Expr):
        call = node.value
        if isinstance(call, ast.Constant):
            return True
        if isinstance(call, ast.Call) and isinstance(
            call.func, ast.Name | ast.Attribute
        ):
            name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
            return name.lstrip("_").startswith("check_")
    if isinstance(node, ast.For):
        return all(map(_says_or_refuses, node.body))
    if isinstance(node, ast.If):
        raises = all(isinstance(child, ast.Raise) for child in node.body[-1:])
        return raises and not node.orelse
    return False


def _is_type(node: ast.Assign | ast.AnnAssign) -> bool:
    """Tell whether an assignment names a type, not a number or a table of them."""
    return node.value is None or not any(
        isinstance(n, ast.Constant) and isinstance(n.value, int | float)
        for n in ast.walk(node.value)
    )


def _refuses_or_warns(node: ast.AST) -> bool:
    """Tell whether a node only says what is refused, or warned of."""
    if isinstance(node, ast.Call) and _called(node) == ("np", "errstate"):
        return True
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _is_transpose(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr in (
        "transpose",
        "swapaxes",
    )


def _is_reshape(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "reshape"
    )


# --- what -----------------------------------------------------------------------------

_Variants = Iterator[tuple[str, ast.AST]]


def _variants(site: _Site) -> _Variants:
    node = site.node
    match node:
        case ast.BinOp():
            yield from _binary(node)
        case ast.AugAssign():
            if other := _OTHER_OPERATOR.get(type(node.op)):
                yield "operator", _with(node, op=other())
            yield "statement", ast.Pass()
        case ast.UnaryOp():
            yield from _unary(site, node)
        case ast.Constant():
            yield from _constant(site, node)
        case ast.Compare(ops=[op]):
            for comparison in _COMPARISONS[type(op)]:
                yield "comparison", _with(node, ops=[comparison()])
        case ast.BoolOp():
            other_bool = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield "condition", _with(node, op=other_bool())
        case ast.If() | ast.While():
            yield "condition", _with(node, test=_not(node.test))
        case ast.IfExp():
            yield "condition", _with(node, body=node.orelse, orelse=node.body)
        case ast.For():
            yield "loop", _with(node, body=[*node.body, ast.Break()])
        case ast.Expr(value=ast.Call()):
            yield "statement", ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield "statement", ast.Pass()
        case ast.Return(value=ast.expr() as value):
            yield from _return(node, value)
        case ast.Dict():
            yield from _dict(site, node)
        case ast.Call():
            yield from _call(site, node)
        case ast.Attribute(attr="T"):
            yield "transpose", node.value
        case ast.Subscript() if _adds_axis(node) and isinstance(node.ctx, ast.Load):
            yield "slice", node.value
        case ast.Slice():
            yield from _slice(node)


def _binary(node: ast.BinOp) -> _Variants:
    op = type(node.op)
    if other := _OTHER_OPERATOR.get(op):
        yield "operator", _with(node, op=other())
    if op is not ast.MatMult:
        yield "term", node.left
    if op in (ast.Add, ast.Mult, ast.BitOr, ast.BitAnd):
        yield "term", node.right
    elif op is ast.Sub:
        yield "term", ast.UnaryOp(ast.USub(), node.right)
    if op not in _COMMUTATIVE and not _same(node.left, node.right):
        yield "swap", _with(node, left=node.right, right=node.left)


def _unary(site: _Site, node: ast.UnaryOp) -> _Variants:
    if isinstance(node.op, ast.USub):
        yield "sign", node.operand
        if isinstance(node.operand, ast.Constant):
            value = node.operand.value
            # To reshape, any negative number means the same.
            if isinstance(value, int) and not _is_reshape(site.parent):
                yield "constant", ast.UnaryOp(ast.USub(), ast.Constant(value + 1))
            elif isinstance(value, float):
                yield "constant", ast.UnaryOp(ast.USub(), ast.Constant(_scaled(value)))
    elif isinstance(node.op, ast.Not):
        yield "condition", node.operand


def _constant(site: _Site, node: ast.Constant) -> _Variants:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield "constant", ast.Constant(value + 1)
        yield "constant", ast.Constant(value - 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(_scaled(value))
        if not isinstance(site.parent, ast.arguments | ast.FunctionDef):
            yield "sign", ast.Constant(-value if value else -1.0)
    elif isinstance(value, str) and isinstance(site.parent, ast.Compare):
        yield "constant", ast.Constant(f"{value}_")


def _scaled(value: float) -> float:
    """Return another number near this one: a tenth larger, or 1 for 0."""
    return float(f"{value * 1.1:.15g}") if value else 1.0


def _return(node: ast.Return, value: ast.expr) -> _Variants:
    numeric = (ast.Name, ast.BinOp, ast.Call, ast.Subscript, ast.Attribute)
    if isinstance(value, ast.Tuple) and isinstance(value.elts[0], numeric):
        first = ast.UnaryOp(ast.USub(), value.elts[0])
        elts = [first, *value.elts[1:]]
        yield "sign", ast.Return(ast.Tuple(elts, ast.Load()))
    elif isinstance(value, numeric):
        yield "sign", ast.Return(ast.UnaryOp(ast.USub(), value))


def _dict(site: _Site, node: ast.Dict) -> _Variants:
    for i in range(len(node.keys)):
        yield (
            "return" if isinstance(site.parent, ast.Return | ast.Tuple) else "term",
            _with(
                node,
                keys=node.keys[:i] + node.keys[i + 1 :],
                values=node.values[:i] + node.values[i + 1 :],
            ),
        )


def _call(site: _Site, node: ast.Call) -> _Variants:
    if _is_transpose(node):
        yield from _transpose(node)
        return
    owner, name = _called(node)
    args = node.args
    if len(args) >= 2 and owner == "np" and name not in _COMMUTATIVE_CALLS:
        yield "swap", _with(node, args=[args[1], args[0], *args[2:]])
    droppable = owner == "np" or name.islower()
    if droppable and len(args) > 1 and not isinstance(args[-1], ast.Starred):
        yield "argument", _with(node, args=args[:-1])
    for i, keyword in enumerate(node.keywords):
        if keyword.arg == "strict":
            continue
        keywords = node.keywords[:i] + node.keywords[i + 1 :]
        yield "argument", _with(node, keywords=keywords)
    others = _OTHER_OF_MATH if owner == "math" else _OTHER_FUNCTION
    if owner and (other := others.get(name)):
        func = _with(node.func, attr=other)
        yield "function", _with(node, func=func)
    written = any(keyword.arg == "out" for keyword in node.keywords)
    if owner == "np" and name in _UNARY and args and not written:
        yield "function", args[0]
    elif owner == "" and name in _FREE and len(args) == 1:
        yield "loop" if name in ("reversed", "list") else "function", args[0]
    elif name in ("copy", "astype") and isinstance(node.func, ast.Attribute):
        yield "function", node.func.value
    if name == "range" and len(args) == 1:
        fewer = ast.BinOp(args[0], ast.Sub(), ast.Constant(1))
        yield "loop", _with(node, args=[fewer])
        yield "loop", _with(node, args=[ast.Constant(1), args[0]])


def _called(node: ast.Call) -> tuple[str, str]:
    """Return owner and name of what is called: ('np', 'exp'), ('', 'len')."""
    match node.func:
        case ast.Attribute(value=ast.Name(id="np" | "math" as owner), attr=name):
            return owner, name
        case ast.Attribute(attr=name):
            return ".", name
        case ast.Name(id=name):
            return "", name
    return "", ""


def _transpose(node: ast.Call) -> _Variants:
    if not isinstance(node.func, ast.Attribute):
        return
    yield "transpose", node.func.value
    if node.func.attr == "transpose":
        for i in range(len(node.args) - 1):
            args = list(node.args)
            args[i], args[i + 1] = args[i + 1], args[i]
            yield "transpose", _with(node, args=args)


def _slice(node: ast.Slice) -> _Variants:
    for name in ("lower", "upper", "step"):
        bound = getattr(node, name)
        if bound is None:
            continue
        yield "slice", _with(node, **{name: None})
        if not isinstance(bound, ast.Constant | ast.UnaryOp):
            moved = ast.BinOp(bound, ast.Add(), ast.Constant(1))
            yield "slice", _with(node, **{name: moved})


def _adds_axis(node: ast.Subscript) -> bool:
    index = node.slice
    elements = index.elts if isinstance(index, ast.Tuple) else [index]
    return any(isinstance(e, ast.Constant) and e.value is None for e in elements)


def _not(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _same(left: ast.AST, right: ast.AST) -> bool:
    return ast.dump(left) == ast.dump(right)


def _with(node: Node, **fields: object) -> Node:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
