"""LBFGS: one iteration per step, with a function that gives the value and the gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from fastopt import backends
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import BoundsCheck, as_float, bounds_of_leaves, whole
from fastopt.core.options import OPTIONS
from fastopt.core.param_groups import Groups, are_given
from fastopt.core.saved import Resumable, Saved, is_count
from fastopt.core.tree import Leaf, Tree
from fastopt.engine.build import check_leaves
from fastopt.errors import CheckpointError
from fastopt.fits.lbfgs import Iteration, Minimizer
from fastopt.version import __version__

Closure = Callable[[], tuple[Any, Any]]
"""Returns the value of the function at the parameters as they are, and its gradients, a tree."""


@dataclass(frozen=True, slots=True)
class LBFGSOutcome:
    """What a step has come to. It is true unless it has ``failed``.

    Attributes:
        value: the function at the parameters as they are now.
        projected_gradient: the largest element of the gradient there, without its sign; with bounds
            that of P(p - gradient) - p. It is 0 at a minimum.
        evaluations: how often the closure was called in this step.
        failed: None, or in words why the line search finds nothing better: the precision is
            reached, the gradient contradicts the function, the function is not finite.
    """

    value: float
    projected_gradient: float
    evaluations: int
    failed: str | None = None

    def __bool__(self) -> bool:
        """Return whether there may be something better."""
        return self.failed is None


_NO_SENSE = {
    "lr": "the line search finds the length of each step",
    "weight_decay": "add weight_decay / 2 * sum(p ** 2) to the value, and weight_decay * p to the "
    "gradients, in the closure",
    "maximize": "return the negative value and gradients from the closure",
    "max_grad_norm": "the line search compares the gradients with the values, as they are",
    "on_nonfinite": "a step to where the function is not finite is shortened",
    "members": "a line search is along one function; fastopt.minimize(fun, x0, method='lbfgs', "
    "starts=K) makes K of them",
}
"""Why options of the other optimizers are none of this one; the rest have a common reason."""


class LBFGS(Resumable):
    """L-BFGS, and with bounds L-BFGS-B, for full (not mini-batch) gradients.

    ::

        H g = gamma g + [S gamma Y] M [S gamma Y]^T g     from the last history pairs
        p   <- p - t * H g                                s = p' - p,  y = g' - g
        f(p') <= f(p) - 1e-3 t g^T H g   and   |g'^T H g| <= 0.9 g^T H g      (strong Wolfe)

    A step is one iteration: it calls ``closure`` once or, where the first length t = 1 does not
    meet the conditions, a few times, each at other parameters, which it writes in place. It leaves
    the parameters at the best point. The first step evaluates the start, too. ::

        opt = fastopt.LBFGS(params, bounds=(0, None))
        while opt.step(lambda: value_and_grads(params)).projected_gradient > 1e-6: ...

    With bounds an iteration goes towards the minimum of the quadratic model within them. Parameters
    that are written to from outside between two steps are followed: the pairs are forgotten, and
    the next step begins anew there.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> x = np.array([3.0, 4.0])
        >>> opt = fastopt.LBFGS(x)
        >>> while opt.step(lambda: (float(x @ x), 2.0 * x)).projected_gradient > 1e-8:
        ...     pass
        >>> bool(np.abs(x).max() < 1e-8), opt.step_count
        (True, 2)

    Args:
        params: an array, or a tree of arrays, as other optimizers take them, of float32 or float64.
            If there are both, the arithmetic is float64. (Half precision and complex numbers are
            refused: a line search compares values closer than half precision tells apart, and
            complex parameters can be given as their real and imaginary parts.)
        history: how many pairs (s, y) are kept, >= 1; the memory is twice as many vectors.
        bounds: None, or a pair (lower, upper), each a number, None, or a tree of arrays nested as
            the parameters. They hold for the start, too.
        max_line_steps: how many points a line search may try, >= 1.
        backend: as for other optimizers; "numba" works as "numpy" does, since all is made of
            products of matrices.

    Raises:
        ValueError, TypeError: for arguments out of range, options that make no sense here, groups
            of parameters, and parameters that an optimizer would refuse.

    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization"
    (1989), in the compact form of Byrd, Nocedal and Schnabel (1994); Byrd, Lu, Nocedal and Zhu, "A
    limited memory algorithm for bound constrained optimization" (1995); Moré and Thuente (1994).
    It takes about as many evaluations as scipy.optimize.minimize(method="L-BFGS-B"). PyTorch's
    makes up to 20 iterations in a step, and by default searches no line.
    """

    def __init__(
        self,
        params: Any,
        *,
        history: int = 10,
        bounds: Any = None,
        max_line_steps: int = 20,
        backend: str | None = None,
        **others: Any,
    ) -> None:
        for name in others:
            _refuse_option(name)
        if isinstance(params, Groups) or are_given(params):
            raise TypeError(
                "LBFGS takes one tree of parameters, and no groups: it has no setting that could "
                "differ between them"
            )
        self._tree = tree = Tree(params)
        check_leaves(tree, "LBFGS")
        _check_dtypes(tree.leaves)
        backends.for_leaves(tree.leaves, backends.requested(backend))
        self._history = whole("LBFGS: history", history, 1)
        self._most = whole("LBFGS: max_line_steps", max_line_steps, 1)
        self._bounds = BoundsCheck()("LBFGS: bounds", bounds)
        self._backend = backend
        self._dtype = np.result_type(*{leaf.array.dtype for leaf in tree.leaves})
        ends = np.cumsum([leaf.array.size for leaf in tree.leaves])
        self._places = [
            slice(int(end) - leaf.array.size, int(end))
            for leaf, end in zip(tree.leaves, ends, strict=True)
        ]
        self._limits = self._limits_of(self._bounds)
        self._minimizer: Minimizer | None = None
        self._last: Iteration | None = None
        self._step_count = 0

    def _limits_of(self, bounds: Any) -> dict[str, Array]:
        if bounds is None:
            return {}
        leaves = self._tree.leaves
        found = bounds_of_leaves(bounds, self._tree, range(len(leaves)), 0, "LBFGS")
        sides = zip(*(found[k] for k in range(len(leaves))), strict=True)
        lower, upper = (self._joined(map(np.asarray, side)) for side in sides)
        first = leaves[0].array
        return {"lower": arrays.like(lower, first), "upper": arrays.like(upper, first)}

    @property
    def params(self) -> Any:
        """The parameters as they were given."""
        return self._tree.params

    @property
    def step_count(self) -> int:
        """How many steps have been made."""
        return self._step_count

    # A step ------------------------------------------------------------------------------------

    def step(self, closure: Closure) -> LBFGSOutcome:
        """Make one iteration; return the value and the projected gradient that it has come to.

        Args:
            closure: called without arguments, returns (value, grads): the function at the
                parameters as they are then, a real number, and a tree nested as the parameters,
                with an array for each. None stands for a gradient of 0: a parameter that has it in
                every call stays as it is. It must be the same function in every call.

        Raises:
            TypeError, ValueError: for what the closure returns, with the parameters as they were.
                What the closure raises is passed on, the parameters as they were. The next step
                then goes on with the line search, or if it was the first begins anew.
        """
        if not callable(closure):
            raise TypeError(
                "LBFGS.step takes a function that returns (value, grads) at the parameters as they "
                f"are, since a line search asks for several points; got {type(closure).__name__}. "
                "Write opt.step(lambda: (loss(params), grads(params)))"
            )
        self._check_arrays()
        minimizer = self._following()
        before = self._gathered()
        evaluations = 0
        found: Iteration | None = None
        done = False
        try:
            # The start is evaluated first; an iteration that ends there is none.
            while found is None or (self._last is None and not found.failed and evaluations == 1):
                self._write(minimizer.point)
                value, vector = self._read(closure())
                evaluations += 1
                found = minimizer.tell(value, vector)
                if found is not None and found.projected == 0.0:
                    break
            done = True
        finally:
            if not done:
                self._write(before)
        self._last = found
        self._step_count += 1
        self._write(found.x)
        return LBFGSOutcome(found.value, found.projected, evaluations, found.failed)

    def _following(self) -> Minimizer:
        """Return the minimizer; a new one if the parameters are not where it left them."""
        now = self._gathered()
        if self._minimizer is not None and self._last is not None:
            left = self._last.x
            same = all(
                bool((leaf.array.reshape(-1) == left[place].astype(leaf.array.dtype)).all())
                for leaf, place in self._leaves()
            )
            if same:
                return self._minimizer
        self._last = None
        self._minimizer = Minimizer(
            now, **self._limits, history=self._history, max_line_steps=self._most
        )
        return self._minimizer

    def _check_arrays(self) -> None:
        for leaf, now in zip(self._tree.leaves, self._tree.current(), strict=True):
            if now is not leaf.array:
                raise ValueError(
                    f"{leaf.path} is another array than when LBFGS was made; write into the array "
                    "(params[...][...] = value), or make a new LBFGS"
                )

    def _leaves(self) -> Any:
        return zip(self._tree.leaves, self._places, strict=True)

    def _joined(self, given: Any) -> Array:
        """Return arrays as one vector, a new one."""
        first = self._tree.leaves[0].array
        parts = [array.reshape(-1).astype(self._dtype, copy=False) for array in given]
        xp: Any = arrays.namespace_of(parts[0])
        with arrays.on_device_of(first):
            return xp.concatenate(parts)  # type: ignore[no-any-return]  # of numpy or cupy

    def _gathered(self) -> Array:
        return self._joined(leaf.array for leaf in self._tree.leaves)

    def _write(self, vector: Array) -> None:
        for leaf, place in self._leaves():
            with arrays.on_device_of(leaf.array):
                leaf.array[...] = vector[place].reshape(leaf.array.shape)

    def _read(self, returned: Any) -> tuple[float, Array]:
        """Return the value and the gradient that a closure has returned."""
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TypeError(
                "LBFGS: the closure must return (value, grads), two things; got "
                f"{type(returned).__name__}"
            )
        value = as_float(returned[0])
        if value is None:
            raise TypeError(
                "LBFGS: the closure must return a real number first, then the gradients; got "
                f"{type(returned[0]).__name__}"
            )
        grads = self._tree.match(returned[1])
        for k, leaf in enumerate(self._tree.leaves):
            if grads[k] is None:
                with arrays.on_device_of(leaf.array):
                    grads[k] = arrays.namespace_of(leaf.array).zeros_like(leaf.array)
            elif isinstance(grads[k], float | np.floating) and not leaf.array.shape:
                grads[k] = np.asarray(grads[k])  # what NumPy makes of arrays of shape ()
            _check_gradient(leaf, grads[k])
        return value, self._joined(grads)

    # What is remembered ------------------------------------------------------------------------

    def _remembered(self) -> dict[str, Any]:
        last = self._last
        return {
            "step_count": self._step_count,
            "shapes": {leaf.name: list(leaf.array.shape) for leaf in self._tree.leaves},
            "history": self._history,
            "params": {leaf.name: arrays.on_host(leaf.array) for leaf in self._tree.leaves},
            "x": None if last is None else arrays.on_host(last.x),
            "minimizer": None if last is None else self._minimizer_state(),
        }

    def _minimizer_state(self) -> dict[str, Any] | None:
        return None if self._minimizer is None else self._minimizer.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a ``state_dict``: the run goes on in the same bits. Parameters are written.

        They are part of the state, since the pairs and a line search that has been prepared are of
        this very point. ``max_line_steps`` and bounds stay what they are here.

        Raises CheckpointError, and changes nothing, if it is of something else, or damaged, or does
        not fit by name, shape, dtype or ``history``.
        """
        super().load_state_dict(saved)

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("LBFGS", saved)
        step_count = opened.count("step_count")
        shapes = {leaf.name: list(leaf.array.shape) for leaf in self._tree.leaves}
        if saved.get("shapes") != shapes:
            raise CheckpointError(
                f"LBFGS: the parameters are {shapes!r:.300} here; the state is of "
                f"{saved.get('shapes')!r:.300}"
            )
        if not is_count(saved.get("history")) or saved["history"] != self._history:
            raise CheckpointError(
                f"LBFGS: the state has history={saved.get('history')!r}; here it is "
                f"{self._history}. Make LBFGS with the same"
            )
        by_name = {leaf.name: leaf.array for leaf in self._tree.leaves}
        params = opened.arrays("params", by_name)
        minimizer: Minimizer | None = None
        last: Iteration | None = None
        if saved.get("minimizer") is not None:
            like = self._gathered()
            minimizer = Minimizer(
                like, **self._limits, history=self._history, max_line_steps=self._most
            )
            minimizer.load_state_dict(saved["minimizer"])
            x = saved.get("x")
            if not isinstance(x, np.ndarray) or (x.shape, x.dtype) != (like.shape, like.dtype):
                raise CheckpointError(f"LBFGS: x must be {like.dtype} {like.shape}")
            last = Iteration(arrays.like(x, like), 0.0, like, 0.0)

        def write() -> None:
            for name, array in by_name.items():
                with arrays.on_device_of(array):
                    array[...] = arrays.like(params[name], array)
            self._minimizer, self._last, self._step_count = minimizer, last, step_count

        return write

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        notes: Mapping[str, Any] | None = None,
        keep_previous: bool = True,
    ) -> None:
        """Write the state, with the parameters, to a file, whole or not at all.

        It is a safetensors file with the hash of every array, as the other optimizers write it.

        Args:
            path: the file, by custom ``*.safetensors``.
            notes: a dict of your own, which ``load`` returns.
            keep_previous: keep the file from before as ``<path>.prev``.

        Raises OSError, TypeError and ValueError as ``Adam.save`` does.
        """
        from fastopt.checkpoint import file  # it takes milliseconds

        encoder = file.Encoder()
        manifest = {
            "fastopt": __version__,
            "optimizer": "LBFGS",
            "state": encoder.encode("state:", self.state_dict()),
            "params": None,
            "also": {},
            "notes": encoder.encode("note:", {} if notes is None else notes),
        }
        file.write(path, file.pack_arrays(manifest, encoder.arrays), keep_previous)

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Take over what ``save`` wrote, on NumPy or CuPy, as ``load_state_dict`` does it.

        Returns the notes. Raises CheckpointError for a file that is damaged, no checkpoint, of
        another optimizer, or that does not fit; then nothing has changed.
        """
        from fastopt.checkpoint import file  # it takes milliseconds

        content = file.read(path)
        try:
            if content.get("optimizer") != "LBFGS":
                raise CheckpointError(
                    f"this is a checkpoint of {content.get('optimizer')}, not of LBFGS"
                )
            self.load_state_dict(content["state"])
        except CheckpointError as error:
            raise file.explained(path, error, whole=True) from None
        return dict(content["notes"])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of, the parameters included."""
        made_with = {"history": self._history, "bounds": self._bounds, "backend": self._backend}
        return {
            "params": self._tree.params,
            "made_with": {**made_with, "max_line_steps": self._most},
            "saved": self.state_dict(),
        }

    def __setstate__(self, copied: dict[str, Any]) -> None:
        """Make a copy of what another LBFGS consisted of."""
        LBFGS.__init__(self, copied["params"], **copied["made_with"])
        self.load_state_dict(copied["saved"])

    def __repr__(self) -> str:
        size = sum(leaf.array.size for leaf in self._tree.leaves)
        return f"<LBFGS: {size} parameters, history {self._history}, {self._step_count} steps>"


def _refuse_option(name: str) -> NoReturn:
    if name in _NO_SENSE:
        raise TypeError(f"LBFGS takes no {name}: {_NO_SENSE[name]}")
    known = "params, history, bounds, max_line_steps, backend"
    if name in OPTIONS:
        raise TypeError(
            f"LBFGS takes no {name}: it changes gradients or single updates, and then the line "
            f"search would compare them with another function's values. LBFGS takes {known}"
        )
    raise TypeError(f"LBFGS has no option {name!r}; it takes {known}")


def _check_dtypes(leaves: list[Leaf]) -> None:
    for leaf in leaves:
        if leaf.array.dtype not in (np.float32, np.float64):
            advice = (
                "give its real and imaginary parts as two arrays, or take fastopt.minimize("
                "method='lbfgs'), which fits complex arrays as they are"
            )
            if leaf.array.dtype.kind != "c":
                advice = "minimize over a float32 copy (array.astype('float32'))"
            raise TypeError(
                f"LBFGS takes parameters of float32 and float64; {leaf.path} is "
                f"{leaf.array.dtype}. Its line search compares nearby real values: {advice}"
            )


def _check_gradient(leaf: Leaf, grad: Any) -> None:
    place = f"grads{leaf.place}"
    if arrays.kind(grad) is None or arrays.location(grad) != arrays.location(leaf.array):
        got = type(grad).__name__ if arrays.kind(grad) is None else arrays.location(grad)
        raise TypeError(
            f"{place} must be an array {arrays.location(leaf.array)}, as {leaf.path} is; got {got}"
        )
    if grad.shape != leaf.array.shape or grad.dtype.kind != "f":
        raise ValueError(
            f"{place} must be a real array of the shape {leaf.array.shape}; got "
            f"{grad.dtype} {grad.shape}"
        )
