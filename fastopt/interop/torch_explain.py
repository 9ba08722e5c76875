"""What ``explain`` and ``summary`` say of PyTorch's optimizers: that of the optimizer within.

It says what it does in its own numbering, and knows nothing of tensors that have had no gradient.
These are put beside, each in its place, as small arrays in an optimizer of the same settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from fastopt.interop.torch_optim import (
    Tensor,
    TorchOptimizer,
    array_of,
    gradient_of,
    small_arrays,
    stream_of,
)
from fastopt.optimizers.advice import Advice
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.explain import Explanation, ParameterStep, Status, measured
from fastopt.optimizers.summary import ArraySummary, Summary


class StandIn(NamedTuple):
    """An optimizer of small arrays, and whose places these take, in the same order."""

    opt: Optimizer
    tensors: list[Tensor]


def _stand_in(opt: TorchOptimizer, tensors: Iterable[Tensor], there: bool = False) -> StandIn:
    """Return one for some of the parameters, of the groups as they are set now.

    Where ``there`` the arrays are on the device and the backend of the tensors.
    """
    wanted = set(tensors)
    groups: list[dict[str, Any]] = []
    chosen: list[Tensor] = []
    for group in opt.param_groups:
        if own := [tensor for tensor in group["params"] if tensor in wanted]:
            groups.append({"params": small_arrays(own, there), **opt._options.read(group)})
            chosen += own
    of_all = opt._of_all if there else {**opt._of_all, "backend": "numpy"}
    return StandIn(opt._made_of(groups, **of_all), chosen)


def _named(opt: TorchOptimizer) -> tuple[dict[Tensor, str], dict[Tensor, int]]:
    """Return what every parameter is called, in their order, and the number of its group."""
    numbers = {t: number for number, group in enumerate(opt.param_groups) for t in group["params"]}
    if not numbers:
        raise ValueError(
            f"this {type(opt).__name__} has no parameters yet: add some, opt.add_param_group"
        )
    return opt._called(), numbers


# What a step would do ----------------------------------------------------------------------------


def explained(opt: TorchOptimizer, grad_scale: Any, value: Any, hessian: Any) -> Explanation:
    """Return what the next step would do; see ``TorchOptimizer.explain``."""
    if opt._formula._takes_value and value is None:
        raise TypeError(
            f"{type(opt).__name__} steps by the loss: hand it in, opt.explain(value=loss)"
        )
    names, numbers = _named(opt)
    twin = opt._for_the_next_step()
    extra = {} if value is None and hessian is None else twin._extra(value, hessian)
    explanations: list[Explanation] = []
    found: dict[Tensor, ParameterStep] = {}
    if twin._inner is not None:
        grads = [gradient_of(tensor.grad) for tensor in twin._tensors]
        nested = [grads[begin:end] for begin, end in twin._ranges]
        with nullcontext() if twin._on_device is None else stream_of(twin._on_device):
            explanations.append(twin._inner.explain(nested, grad_scale=grad_scale, **extra))
        found |= zip(twin._tensors, explanations[0].parameters, strict=True)
    if twin._waiting:
        extra.pop("hessian", None)
        stand = _stand_in(twin, twin._waiting)
        explanations.append(_without_gradients(twin, stand.opt, grad_scale, extra))
        rows = map(_in_place, stand.tensors, explanations[-1].parameters)
        found |= zip(stand.tensors, rows, strict=True)
    why = replace(
        explanations[0],
        parameters=tuple(
            replace(found[t], name=name, group=numbers[t], status=_status(t, found[t]))
            for t, name in names.items()
        ),
    )
    if any(tensor.grad is not None for tensor in names):
        return why
    advice = Advice("no_gradient", _said_of_none(names))
    return replace(why, made=False, reason="no parameter has a gradient", advice=(advice,))


def _without_gradients(
    twin: TorchOptimizer, stand_in: Optimizer, grad_scale: Any, extra: dict[str, Any]
) -> Explanation:
    """Return what a step would do with parameters that have never had a gradient."""
    if twin._inner is not None:  # schedules go by its steps
        steps = twin._inner.step_count
        stand_in.load_state_dict({**stand_in.state_dict(), "step_count": steps})
    grads = [[None] * len(group["params"]) for group in stand_in.param_groups]
    return stand_in.explain(grads, grad_scale=grad_scale, **extra)


def _in_place(tensor: Tensor, row: ParameterStep) -> ParameterStep:
    """Return what is said of a small array as what is said of its tensor, which has no state."""
    values = array_of(tensor.detach().cpu())
    return replace(
        row,
        shape=tuple(tensor.shape),
        state={},
        state_before={},
        weight_rms=measured(values).rms,
        at_bounds=None,
    )


def _status(tensor: Tensor, row: ParameterStep) -> Status:
    frozen = tensor.grad is None and not tensor.requires_grad
    return "frozen" if frozen else row.status


def _said_of_none(tensors: Iterable[Tensor]) -> str:
    """Return what to do where no parameter has a gradient."""
    if not any(tensor.requires_grad for tensor in tensors):
        return (
            "no parameter requires a gradient, so that no step moves anything: call "
            "requires_grad_(True) of those that are to be trained"
        )
    return (
        "no parameter has a gradient, p.grad is None for all of them: call explain after "
        "loss.backward() and before zero_grad()"
    )


# What an optimizer is ----------------------------------------------------------------------------


def summarised(opt: TorchOptimizer) -> Summary:
    """Return what an optimizer is; see ``TorchOptimizer.summary``."""
    names, numbers = _named(opt)
    if opt._inner is None:
        opt = opt._twin()
        opt._bind_known()
    own = None if opt._inner is None else opt._inner.summary()
    # Whose groups are as they are set now, whatever the last step has seen of that.
    stand = _stand_in(opt, names, there=own is None)
    about = stand.opt.summary()
    found = {t: _without_state(t, row) for t, row in zip(stand.tensors, about.arrays, strict=True)}
    if own is not None:
        found |= zip(opt._tensors, own.arrays, strict=True)
    rows = tuple(replace(found[t], name=name, group=numbers[t]) for t, name in names.items())
    groups = [
        replace(
            group,
            number=number,
            arrays=sum(row.group == number for row in rows),
            size=sum(row.size for row in rows if row.group == number),
        )
        for number, group in zip(sorted({*numbers.values()}), about.groups, strict=True)
    ]
    return replace(
        about if own is None else own,
        groups=tuple(groups),
        arrays=rows,
        size=sum(row.size for row in rows),
        parameter_bytes=sum(row.nbytes for row in rows),
        state_bytes=0 if own is None else own.state_bytes,
    )


def _without_state(tensor: Tensor, row: ArraySummary) -> ArraySummary:
    """Return what is said of a small array as what is said of its tensor, which has no state."""
    size = tensor.numel()
    nbytes = size * tensor.element_size()
    return replace(row, shape=tuple(tensor.shape), size=size, nbytes=nbytes, state=())
