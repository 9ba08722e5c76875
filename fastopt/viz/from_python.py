"""The Python text of the scalars' formulas as JavaScript: the few forms that they are written in.

A formula (``Formula._scalars`` and what stands beside it) is a function of options, lr, t, guard.
All numbers are plain floats here, so that what formulas do with arrays (one number for each member)
is left out: ``type(x) is float`` is true. What a formula calls is translated too, unless it is one
of ``FUNCTIONS``. Whatever is not known here is refused, by the function's name and the text.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import math
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from fastopt.core import hyperparameters
from fastopt.optimizers import common
from fastopt.optimizers.schedule_free import ScheduleFree
from fastopt.viz.from_cuda import RESERVED

Function = Callable[..., Any]

FUNCTIONS: dict[Any, str] = {
    math.sqrt: "Math.sqrt",
    math.expm1: "Math.expm1",
    math.log: "Math.log",
    pow: "Math.pow",
    bool: "Boolean",
    float: "Number",
    max: "larger",
    min: "smaller",
    hyperparameters.together: "together",
    hyperparameters.learning_rate: "learning_rate",
    common._power: "power_of",
    common._one_minus_risen: "one_minus_risen_of",
    ScheduleFree._warmed_up: "warmed_up",
}
"""Functions that JavaScript or ``rules.js`` has, and their names there."""

_TAKES = {max: 2, min: 2, pow: 2, bool: 1, float: 1}
"""How many arguments those take whose Python takes others too."""

_TAKEN = RESERVED | {"Object", *(name.partition(".")[0] for name in FUNCTIONS.values())}
"""Names that mean something in JavaScript, so that they are no variable's."""

_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "===",
    ast.NotEq: "!==",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


class Functions:
    """JavaScript functions that compute what Python functions do, of plain numbers.

    ``texts`` has each once, by its name, those that it calls before it.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._names: dict[Function, str] = dict(FUNCTIONS)

    def name_of(self, function: Function, name: str, owner: str) -> str:
        """Return the name of a function in JavaScript, where it is translated if it is not yet.

        Args:
            function: the Python function.
            name: what to call it if it has no name there yet.
            owner: whose function it is, for errors, such as "Adam._scalars".

        Raises:
            ValueError: for whatever is not known to mean the same in both languages; it names the
                owner and the text.
        """
        known = self._names.get(function)
        if known is None:
            if name in self.texts or name in self._names.values() or name in RESERVED:
                raise ValueError(f"{owner}: there is another {name} in JavaScript; rename one")
            known = self._names[function] = name
            text = _Writer(owner, function, self).function()
            self.texts[name] = text
        return known


class _Writer:
    """Writes the JavaScript of one function."""

    def __init__(self, owner: str, function: Function, functions: Functions) -> None:
        self._owner = owner
        self._functions = functions
        self._outside: dict[str, Any] = getattr(function, "__globals__", {})
        text = textwrap.dedent(inspect.getsource(function))
        (tree,) = ast.parse(text).body
        if not isinstance(tree, ast.FunctionDef) or not _plain(tree.args):
            self._refuse(tree)
        if any(ast.unparse(one) != "staticmethod" for one in tree.decorator_list):
            self._refuse(tree.decorator_list[0])
        self._tree = tree
        self._names = {argument.arg for argument in tree.args.args}

    def function(self) -> str:
        """Return the whole."""
        arguments = ", ".join(argument.arg for argument in self._tree.args.args)
        inside = {
            node.id
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        of_comprehensions = {
            node.id
            for one in ast.walk(self._tree)
            if isinstance(one, ast.comprehension)
            for node in ast.walk(one.target)
            if isinstance(node, ast.Name)
        }
        declared = sorted(inside - of_comprehensions - self._names)
        self._names |= inside
        if wrong := self._names & _TAKEN:
            self._refuse(self._tree, f"the name {sorted(wrong)[0]!r}")
        lines = [f"  let {', '.join(declared)};"] if declared else []
        lines += self._block(self._tree.body, "  ")
        return "\n".join([f"({arguments}) => {{", *lines, "}"])

    def _refuse(self, node: ast.AST, what: str = "") -> NoReturn:
        raise ValueError(
            f"{self._owner}: its Python has {what or ast.unparse(node)!r:.200}, which is not "
            "translated to JavaScript; write it in the way other optimizers do, or add it to "
            "fastopt/viz/from_python.py"
        )

    def _block(self, statements: list[ast.stmt], indent: str) -> list[str]:
        """Return the lines of statements, up to the one after which none is reached."""
        lines: list[str] = []
        for statement in statements:
            known = self._known(statement.test) if isinstance(statement, ast.If) else None
            if known is None or not isinstance(statement, ast.If):
                lines += self._statement(statement, indent)
                continue
            taken = statement.body if known else statement.orelse
            lines += self._block(taken, indent)
            if taken and isinstance(taken[-1], ast.Return):
                break
        return lines

    def _known(self, test: ast.expr) -> bool | None:
        """Return what ``type(x) is float``, or ``is not``, comes to; None for other tests."""
        match test:
            case ast.Compare(
                left=ast.Call(func=ast.Name(id="type"), args=[ast.Name()]),
                ops=[ast.Is() | ast.IsNot() as op],
                comparators=[ast.Name(id="float")],
            ):
                return isinstance(op, ast.Is)
        return None

    def _statement(self, node: ast.stmt, indent: str) -> list[str]:
        match node:
            case ast.Expr(value=ast.Constant(value=str())):  # the docstring
                return []
            case ast.Assign(targets=[ast.Name() as name], value=value):
                return [f"{indent}{name.id} = {self._values(value)};"]
            case ast.AnnAssign(target=ast.Name() as name, value=ast.expr() as value):
                return [f"{indent}{name.id} = {self._values(value)};"]
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                names = ", ".join(self._target(one) for one in targets)
                return [f"{indent}[{names}] = {self._values(value)};"]
            case ast.If(test=test, body=body, orelse=orelse):
                lines = [f"{indent}if ({self._value(test)}) {{"]
                lines += self._block(body, indent + "  ")
                if orelse:
                    lines += [f"{indent}}} else {{", *self._block(orelse, indent + "  ")]
                return [*lines, f"{indent}}}"]
            case ast.Return(value=ast.expr() as value):
                return [f"{indent}return {self._values(value)};"]
        self._refuse(node)

    def _target(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name):
            self._refuse(node)
        return node.id

    def _values(self, node: ast.expr) -> str:
        """Return a value, or several of them: a tuple as an array."""
        match node:
            case ast.Tuple(elts=elements):
                return f"[{', '.join(map(self._value, elements))}]"
            case ast.IfExp():
                return self._choice(node, self._values)
        return self._value(node)

    def _value(self, node: ast.expr) -> str:
        """Return an expression, in brackets wherever there can be a doubt."""
        match node:
            case ast.Constant(value=bool() as truth):
                return "true" if truth else "false"
            case ast.Constant(value=int() | float() as number):
                return repr(number)
            case ast.Name(id=name) if name in self._names:
                return name
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return f"({self._value(left)} {_OPERATORS[type(op)]} {self._value(right)})"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"(-{self._value(operand)})"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return f"(!{self._value(operand)})"
            case ast.BoolOp(op=op, values=values):
                sign = " && " if isinstance(op, ast.And) else " || "
                return f"({sign.join(map(self._value, values))})"
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                return f"({self._value(left)} {_COMPARISONS[type(op)]} {self._value(right)})"
            case ast.IfExp():
                return self._choice(node, self._value)
            case ast.Subscript(value=value, slice=ast.Constant(value=str() | int() as key)):
                return f"{self._value(value)}[{json.dumps(key)}]"
            case ast.Dict(keys=keys, values=values):
                return self._dict(keys, values)
            case ast.Lambda(args=arguments, body=body) if _plain(arguments):
                return self._lambda([one.arg for one in arguments.args], body)
            case ast.DictComp():
                return self._numbered(node)
            case ast.Name() | ast.Attribute() | ast.Call():
                return self._from_outside(node)
        self._refuse(node)

    def _choice(self, node: ast.IfExp, part: Callable[[ast.expr], str]) -> str:
        """Return a choice, or what it comes to for plain numbers."""
        known = self._known(node.test)
        if known is not None:
            return part(node.body if known else node.orelse)
        return f"({self._value(node.test)} ? {part(node.body)} : {part(node.orelse)})"

    def _dict(self, keys: list[ast.expr | None], values: list[ast.expr]) -> str:
        parts = []
        for key, value in zip(keys, values, strict=True):
            if key is None:
                parts.append(f"...{self._value(value)}")
            elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                parts.append(f"{json.dumps(key.value)}: {self._value(value)}")
            else:
                self._refuse(key)
        return f"{{ {', '.join(parts)} }}"

    def _lambda(self, arguments: list[str], body: ast.expr) -> str:
        new = [name for name in arguments if name not in self._names]
        if len(new) < len(arguments) or _TAKEN & {*new}:
            self._refuse(body, f"a lambda of {', '.join(arguments)}")
        self._names |= {*new}
        text = f"(({', '.join(new)}) => {self._value(body)})"
        self._names -= {*new}
        return text

    def _numbered(self, node: ast.DictComp) -> str:
        """Return a dict of numbered names: {f"keep{k}": beta for k, beta in enumerate(betas)}."""
        match node:
            case ast.DictComp(
                key=ast.JoinedStr(
                    values=[
                        ast.Constant(value=str() as word),
                        ast.FormattedValue(
                            value=ast.Name(id=used), conversion=-1, format_spec=None
                        ),
                    ]
                ),
                value=value,
                generators=[
                    ast.comprehension(
                        target=ast.Tuple(elts=[ast.Name(id=number), ast.Name(id=one)]),
                        iter=ast.Call(func=ast.Name(id="enumerate"), args=[of], keywords=[]),
                        ifs=[],
                    )
                ],
            ) if used == number:
                pair = f"[{json.dumps(word)} + {number}, {self._value(value)}]"
                return f"Object.fromEntries({self._value(of)}.map(({one}, {number}) => {pair}))"
        self._refuse(node)

    def _from_outside(self, node: ast.expr) -> str:
        """Return the call of a known function, or a table of constants of a rule's file."""
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr="CONSTANTS") if (
                module in self._outside
            ):
                constants: dict[str, float] = self._outside[module].CONSTANTS
                return json.dumps(constants)
            case ast.Call(func=ast.Name(id="len"), args=[of], keywords=[]):
                return f"{self._value(of)}.length"
            case ast.Call(func=func, args=arguments, keywords=[]):
                name = self._function(func)
                takes = _TAKES.get(self._named(func), len(arguments))
                starred = any(isinstance(one, ast.Starred) for one in arguments)
                if takes != len(arguments) or (starred and self._named(func) in FUNCTIONS):
                    self._refuse(node)
                return f"{name}({', '.join(map(self._argument, arguments))})"
            case ast.Name() | ast.Attribute():
                return self._function(node)
        self._refuse(node)

    def _argument(self, node: ast.expr) -> str:
        if isinstance(node, ast.Starred):
            return f"...{self._value(node.value)}"
        return self._values(node)

    def _function(self, node: ast.expr) -> str:
        """Return the JavaScript name of a function that a name of Python's stands for."""
        found = self._named(node)
        if found in FUNCTIONS:
            return FUNCTIONS[found]
        if not inspect.isfunction(found):
            self._refuse(node)
        return self._functions.name_of(found, found.__name__, found.__qualname__)

    def _named(self, node: ast.expr) -> Function | None:
        """Return the function of a name, of Python's own, or of a module or class."""
        found: Any = None
        match node:
            case ast.Name(id=name):
                found = self._outside.get(name, getattr(builtins, name, None))
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                found = getattr(self._outside.get(owner), name, None)
        return found if callable(found) else None


def _plain(arguments: ast.arguments) -> bool:
    """Return whether all arguments are given by place, and none has a default."""
    others = arguments.defaults, arguments.kwonlyargs, arguments.posonlyargs
    return not (any(others) or arguments.vararg or arguments.kwarg)
