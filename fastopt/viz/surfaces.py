"""Costs of two numbers, x and y, to draw paths over: well-known ones, and any formula."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import as_float

# -------------------------------------------------------------------------------------------------
# A formula is read once, and worked out with its derivatives by the rules of calculus: forward-mode
# differentiation, up to the second derivatives along x and along y.


class _Jet(NamedTuple):
    """A value with its first and second derivatives along x and along y; numbers or arrays."""

    value: Any
    x: Any = 0.0
    y: Any = 0.0
    xx: Any = 0.0
    yy: Any = 0.0


def _chained(u: _Jet, value: Any, first: Any, second: Any) -> _Jet:
    """Return f(u) by the chain rule, from f, f' and f'' at u."""
    return _Jet(
        value,
        first * u.x,
        first * u.y,
        second * u.x * u.x + first * u.xx,
        second * u.y * u.y + first * u.yy,
    )


def _sum(u: _Jet, v: _Jet) -> _Jet:
    return _Jet(*(a + b for a, b in zip(u, v, strict=True)))


def _difference(u: _Jet, v: _Jet) -> _Jet:
    return _Jet(*(a - b for a, b in zip(u, v, strict=True)))


def _product(u: _Jet, v: _Jet) -> _Jet:
    return _Jet(
        u.value * v.value,
        u.x * v.value + u.value * v.x,
        u.y * v.value + u.value * v.y,
        u.xx * v.value + 2.0 * u.x * v.x + u.value * v.xx,
        u.yy * v.value + 2.0 * u.y * v.y + u.value * v.yy,
    )


def _quotient(u: _Jet, v: _Jet) -> _Jet:
    value = u.value / v.value
    x = (u.x - value * v.x) / v.value
    y = (u.y - value * v.y) / v.value
    return _Jet(
        value,
        x,
        y,
        (u.xx - 2.0 * x * v.x - value * v.xx) / v.value,
        (u.yy - 2.0 * y * v.y - value * v.yy) / v.value,
    )


def _power(u: _Jet, v: _Jet) -> _Jet:
    return _exp(_product(v, _log(u)))


def _power_of(u: _Jet, exponent: Any) -> _Jet:
    """Return u to a constant power."""
    n = np.float64(exponent)
    # Not 0 * x ** (n - 2), which is no number at 0.
    first = n * u.value ** (n - 1.0) if n != 0.0 else 0.0
    second = n * (n - 1.0) * u.value ** (n - 2.0) if n not in (0.0, 1.0) else 0.0
    return _chained(u, u.value**n, first, second)


def _exp(u: _Jet) -> _Jet:
    found = np.exp(u.value)
    return _chained(u, found, found, found)


def _log(u: _Jet) -> _Jet:
    return _chained(u, np.log(u.value), 1.0 / u.value, -1.0 / u.value**2)


def _sqrt(u: _Jet) -> _Jet:
    root = np.sqrt(u.value)
    return _chained(u, root, 0.5 / root, -0.25 / (root * u.value))


def _abs(u: _Jet) -> _Jet:
    return _chained(u, np.abs(u.value), np.sign(u.value), 0.0)


def _sin(u: _Jet) -> _Jet:
    sin, cos = np.sin(u.value), np.cos(u.value)
    return _chained(u, sin, cos, -sin)


def _cos(u: _Jet) -> _Jet:
    sin, cos = np.sin(u.value), np.cos(u.value)
    return _chained(u, cos, -sin, -cos)


def _tan(u: _Jet) -> _Jet:
    tan = np.tan(u.value)
    return _chained(u, tan, 1.0 + tan**2, 2.0 * tan * (1.0 + tan**2))


def _atan(u: _Jet) -> _Jet:
    below = 1.0 + u.value**2
    return _chained(u, np.arctan(u.value), 1.0 / below, -2.0 * u.value / below**2)


def _sinh(u: _Jet) -> _Jet:
    sinh, cosh = np.sinh(u.value), np.cosh(u.value)
    return _chained(u, sinh, cosh, sinh)


def _cosh(u: _Jet) -> _Jet:
    sinh, cosh = np.sinh(u.value), np.cosh(u.value)
    return _chained(u, cosh, sinh, cosh)


def _tanh(u: _Jet) -> _Jet:
    tanh = np.tanh(u.value)
    return _chained(u, tanh, 1.0 - tanh**2, -2.0 * tanh * (1.0 - tanh**2))


FUNCTIONS: dict[str, Callable[[_Jet], _Jet]] = {
    "abs": _abs,
    "atan": _atan,
    "cos": _cos,
    "cosh": _cosh,
    "exp": _exp,
    "log": _log,
    "sin": _sin,
    "sinh": _sinh,
    "sqrt": _sqrt,
    "tan": _tan,
    "tanh": _tanh,
}
"""What a formula may call, with one argument each; log is the natural logarithm."""

CONSTANTS = {"pi": math.pi, "e": math.e}

_OPERATORS: dict[type[ast.operator], Callable[[_Jet, _Jet], _Jet]] = {
    ast.Add: _sum,
    ast.Sub: _difference,
    ast.Mult: _product,
    ast.Div: _quotient,
    ast.Pow: _power,
}
_LONGEST = 1000

GRAMMAR = (
    f"a formula has x, y, numbers, {' and '.join(CONSTANTS)}, the operators + - * / ** (or ^), "
    f"parentheses, and {', '.join(FUNCTIONS)}"
)


def _parsed(formula: Any) -> ast.expr:
    """Return a formula as a tree; raise TypeError or ValueError for what is none."""
    if not isinstance(formula, str):
        raise TypeError(f"a formula must be a string such as 'x**2 + 3*y**2'; got {formula!r:.200}")
    if len(formula) > _LONGEST:
        raise ValueError(
            f"a formula has at most {_LONGEST} characters; got {len(formula)}: {formula:.40}..."
        )
    try:
        tree = ast.parse(formula.replace("^", "**").strip(), mode="eval").body
        _check(tree, formula)
        _evaluated(tree, np.float64(1.0), np.float64(1.0))
    except SyntaxError as error:
        where = f" at character {error.offset}" if error.offset else ""
        raise ValueError(f"cannot read the formula {formula!r}{where}; {GRAMMAR}") from None
    except (RecursionError, MemoryError):
        raise ValueError(
            f"the formula {formula!r:.60} is nested too deeply; write it shorter"
        ) from None
    return tree


def _check(tree: ast.expr, formula: str) -> None:
    """Raise ValueError for a part of a formula that is not understood: nothing else is run."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        why = _refused(node, id(node) in called)
        if why:
            raise ValueError(f"in the formula {formula!r}: {why}; {GRAMMAR}")


def _refused(node: ast.AST, is_called: bool) -> str:
    """Return why a node may not be in a formula; an empty string where it may."""
    match node:
        case ast.Name(id=name) if is_called:
            return "" if name in FUNCTIONS else f"there is no function {name!r}"
        case ast.Name(id=name):
            if name in FUNCTIONS:
                return f"{name} needs an argument in parentheses"
            return "" if name in ("x", "y", *CONSTANTS) else f"there is no {name!r}"
        case ast.Constant(value=bool() | complex()):
            return f"{node.value!r} is no real number"
        case ast.Constant(value=int() | float()):
            return ""
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            whole = len(args) == 1 and not keywords and not isinstance(args[0], ast.Starred)
            return "" if whole else f"{name} takes one argument"
        case ast.BinOp(op=operator) if type(operator) in _OPERATORS:
            return ""
        case ast.UnaryOp(op=ast.UAdd() | ast.USub()) | ast.operator() | ast.unaryop() | ast.Load():
            return ""
        case ast.expr():
            return f"cannot have {ast.unparse(node)!r:.60}"
    return f"cannot have {type(node).__name__}"


def _evaluated(node: ast.expr, x: Any, y: Any) -> _Jet:
    """Return a formula's value and derivatives at a point, or at arrays of points."""
    one, none = np.ones_like(x), np.zeros_like(x)
    names = {"x": _Jet(x, one, none, none, none), "y": _Jet(y, none, one, none, none)}
    names |= {name: _Jet(np.float64(value)) for name, value in CONSTANTS.items()}
    with np.errstate(all="ignore"):
        return _jet(node, names)


def _jet(node: ast.expr, names: dict[str, _Jet]) -> _Jet:
    match node:
        case ast.Name(id=name):
            return names[name]
        case ast.Constant(value=int() | float() as value):
            return _Jet(np.float64(_number(value)))
        case ast.UnaryOp(op=operator, operand=operand):
            found = _jet(operand, names)
            return found if isinstance(operator, ast.UAdd) else _Jet(*(-one for one in found))
        case ast.BinOp(op=ast.Pow(), left=left, right=right) if _is_constant(right):
            return _power_of(_jet(left, names), _jet(right, names).value)
        case ast.BinOp(op=operator, left=left, right=right):
            return _OPERATORS[type(operator)](_jet(left, names), _jet(right, names))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return FUNCTIONS[name](_jet(argument, names))
    raise AssertionError(ast.dump(node))  # _check has let through nothing else


def _is_constant(node: ast.expr) -> bool:
    found = (one.id for one in ast.walk(node) if isinstance(one, ast.Name))
    return not {"x", "y"}.intersection(found)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number with hundreds of digits
        return math.inf


# -------------------------------------------------------------------------------------------------
# Surfaces


Point = tuple[float, float]


@dataclass(frozen=True)
class Surface:
    """A cost of x and y, and what is known of it.

    ``Surface("mine", "x**2 + 3*y**2 + sin(x*y)")`` is one of your own. A formula is read and worked
    out by this module alone, nothing in it is run as Python. Derivatives are exact but for
    rounding; |u| has the slope 0 at 0.

    Attributes:
        name: what pictures call it.
        formula: the cost in x and y, see ``GRAMMAR``.
        start: where paths begin unless another point is asked for.
        x_range, y_range: what a picture shows; None: what the paths need.
        minima: the points of lowest cost, if they are known.
        noise: of mini-batches, see ``minibatches``; 0 for exact gradients.
        steps: steps of a race unless another number is asked for.
        contenders: the optimizers of a race unless others are asked for, as ``race`` takes them.
        condition: of the bowls, how many times they are as steep along y as along x.

    Raises:
        TypeError, ValueError: for a formula that cannot be read; the message says what may be in
            one.
    """

    name: str
    formula: str
    start: Point = (2.0, 1.5)
    x_range: Point | None = None
    y_range: Point | None = None
    minima: tuple[Point, ...] = ()
    noise: float = 0.0
    steps: int = 60
    contenders: tuple[str, ...] = (
        "sgd lr=0.02",
        "momentum lr=0.02",
        "rmsprop lr=0.05",
        "adam lr=0.1",
    )
    condition: float | None = None
    _tree: ast.expr = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tree", _parsed(self.formula))

    @property
    def lowest(self) -> float | None:
        """The cost at the minima; None where they are not known."""
        return float(self.cost(*self.minima[0])) if self.minima else None

    def cost(self, x: Any, y: Any) -> Array:
        """Return the cost at points: x and y are numbers, or arrays of one shape."""
        x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        found = _evaluated(self._tree, x[()], y[()]).value
        return np.array(np.broadcast_to(found, x.shape))[()]

    def gradient(self, point: Any) -> Array:
        """Return the derivatives along x and y at a point (x, y), as an array of two."""
        jet = self._at(point)
        return np.array([jet.x, jet.y], np.float64)

    def curvature(self, point: Any) -> Array:
        """Return the second derivatives along x and y: the diagonal of the Hessian."""
        jet = self._at(point)
        return np.array([jet.xx, jet.yy], np.float64)

    def _at(self, point: Any) -> _Jet:
        x, y = np.asarray(point, np.float64).ravel()
        return _evaluated(self._tree, x, y)


EXAMPLES = 64
"""How many examples noisy gradients are of."""


def _total(some: Sequence[Sequence[float]]) -> list[float]:
    """Add up one by one, which ``sum`` of Python 3.12 does not, and the page does."""
    total = [0.0, 0.0]
    for one in some:
        total = [total[0] + one[0], total[1] + one[1]]
    return total


def minibatches(noise: float, batch: int, seed: int, steps: int) -> Array:
    """Return what the gradients of mini-batches are off by: an array of shape (steps, 2).

    The cost is the mean of 64 examples, f_i(x, y) = f(x, y) + noise * (a_i * x + b_i * y), where
    the a_i, and the b_i, add up to 0. They are sums of three numbers that are evenly distributed
    from -1/2 to 1/2, so their standard deviation is 1/2. Each step sees the mean over a batch;
    after 64 / batch steps, an epoch, each example has been seen once, and they are shuffled.

    ``batch`` divides 64. Random numbers are the upper 32 of the 48 bits of a linear congruential
    generator, so that the page of the explorer has the same.
    """
    state = (seed * 2862933555777941757 + 3037000493) & 0xFFFFFFFFFFFF

    def random() -> float:
        nonlocal state
        state = (state * 25214903917 + 11) & 0xFFFFFFFFFFFF
        return (state >> 16) / 4294967296

    examples = [[random() + random() + random() - 1.5 for _ in range(2)] for _ in range(EXAMPLES)]
    means = _total(examples)
    for one in examples:
        for axis in range(2):
            one[axis] -= means[axis] / EXAMPLES
    order = list(range(EXAMPLES))
    found: list[list[float]] = []
    while len(found) < steps:
        for i in range(EXAMPLES - 1, 0, -1):
            j = int(random() * (i + 1))
            order[i], order[j] = order[j], order[i]
        for at in range(0, EXAMPLES, batch):
            seen = _total([examples[i] for i in order[at : at + batch]])
            found.append([noise * one / batch for one in seen])
    return np.array(found[:steps])


def _quadratic(condition: float) -> str:
    return f"(x**2 + {condition:.17g}*y**2) / 2"


def bowl(condition: float = 25.0) -> Surface:
    """Return an oblong bowl, ``condition`` times as steep across it (y) as along it (x)."""
    top = 1.9 / condition  # gradient descent is stable below 2 / condition
    return Surface(
        "bowl",
        _quadratic(condition),
        start=(-10.0, 1.5),
        x_range=(-11.0, 2.4),
        y_range=(-2.2, 2.2),
        minima=((0.0, 0.0),),
        steps=40,
        contenders=(
            f"sgd lr={top:.3g}",
            f"momentum lr={top:.3g} beta=0.7",
            "rmsprop lr=0.3",
            "adam lr=0.3",
        ),
        condition=condition,
    )


def noisy(condition: float = 10.0) -> Surface:
    """Return a bowl that each step sees by a mini-batch of its own."""
    return Surface(
        "noisy",
        _quadratic(condition),
        start=(-4.0, 2.0),
        x_range=(-4.6, 2.0),
        y_range=(-2.4, 2.4),
        minima=((0.0, 0.0),),
        noise=15.0,
        steps=80,
        contenders=("sgd lr=0.05", "momentum lr=0.1", "rmsprop lr=0.08", "adam lr=0.15"),
        condition=condition,
    )


_ROSENBROCK = Surface(
    "rosenbrock",
    "(1 - x)**2 + 100*(y - x**2)**2",
    start=(-1.2, 1.0),
    x_range=(-1.75, 1.75),
    y_range=(-0.6, 2.0),
    minima=((1.0, 1.0),),
    steps=200,
    contenders=("sgd lr=0.002", "momentum lr=0.01", "rmsprop lr=0.02", "adam lr=0.2"),
)
_BEALE = Surface(
    "beale",
    "(1.5 - x + x*y)**2 + (2.25 - x + x*y**2)**2 + (2.625 - x + x*y**3)**2",
    start=(1.0, 1.6),
    x_range=(-0.5, 4.5),
    y_range=(-1.5, 2.0),
    minima=((3.0, 0.5),),
    steps=120,
    contenders=("sgd lr=0.01", "momentum lr=0.02", "rmsprop lr=0.03", "adam lr=0.1"),
)
_HIMMELBLAU = Surface(
    "himmelblau",
    "(x**2 + y - 11)**2 + (x + y**2 - 7)**2",
    start=(0.0, -1.0),
    x_range=(-5.5, 5.5),
    y_range=(-5.0, 5.0),
    minima=(
        (3.0, 2.0),
        (-2.8051180869527448, 3.1313125182505730),
        (-3.7793102533777469, -3.2831859912861694),
        (3.5844283403304917, -1.8481265269644034),
    ),
    steps=80,
    contenders=("sgd lr=0.01", "momentum lr=0.02", "rmsprop lr=0.1", "adam lr=0.2"),
)
_SADDLE = Surface(
    "saddle",
    "x**2/2 - y**2/2 + y**4/16",
    start=(-4.0, 0.01),
    x_range=(-4.5, 2.5),
    y_range=(-1.5, 3.2),
    minima=((0.0, 2.0), (0.0, -2.0)),
    steps=80,
    contenders=("sgd lr=0.1", "momentum lr=0.3", "rmsprop lr=0.1", "adam lr=0.2"),
)

_MADE: dict[str, Callable[[], Surface]] = {
    "bowl": bowl,
    "rosenbrock": lambda: _ROSENBROCK,
    "beale": lambda: _BEALE,
    "himmelblau": lambda: _HIMMELBLAU,
    "saddle": lambda: _SADDLE,
    "noisy": noisy,
}
SURFACES = {
    "bowl": "oblong bowl, (x**2 + condition*y**2) / 2; condition 25 by default",
    "rosenbrock": "Rosenbrock's curved valley, minimum at (1, 1)",
    "beale": "Beale's function, a flat valley between steep corners, minimum at (3, 0.5)",
    "himmelblau": "Himmelblau's function, four equal minima",
    "saddle": "a saddle at (0, 0) between two minima, (0, 2) and (0, -2)",
    "noisy": "a bowl that is the mean of 64 examples, of which each step sees a few",
}
"""The surfaces that have a name, and what they are."""


def surface(given: str | Surface, *, condition: float | None = None) -> Surface:
    """Return the surface of a name, or of a formula in x and y.

    Args:
        given: a name of ``SURFACES``, or a formula such as ``"x**2 + 3*y**2"``; a ``Surface`` is
            returned as it is.
        condition: of the bowls ("bowl" and "noisy"): how many times they are as steep along y as
            along x, > 0.

    Raises:
        TypeError, ValueError: for a name that no surface has, a formula that cannot be read, a
            condition out of range or for another surface.
    """
    if isinstance(given, Surface):
        found = given
    elif isinstance(given, str) and given.strip().lower() in _MADE:
        found = _MADE[given.strip().lower()]()
    elif isinstance(given, str) and given.strip().isidentifier() and len(given.strip()) > 1:
        raise ValueError(f"there is no surface {given!r}{_closest(given)}")
    else:
        found = Surface(str(given).strip() if isinstance(given, str) else given, given)
    if condition is None:
        return found
    if found.condition is None or isinstance(given, Surface):
        raise ValueError(f"condition is that of 'bowl' and 'noisy'; the surface is {found.name!r}")
    number = as_float(condition)
    if number is None:
        raise TypeError(f"condition must be a number above 0; got {condition!r:.200}")
    if not 0.0 < number < math.inf:
        raise ValueError(f"condition must be a number above 0; got {condition!r:.200}")
    return bowl(number) if found.name == "bowl" else noisy(number)


def _closest(name: str) -> str:
    import difflib  # a millisecond

    close = difflib.get_close_matches(name.strip().lower(), SURFACES, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{meant} There are {', '.join(SURFACES)}, and any formula in x and y"
