"""What is minimised: points, the function with its gradient, and the numbers that decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, nan, prod
from typing import Any, Literal

import numpy as np

from fastopt.core import advice, arrays
from fastopt.core import tree as trees
from fastopt.core.arrays import Array
from fastopt.core.dtypes import real_dtype
from fastopt.core.hyperparameters import as_float
from fastopt.core.param_groups import Groups, are_given
from fastopt.core.tree import Tree
from fastopt.errors import BackendMismatchError

Leaves = list[Array]
"""The arrays of a point, or of a gradient, in the order of the leaves."""

Gradient = list[Array | None]
"""None stands for a leaf that has no gradient."""

Sides = list[tuple[Array, Array]]
"""The lower and the upper bounds of each leaf, in its shape and dtype."""

NO_BATCH = object()

# -------------------------------------------------------------------------------------------------
# Points.


class Points:
    """Where the points of a fit lie: nested as x0, in C order, where its arrays are.

    ``start`` is x0: copies of its arrays, whole numbers as float64, numbers as arrays of shape ().
    A number alone, and a list of numbers, is an array, as SciPy has it. The first axis of all
    counts the ``members``, if there are any.
    """

    def __init__(self, x0: Any, members: int | None = None) -> None:
        if isinstance(x0, Groups) or (isinstance(x0, list | tuple) and are_given(x0)):
            raise TypeError(
                "x0 must be an array or a tree of arrays; got parameter groups. Hand in one tree: "
                "options are the same for all of it"
            )
        given = _as_scipy_has_it(x0)
        leaves, nest = trees.flattened(given)
        held = next((leaf for leaf in leaves if arrays.kind(leaf)), None)
        self.xp: Any = np if held is None else arrays.namespace_of(held)
        self.start: list[Any] = [_start_of(self.xp, leaf) for leaf in leaves]
        self.nest: Callable[[Any], Any] = nest
        try:
            self.tree: Tree = Tree(nest(self.start))
        except (TypeError, ValueError) as error:
            said = advice.without_steps(str(error)).replace("params", "x0")
            raise type(error)(said) from None
        for leaf in self.tree.leaves:
            if leaf.array.dtype.kind == "b":
                raise TypeError(
                    f"x0{leaf.place} must be an array of numbers; got bool. Convert it before: "
                    f"x0{leaf.place}.astype('float64')"
                )
        if not self.start:
            raise ValueError(f"x0 must hold at least one array; got {x0!r:.200}")
        self.paths: list[str] = [f"x{leaf.place}" for leaf in self.tree.leaves]
        where = {arrays.location(leaf) for leaf in self.start}
        if len(where) > 1:
            raise BackendMismatchError(
                f"all arrays of x0 must be in one place; got {' and '.join(sorted(where))}"
            )
        self.on_device: bool = self.xp is not np
        self.is_array: bool = self.tree.params is self.tree.leaves[0].array
        """Whether x0 is one array, and no tree."""
        self.members = members
        for leaf, path in zip(self.start, self.paths, strict=True):
            if members is not None and leaf.shape[:1] != (members,):
                raise ValueError(
                    f"with starts={members} the first axis of {path} must count them, "
                    f"({members}, ...); got {leaf.shape}. Stack the starts, such as "
                    f"x0 + 0.1 * rng.standard_normal(({members}, *x0.shape))"
                )

    def match(self, given: Any, root: str) -> list[Any]:
        """Return what stands at the leaves of what is nested as x0; ValueError for what is not."""
        try:
            return self.tree.match(given, root)
        except ValueError as error:
            said = str(error).replace("the parameters were when the optimizer was made", "x0 is")
            raise ValueError(said) from None

    def copies(self, leaves: Leaves) -> Leaves:
        """Return copies of arrays."""
        if self.on_device:
            return [arrays.copy_of(leaf) for leaf in leaves]
        return [leaf.copy() for leaf in leaves]


class Flat:
    """The arrays of a point as one vector of real numbers: a complex one is two.

    The vector is float64 if any array is, or has parts that are, and else float32. With ``members``
    there is a vector for each, a row of a matrix.
    """

    def __init__(self, leaves: Leaves, members: int | None = None) -> None:
        self._like = leaves[0]
        self._rows = () if members is None else (members,)
        self._shapes = [leaf.shape[len(self._rows) :] for leaf in leaves]
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._xp: Any = arrays.namespace_of(leaves[0])
        kinds = {real_dtype(dtype).name for dtype in self._dtypes}
        self._real = np.dtype(np.float64 if "float64" in kinds else np.float32)
        self._pairs = np.result_type(self._real, np.complex64)
        sizes = [
            prod(shape) * (1 + (dtype.kind == "c"))
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        ]
        self._ends = np.cumsum([0, *sizes]).tolist()
        # One array of the vector's own dtype, which is the usual one, needs no copies.
        self._plain = len(leaves) == 1 and self._dtypes == [self._real] and members is None

    def vector(self, leaves: Gradient | Leaves) -> Array:
        """Return the numbers of a point or of a gradient, whose None is 0; perhaps a view of it."""
        if self._plain and leaves[0] is not None and leaves[0].dtype == self._real:
            return leaves[0].reshape(-1)
        with arrays.on_device_of(self._like):
            made: Array = self._xp.zeros((*self._rows, self._ends[-1]), self._real)
            for part, leaf in zip(self._parts(made), leaves, strict=True):
                if leaf is not None:
                    part[...] = leaf
        return made

    def leaves(self, vector: Array) -> Leaves:
        """Return the arrays of a vector: views where they have its dtype, else copies."""
        if self._plain:
            return [vector.reshape(self._shapes[0])]
        with arrays.on_device_of(vector):
            parts = zip(self._parts(vector), self._dtypes, strict=True)
            return [part.astype(dtype, copy=False) for part, dtype in parts]

    def _parts(self, vector: Array) -> Leaves:
        """Return views of a vector in the shapes of the leaves, in its own precision."""
        found = []
        ends = zip(self._ends, self._ends[1:], strict=False)
        for (start, end), shape, dtype in zip(ends, self._shapes, self._dtypes, strict=True):
            part = vector[..., start:end]
            if dtype.kind == "c":
                part = part.view(self._pairs)
            found.append(part.reshape((*vector.shape[:-1], *shape)))
        return found


def _as_scipy_has_it(x0: Any) -> Any:
    """Return x0, as an array if it is a number or holds nothing but numbers in lists."""
    if isinstance(x0, int | float | complex | np.generic) and not isinstance(x0, bool):
        return np.atleast_1d(np.asarray(x0))
    if type(x0) in (list, tuple) and x0:
        found = trees.leaves_of(x0)
        numbers = all(isinstance(one, int | float | complex | np.generic) for one in found)
        if numbers and not any(isinstance(one, bool) for one in found):
            try:
                return np.asarray(x0)
            except ValueError:  # of its depth
                raise ValueError(
                    f"x0 is a list of numbers in rows of different lengths; got {x0!r:.200}. Hand "
                    "in an array for each row: [np.array(row) for row in x0]"
                ) from None
    return x0


def _start_of(xp: Any, leaf: Any) -> Any:
    """Return a copy of a leaf of x0 to begin with; what is no array as it is, to be refused."""
    if isinstance(leaf, int | float | complex | np.generic) and not isinstance(leaf, bool):
        leaf = xp.asarray(leaf)
    if arrays.kind(leaf) is None:
        return leaf
    with arrays.on_device_of(leaf):
        if leaf.dtype.kind in "iu":
            return leaf.astype(np.float64, order="C")
        return xp.array(leaf, order="C")


def sides_of(points: Points, sides: tuple[list[Any], list[Any]] | None) -> Sides | None:
    """Return what bounds are in the dtypes of the leaves, and where these are."""
    if sides is None:
        return None
    return [
        (arrays.like(low, leaf), arrays.like(high, leaf))
        for leaf, low, high in zip(points.start, *sides, strict=True)
    ]


# -------------------------------------------------------------------------------------------------
# The function.

Jac = Callable[..., Any] | Literal["fun", "2-point"]


def checked_jac(jac: Any) -> Jac:
    """Return where gradients come from: "fun" returns them, a function of its own, differences."""
    if jac is True:
        return "fun"
    if jac is None or jac is False or jac == "2-point":
        return "2-point"
    if callable(jac):
        function: Callable[..., Any] = jac
        return function
    raise TypeError(
        "jac must be True (fun returns the value and the gradient), a function that returns the "
        f"gradient, or '2-point' (differences); got {jac!r:.200}"
    )


class Function:
    """The user's function, asked for its value and gradient; ``count`` is how often.

    It gets copies, so that it may write into them and keep them. Of points with members it is
    asked for all at once, and values are float64 arrays with one for each.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        jac: Jac,
        points: Points,
        sides: Sides | None,
    ) -> None:
        members = points.members
        if not callable(fun):
            raise TypeError(f"fun must be a function of x; got {type(fun).__name__}")
        if jac == "2-point" and members is not None:
            raise ValueError(
                "differences are not worked out for several starts; let fun return the gradient"
            )
        if jac == "2-point" and any(leaf.dtype.kind == "c" for leaf in points.start):
            raise ValueError("differences are for real x0; let fun return the gradient")
        self._fun = fun
        self._jac = jac
        self._points = points
        self._sides = sides
        self._members = members
        self.by_differences: bool = jac == "2-point"
        self.count: int = 0

    def __call__(self, leaves: Leaves, batch: Any = NO_BATCH) -> tuple[Any, Gradient]:
        """Return the value and the gradient's leaves at a point.

        The value is a float, or what stands on the device: there nothing is waited for.
        """
        points = self._points
        x = points.nest(points.copies(leaves))
        answer = self._fun(x) if batch is NO_BATCH else self._fun(x, batch)
        self.count += 1
        if self._jac == "fun":
            try:
                value, gradient = answer
            except (TypeError, ValueError):
                raise TypeError(
                    "fun must return a pair, the value and the gradient; got "
                    f"{_said(answer)}. If it returns the value alone, hand in the gradient's "
                    "function: jac=grad"
                ) from None
            return self._value(value), self._gradient(gradient, leaves)
        if self._jac == "2-point":
            value = self._value(answer)
            return value, self._differences(leaves, value, batch)
        x = points.nest(points.copies(leaves))
        gradient = self._jac(x) if batch is NO_BATCH else self._jac(x, batch)
        return self._value(answer), self._gradient(gradient, leaves)

    def _value(self, value: Any) -> Any:
        if type(value) is float and self._members is None:
            return value
        if self._points.on_device and arrays.kind(value) == "cupy" and value.dtype.kind in "fiu":
            if value.shape == (() if self._members is None else (self._members,)):
                return value.astype(np.float64)
            if self._members is None and value.size == 1:
                return value.reshape(()).astype(np.float64)
        elif self._members is None:
            number = as_float(value)
            if number is not None:
                return number
        else:
            found = arrays.on_host(value) if arrays.kind(value) == "cupy" else np.asarray(value)
            if found.shape == (self._members,) and found.dtype.kind in "fiu":
                return found.astype(np.float64)
        wanted = (
            "one real number, and not that of each example (take the sum or the mean)"
            if self._members is None
            else f"an array of {self._members} real numbers, the value of each start"
        )
        raise TypeError(f"the value of fun must be {wanted}; got {_said(value)}")

    def _gradient(self, given: Any, leaves: Leaves) -> Gradient:
        if self._points.is_array:
            return [self._of_leaf(given, leaves[0], 0)]
        found = self._points.match(given, "the gradient")
        return [self._of_leaf(*one) for one in zip(found, leaves, range(len(leaves)), strict=True)]

    def _of_leaf(self, grad: Any, leaf: Array, position: int) -> Array | None:
        """Return a leaf's gradient as an array that a step can take."""
        if type(grad) is type(leaf) and grad.dtype == leaf.dtype and grad.shape == leaf.shape:
            return grad
        if grad is None and len(self._points.start) > 1:
            return None
        found = self._as_array(grad, leaf, position)
        if found.dtype.kind in "biu" or (found.dtype.kind != "c" and leaf.dtype.kind == "c"):
            found = found.astype(leaf.dtype)
        path = f"the gradient of {self._points.paths[position]}"
        if found.dtype.kind in "OSUMm" or found.dtype.kind == "c" != leaf.dtype.kind:
            raise TypeError(
                f"{path} must be of real numbers; got {found.dtype}. "
                f"{advice.for_gradient_dtype(found, 'gradient', leaf)}"
            )
        if found.shape != leaf.shape:
            if found.size != 1 or leaf.size != 1:
                raise ValueError(
                    f"{path} must have its shape, {leaf.shape}; got {found.shape}. "
                    f"{advice.for_gradient_shape(found, 'gradient', leaf.shape)}"
                )
            found = found.reshape(leaf.shape)
        return found

    def _as_array(self, grad: Any, leaf: Array, position: int) -> Array:
        kind, own = arrays.kind(grad), arrays.kind(leaf)
        if kind == own:
            array: Array = grad
            return array
        if kind is not None or (own == "cupy" and as_float(grad) is None):
            raise BackendMismatchError(
                f"the gradient of {self._points.paths[position]} must be a {own} array, as x0; got "
                f"{_said(grad)}: nothing is copied between host and device unasked"
            )
        if grad is None or own == "cupy":
            if grad is None:
                raise TypeError("the gradient must be an array as x0; got None. Return it from fun")
            return self._points.xp.asarray(as_float(grad))  # type: ignore[no-any-return]  # xp's
        try:
            return np.asarray(grad)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the gradient of {self._points.paths[position]} must be an array; got "
                f"{_said(grad)}: {error}"
            ) from None

    def _differences(self, leaves: Leaves, value: Any, batch: Any) -> Gradient:
        """Return forward differences, backward ones where a bound is in the way."""
        points, found = self._points, []
        for k, leaf in enumerate(leaves):
            slope = points.xp.empty_like(leaf)
            flat = slope.reshape(-1)
            where = points.xp.where
            steps = where(abs(leaf) > 1.0, abs(leaf), 1.0) * _epsilon(leaf.dtype) ** 0.5
            if self._sides is not None:
                down, up = leaf - self._sides[k][0], self._sides[k][1] - leaf
                widest = where(up >= down, up, -down)  # where neither side has room for a step
                steps = where(up >= steps, steps, where(down >= steps, -steps, widest))
            steps = (leaf + steps.astype(leaf.dtype) - leaf).reshape(-1)
            for j in range(leaf.size):
                if steps[j] == 0.0:  # it is fixed by its bounds
                    flat[j] = 0.0
                    continue
                moved = points.copies(leaves)
                moved[k].reshape(-1)[j] += steps[j]
                x = points.nest(moved)
                there = self._fun(x) if batch is NO_BATCH else self._fun(x, batch)
                self.count += 1
                flat[j] = (self._value(there) - value) / steps[j]
            found.append(slope)
        return [*found]


def _said(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{type(value).__name__}: {value!r:.100}"
    return f"{type(value).__name__} of {getattr(value, 'dtype', '?')} {tuple(shape)}"


# -------------------------------------------------------------------------------------------------
# The numbers that decide.


def measured(
    value: Any, gradient: Gradient, leaves: Leaves, sides: Sides | None
) -> tuple[float, float]:
    """Return the value and the largest element of the projected gradient, as numbers.

    What stands on a device is fetched at once, by one transfer. NaN stays NaN.
    """
    if arrays.kind(leaves[0]) == "cupy":
        return _measured_there(value, gradient, leaves, sides)
    if sides is None and len(gradient) == 1 and gradient[0] is not None and gradient[0].size:
        only = gradient[0]
        if only.dtype.kind != "c":
            return value, float(np.maximum.reduce(np.abs(only), axis=None))
    norm = 0.0
    for k, grad in enumerate(gradient):
        if grad is not None and grad.size:
            found = float(magnitudes(np, grad, leaves[k], sides[k] if sides else None).max())
            if found != found:
                return value, nan
            norm = max(norm, found)
    return value, norm


def _measured_there(
    value: Any, gradient: Gradient, leaves: Leaves, sides: Sides | None
) -> tuple[float, float]:
    xp: Any = arrays.namespace_of(leaves[0])
    with arrays.on_device_of(leaves[0]):
        found = [
            magnitudes(xp, grad, leaves[k], sides[k] if sides else None).max().astype(np.float64)
            for k, grad in enumerate(gradient)
            if grad is not None and grad.size
        ]
        there = arrays.kind(value) == "cupy"
        numbers = xp.stack([value] * there + found).get() if found or there else np.zeros(0)
    norms = numbers[there:]
    norm = float(norms.max()) if norms.size else 0.0
    return (float(numbers[0]) if there else value), norm


def magnitudes(xp: Any, grad: Array, leaf: Array, sides: tuple[Array, Array] | None) -> Any:
    """Return the sizes of a gradient's elements, as far as bounds let x follow it."""
    if grad.dtype.kind == "c":
        return xp.maximum(abs(grad.real), abs(grad.imag))
    if sides is not None:
        lower, upper = sides
        grad = xp.minimum(xp.maximum(grad, leaf - upper), leaf - lower)
    return abs(grad)


def not_finite(value: float, gradient: Gradient, paths: Sequence[str]) -> str:
    """Return in words what of the function is not finite; "" if all is."""
    if not isfinite(value):
        return f"the value is {value}"
    for grad, path in zip(gradient, paths, strict=True):
        if grad is None or not grad.size:
            continue
        xp = arrays.namespace_of(grad)
        with arrays.on_device_of(grad):
            if not bool(xp.isfinite(grad).all()):
                what = "NaN" if bool(xp.isnan(grad).any()) else "infinity"
                return f"the gradient of {path} holds {what}"
    return ""


# -------------------------------------------------------------------------------------------------
# Whether the gradient is that of the function.


def contradiction(
    function: Function, points: Points, leaves: Leaves, sides: Sides | None, before: float
) -> str:
    """Return what shows that the gradient is not the function's, with both numbers; "" if none.

    ``before`` is the value that the function had at this point: one that has another now is not
    judged by its gradient.

    The function's difference between two points on the line along the gradient is compared with
    what the gradients there say, by the trapezoidal rule, whose error is of the third order. It
    takes three evaluations.
    """
    value, gradient = function(leaves)
    value, norm = measured(value, gradient, leaves, None)
    if not isfinite(value):
        return ""
    if abs(value - before) > 1e-3 * max(abs(value), abs(before)):
        return (
            f"The function is another one each time: at x it was {before:.6g} and is {value:.6g} "
            "now. If it draws examples, hand them in as batches, so that the best point is not "
            "that of the luckiest draw."
        )
    if norm == 0.0 or not isfinite(norm):
        return ""
    kinds = [real_dtype(leaf.dtype) for leaf in leaves]
    eps = max(float(_epsilon(kind)) for kind in kinds)
    reach = max(float(abs(leaf).max()) for leaf in leaves if leaf.size)
    step = eps ** (1 / 3) * max(1.0, reach)
    ends = [_moved(points, leaves, gradient, sides, sign * step / norm) for sign in (-1.0, 1.0)]
    values, said = [], 0.0
    for end in ends:
        found, slope = function(end)
        found, there = measured(found, slope, end, None)
        if not (isfinite(found) and isfinite(there)):
            return ""
        values.append(found)
        for grad, one, other in zip(slope, *ends, strict=True):
            if grad is not None:
                with arrays.on_device_of(other):
                    way = (other - one).astype(np.result_type(other.dtype, np.float64))
                    said += 0.5 * float((way * grad.conj()).real.sum())
    seen = values[1] - values[0]
    noise = 100.0 * eps * max(map(abs, values))
    if abs(seen - said) <= 0.05 * max(abs(seen), abs(said)) + noise:
        return ""
    return (
        f"The gradient contradicts the function: over a way of {2 * step:.2g} along the gradient "
        f"the function changes by {seen:.6g}, and by what the gradient says it would change by "
        f"{said:.6g}. Look at the gradient's sign and terms, or whether the function jumps there."
    )


def _epsilon(dtype: np.dtype[Any]) -> float:
    if dtype.name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(dtype).eps)


def _moved(
    points: Points, leaves: Leaves, way: Gradient, sides: Sides | None, share: float
) -> Leaves:
    """Return a point moved along a gradient, within the sides."""
    found = points.copies(leaves)
    for k, (own, grad) in enumerate(zip(found, way, strict=True)):
        if grad is not None:
            with arrays.on_device_of(own), np.errstate(all="ignore"):
                own += (share * grad).astype(own.dtype, copy=False)
                arrays.keep_within(own, sides[k] if sides else ())
    return found
