"""Oracles of any optimizer: what runs a case by a class like PyTorch's, by optax, by a formula.

Each function here returns an oracle, ``(case, inputs) -> Result``. They differ in what computes:

* ``by_class``: a class with PyTorch's interface (torch, pytorch_optimizer, timm, madgrad, ...);
* ``by_optax``: a transformation of optax, parameter by parameter;
* ``by_formula``: our own words of the paper in decimal arithmetic with 50 digits, parameter by
  parameter. It is independent of the package's rules only if it is written from the paper.
"""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from .oracle_closed_form import CONTEXT, Numbers, State, exact, exact_array, to_float64
from .vector_cases import Array, Case, Hyper, Result

Inputs = dict[str, list[Array]]
Oracle = Callable[[Case, Inputs], Result]
One = tuple[Array, dict[str, Array], int]


def gathered(done: list[One]) -> Result:
    """Put together what was run parameter by parameter: path, state at the end, steps made."""
    state = {letter: [slots[letter] for _, slots, _ in done] for letter in done[0][1]}
    return Result([path for path, _, _ in done], state, [count for _, _, count in done])


def by_class(
    make: Callable[..., Any],
    arguments: Callable[[Hyper], Hyper],
    state: Mapping[str, str],
    step: Callable[[Any, int], None] = lambda optimizer, t: optimizer.step(),
    read: Callable[[Any, Any, str], Any] = lambda optimizer, param, name: optimizer.state[
        param
    ].get(name),
) -> Oracle:
    """Return what runs a class with PyTorch's interface, all parameters together, in float64.

    ``arguments`` makes its arguments of our hyperparameters, and raises ValueError for what it
    cannot compute; each group gets them all. ``state`` maps its names of state to our letters;
    ``read(optimizer, parameter, name)`` looks one up. ``step(optimizer, t)`` makes step t, from 1.
    The learning rate must be an entry ``lr`` of its groups.
    """
    import torch

    def run(case: Case, inputs: Inputs) -> Result:
        params = [torch.tensor(p, requires_grad=True) for p in inputs["p"]]
        groups = [
            {"params": [params[i] for i in indices]} | arguments(hyper)
            for indices, hyper in case.parts()
        ]
        optimizer = make(groups, **arguments(case.base()))
        path: list[list[Array]] = [[] for _ in params]
        for at in range(case.steps):
            for group in optimizer.param_groups:
                group["lr"] = case.lr_changes.get(at, group.get("lr"))
            for i, param in enumerate(params):
                grad = torch.tensor(inputs["g"][i][at])
                param.grad = None if case.is_missing(i, at) else grad
            step(optimizer, at + 1)
            for i, param in enumerate(params):
                path[i].append(param.detach().numpy().copy())
        found = {
            letter: [np.array(read(optimizer, p, name), np.float64) for p in params]
            for name, letter in state.items()
            if read(optimizer, params[0], name) is not None
        }
        return Result([np.stack(p) for p in path], found, counts_of(case))

    return run


def counts_of(case: Case) -> list[int]:
    """Return how many gradients each parameter gets."""
    sizes = range(3)
    return [sum(not case.is_missing(i, at) for at in range(case.steps)) for i in sizes]


def by_optax(
    transform: Callable[[Hyper], Any],
    state: Mapping[str, str],
    decoupled: bool = False,
    with_rate: bool = False,
    read: Callable[[Any, str], Any] | None = None,
) -> Oracle:
    """Return what runs a transformation of optax, parameter by parameter, in float64.

    ``transform(hyper)`` makes it of our hyperparameters. It gives the step before the learning
    rate, which is applied here, as are the sign and weight decay: to the gradient or, if
    ``decoupled``, to the parameter. ``with_rate`` says that it gives the whole step instead, made
    of ``hyper["lr"]`` as it is at the time, with decay and everything else (the sign is turned
    here). ``state`` maps its names of state to our letters.
    """
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    get = read or optax.tree.get

    def build(hyper: Hyper) -> Any:
        if with_rate:
            return transform(hyper)
        decay = optax.add_decayed_weights(hyper["weight_decay"])
        rule = transform(hyper)
        return optax.chain(rule, decay) if decoupled else optax.chain(decay, rule)

    def one(case: Case, inputs: Inputs, index: int) -> One:
        hyper = case.hyper(index)
        sign = -1.0 if hyper["maximize"] else 1.0
        param = jax.numpy.asarray(inputs["p"][index])
        kept = build(hyper).init(param)
        path, count = [], 0
        for at in range(case.steps):
            hyper = hyper | {"lr": case.lr_changes.get(at, hyper.get("lr"))}
            if not case.is_missing(index, at):
                grad = sign * jax.numpy.asarray(inputs["g"][index][at])
                update, kept = build(hyper).update(grad, kept, param)
                update = update if with_rate else -hyper["lr"] * update
                param = optax.apply_updates(param, update)
                count += 1
            path.append(np.asarray(param))
        found = {letter: get(kept, name) for name, letter in state.items()}
        return np.stack(path), {k: np.asarray(x) for k, x in found.items() if x is not None}, count

    def run(case: Case, inputs: Inputs) -> Result:
        return gathered([one(case, inputs, index) for index in range(len(inputs["p"]))])

    return run


Formula = Callable[[Numbers, Numbers, State, int, Hyper], Numbers]


def by_formula(step: Formula, decoupled: bool = False) -> Oracle:
    """Return what works a formula out in decimal arithmetic, parameter by parameter.

    ``step(p, g, state, t, hyper)`` returns the new parameter: flat arrays of ``Decimal``; ``g``
    after its sign and, unless ``decoupled``, with the L2 term (what else decays, it does itself);
    ``state`` is a dict that it fills under our letters (a letter that begins with ``_`` is not
    recorded, and what is not flat and as large as the parameter is recorded in its own shape); t
    counts from 1; the numbers of ``hyper`` are ``Decimal``, lr as it is at the time.
    """

    def one(case: Case, inputs: Inputs, index: int) -> One:
        hyper = {name: exact(value) for name, value in case.hyper(index).items()}
        shape = inputs["p"][index].shape
        p, state, t = exact_array(inputs["p"][index]), State(), 0
        path = []
        for at in range(case.steps):
            if at in case.lr_changes:
                hyper["lr"] = Decimal(case.lr_changes[at])
            if not case.is_missing(index, at):
                g = exact_array(inputs["g"][index][at])
                g = -g if hyper["maximize"] else g
                if not decoupled:
                    g = g + hyper["weight_decay"] * p
                t += 1
                p = step(p, g, state, t, hyper)
            path.append(to_float64(p, shape))
        found = {k: in_shape(x, shape) for k, x in state.items() if not k.startswith("_")}
        return np.stack(path), found, t

    def run(case: Case, inputs: Inputs) -> Result:
        with localcontext(CONTEXT):
            return gathered([one(case, inputs, index) for index in range(len(inputs["p"]))])

    return run


def in_shape(numbers: Numbers, shape: tuple[int, ...]) -> Array:
    """Return numbers that are flat in this shape, if they are so many; others as they are."""
    flat = numbers.ndim == 1 and numbers.size == math.prod(shape)
    return to_float64(numbers.ravel(), shape if flat else numbers.shape)


def of_timm(module: str, name: str, package: str = "optim") -> Any:
    """Return what is in timm.optim, or another package of timm; the rest, which needs torchvision,
    is left alone."""
    import sys
    from importlib import import_module, util
    from pathlib import Path
    from types import ModuleType

    wanted = f"timm.{package}"
    if wanted not in sys.modules:
        spec = util.find_spec("timm") if "timm" not in sys.modules else sys.modules["timm"].__spec__
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for hollowed, folder in (("timm", root), (wanted, root / package)):
            hollow = ModuleType(hollowed)
            hollow.__path__ = [str(folder)]
            hollow.__spec__ = spec
            sys.modules.setdefault(hollowed, hollow)
    return getattr(import_module(f"{wanted}.{module}"), name)
