"""The optimizers as ``torch.optim.Optimizer``: they update PyTorch's tensors where they are.

The tensors' memory is handed over as arrays, without a copy, to an optimizer of this package, which
holds the state and makes the steps. What is here translates: options by PyTorch's names, gradients
of every kind, the state as PyTorch's ``state_dict`` has it.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from fastopt import backends, optimizers
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.options import OPTIONS
from fastopt.core.rows import RowGrad
from fastopt.errors import CheckpointError
from fastopt.interop.common import count_of, plain
from fastopt.interop.torch import TWINS
from fastopt.optimizers.base import Hook, Optimizer
from fastopt.optimizers.factored import Adafactor
from fastopt.optimizers.matrices import Muon
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.schedule_free import Mode

try:
    import torch
except ImportError as _error:
    raise ImportError(
        "fastopt.torch works on PyTorch's tensors, and PyTorch is not installed here; install it "
        "(pip install torch), or hand NumPy arrays to the optimizers of fastopt itself"
    ) from _error

from torch.optim.optimizer import Optimizer as _TorchOptimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as _post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as _pre_hooks

if TYPE_CHECKING:
    from fastopt.backends.numba.tensors import TensorWindows
    from fastopt.optimizers.explain import Explanation
    from fastopt.optimizers.summary import Summary

Tensor = Any

# -------------------------------------------------------------------------------------------------
# Options: those of PyTorch's class of the same name, if there is one, by PyTorch's names.

_HARMLESS = ("foreach", "fused")
"""Options of PyTorch that say how a step is made, not what it computes."""

_REFUSED = {
    "differentiable": "steps are no part of autograd's graph here; torch.optim has such steps",
    "capturable": "steps cannot be captured in a CUDA graph of PyTorch; fastopt's own optimizers, "
    "on CuPy arrays, can",
}

_OTHER_NAMES: dict[type[Optimizer], dict[str, str | tuple[str, ...]]] = {
    RMSprop: {"alpha": "beta"},
    Adafactor: {"eps": ("eps1", "eps2")},
    Muon: {"adjust_lr_fn": "adjust_lr"},
}
"""PyTorch's names of options that have others here; several for a tuple's parts."""

_OF_ALL = tuple(name for name, option in OPTIONS.items() if option.check is None)
"""Options of an optimizer as a whole, which are in no group."""


@dataclass(frozen=True)
class Options:
    """How the options of one class are called.

    ``signature`` is the constructor's. ``ours`` gives our name of each option that can be in a
    group (several for the parts of a tuple); ``how`` are those of PyTorch that there are not here,
    which are harmless, or must have their default. ``slots`` gives PyTorch's name of our state,
    where there is one.
    """

    signature: inspect.Signature
    ours: Mapping[str, str | tuple[str, ...]]
    how: tuple[str, ...]
    slots: Mapping[str, str]

    @classmethod
    def of(cls, formula: type[Optimizer]) -> Options:
        """Return those of a class: PyTorch's, where it has one of this name, and all of ours."""
        signature = inspect.signature(formula.__init__)
        own = [name for name in signature.parameters if name not in ("self", "params", "common")]
        ours: dict[str, str | tuple[str, ...]] = {name: name for name in own}
        ours |= {name: name for name in OPTIONS if name not in _OF_ALL}
        twin = getattr(torch.optim, formula.__name__, None)
        if twin is None:
            return cls(_public(signature), ours, (), {})
        others = _OTHER_NAMES.get(formula, {})
        for theirs, name in others.items():
            ours[theirs] = name
            for one in [name] if isinstance(name, str) else name:
                ours.pop(one, None)
        its = inspect.signature(twin.__init__)
        how = tuple(name for name in its.parameters if name not in ("self", "params", *ours))
        common = signature.parameters["common"]
        more = [p for name, p in signature.parameters.items() if name in ours]
        more = [p for p in more if p.name in own and p.name not in its.parameters]
        whole = its.replace(parameters=[*its.parameters.values(), *more, common])
        slots = TWINS[formula].slots if formula in TWINS else {}
        return cls(_public(whole), ours, how, slots)

    def read(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a group by our names, as Python's numbers."""
        for name in filter(group.get, self.how):
            if name not in _HARMLESS and group[name] != self.signature.parameters[name].default:
                why = _REFUSED.get(name, "PyTorch has it and fastopt does not")
                raise ValueError(f"{name}={group[name]} is not to be had: {why}. Leave it out")
        found: dict[str, Any] = {}
        for name in filter(group.__contains__, self.ours):
            value, ours = _plain(name, group[name]), self.ours[name]
            if value is None:  # it stands for the default
                continue
            if isinstance(ours, str):
                found[ours] = value
            else:
                found |= zip(ours, value, strict=True)
        return found


def _public(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature of a constructor as its caller sees it."""
    shown = [p for name, p in signature.parameters.items() if name != "self"]
    return signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)


def _plain(name: str, value: Any) -> Any:
    """Return an option as Python's own numbers; PyTorch takes tensors for some."""
    if isinstance(value, list | tuple):
        return tuple(_plain(name, one) for one in value)
    return plain(value, name) if isinstance(value, torch.Tensor) else value


def _live(value: Any) -> bool:
    """Return whether a value can become another one without being set: it is or holds a tensor."""
    if isinstance(value, list | tuple):
        return any(map(_live, value))
    return isinstance(value, torch.Tensor)


# -------------------------------------------------------------------------------------------------
# Tensors as arrays, and back.


def array_of(tensor: Tensor) -> Array:
    """Return the memory of a tensor as an array of NumPy, or on a GPU of CuPy, without a copy."""
    tensor = tensor.detach()
    if noted(tensor):
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.numel() and tensor.device.type == "cpu" and not tensor.data_ptr():
        if not tensor._is_zerotensor():
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} has no memory: its storage was freed, as "
                "by untyped_storage().resize_(0), or it is a fake tensor, which has none. Make it "
                "anew before the step"
            )
        tensor = tensor.clone()  # zeros, of which that alone was noted
    half = tensor.dtype is torch.bfloat16  # which NumPy does not have
    if half:
        tensor = tensor.view(torch.int16)
    if tensor.device.type == "cpu":
        array: Array = tensor.numpy()
    elif tensor.device.type == "cuda":
        with backends.use_backend("cupy"):
            array = backends.array_namespace().from_dlpack(tensor)
    else:
        raise TypeError(
            f"fastopt.torch updates tensors on the CPU and on CUDA devices; got one on "
            f"{tensor.device}. Use torch.optim there"
        )
    return array.view(_bfloat16()) if half else array


def noted(tensor: Tensor) -> bool:
    """Return whether a tensor's signs are noted and not carried out: memory has others."""
    return bool(tensor.is_conj() or tensor.is_neg())


def may_be_noted(param: Array) -> bool:
    """Return whether a gradient that lies in memory as its real parameter may have noted signs.

    These are of the imaginary part of a conjugate, every other number of its memory: a stride is
    odd only along an axis of one element. (``torch._neg_view`` makes others.)
    """
    pairs = zip(param.shape, param.strides, strict=True)
    return not any(length > 1 and stride // param.itemsize % 2 for length, stride in pairs)


def parameter_array(tensor: Tensor) -> Array:
    """Return the memory of a parameter, to be updated there; ValueError if it has other signs."""
    if noted(tensor):
        how = "resolve_conj" if tensor.is_conj() else "resolve_neg"
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} is a view that notes another sign than "
            f"its memory has, where steps are made; hand in one of its own: "
            f"torch.nn.Parameter(p.detach().{how}()), or set p.data = p.data.{how}()"
        )
    return array_of(tensor)


def place_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return where a parameter is and how it lies there."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _bfloat16() -> np.dtype[Any]:
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def gradient_of(grad: Tensor | None) -> Any:
    """Return any gradient as steps take it: an array, a RowGrad, or None."""
    if grad is None or grad.layout is torch.strided:
        return None if grad is None else array_of(grad)
    if grad.layout is not torch.sparse_coo or grad.sparse_dim() != 1:
        raise TypeError(
            f"a sparse gradient must be of rows: torch.sparse_coo with one sparse dimension, as "
            f"that of nn.Embedding(sparse=True); got {grad.layout} with {grad.sparse_dim()} "
            "sparse dimensions. Make it dense before the step: p.grad = p.grad.to_dense()"
        )
    return RowGrad(grad._indices()[0].cpu().numpy(), array_of(grad._values()))


def tensor_of(array: Array) -> Tensor:
    """Return an array of a state_dict as a tensor."""
    if array.dtype == _bfloat16():
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def small_arrays(tensors: Iterable[Tensor], there: bool = False) -> list[Array]:
    """Return an array of zeros for each tensor, small, of as many axes and its dtype.

    They are in host memory, or ``there``, on the tensor's device.
    """
    found = []
    for tensor in tensors:
        shape = [min(length, 2) for length in tensor.shape]
        device = tensor.device if there else "cpu"
        found.append(array_of(torch.zeros(shape, dtype=tensor.dtype, device=device)))
    return found


def saved_array(value: Any) -> Any:
    """Return what was stored for a slot as a state_dict of ours has it, in host memory."""
    return array_of(value.cpu()).copy() if isinstance(value, torch.Tensor) else value


# -------------------------------------------------------------------------------------------------
# The optimizer.


class _Settings(NamedTuple):
    """Options of one group, followed from step to step.

    ``group`` is PyTorch's, ``read`` returns the values in it that count; ``number`` is that of our
    group. ``live`` says that values can change without being set.
    """

    group: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]
    number: int
    live: bool


class TorchOptimizer(_TorchOptimizer):  # type: ignore[misc]  # torch is not looked into
    """Base of all optimizers for PyTorch: steps are made by one of this package, ``fastopt``.

    A parameter enters it with its first gradient. ``state`` is worked out when it is read; what is
    written into it does nothing, ``opt.state = {}`` lets all begin anew. From then on arrays share
    the parameter's memory, so that PyTorch refuses to resize its storage; ``p.data = ...`` gives it
    another one.
    """

    _formula: ClassVar[type[Optimizer]]
    _options: ClassVar[Options]

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        bound = self._options.signature.bind(params, *args, **options)
        bound.apply_defaults()
        given = dict(bound.arguments)
        given |= given.pop("common", {})
        del given["params"]
        self._refuse_unknown(given)
        self._unbind()
        of_all = [name for name in _OF_ALL if name in given and name not in self._options.how]
        self._of_all = {name: given.pop(name) for name in of_all}
        backends.requested(self._of_all.get("backend"))  # raises for a name that there is not
        super().__init__(params, given)

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        """Raise TypeError for an option that there is not."""
        known = (*self._options.ours, *self._options.how, *_OF_ALL)
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                meant = f"; did you mean {close[0]!r}?" if close else "."
                raise TypeError(
                    f"fastopt.torch.{type(self).__name__} has no option {name!r}{meant} It has "
                    f"{', '.join(dict.fromkeys(known))}"
                )

    # Parameters and groups -----------------------------------------------------------------------

    def _unbind(self) -> None:
        """Have no optimizer yet: the next gradients make one."""
        if "_lock" not in self.__dict__:
            self._lock = threading.RLock()
            self._before_step: list[Hook] = []
            self._after_step: list[Hook] = []
        self._inner: Optimizer | None = None
        self._tensors: list[Tensor] = []
        self._waiting: list[Tensor] = []
        self._places: list[tuple[Any, ...]] = []
        self._ranges: list[tuple[int, int]] = []
        self._settings: list[_Settings] = []
        self._seen: list[Any] = []
        self._pending: dict[Any, Any] = {}
        self._look_anew()

    def _look_anew(self) -> None:
        """Forget what gradients were looked at through: the parameters are other arrays."""
        self._windows: TensorWindows | None = None
        self._in_windows: list[list[Array]] = []
        self._may_be_noted: list[int] = []
        self._may_look = True
        self._on_device = next((t for t in self._tensors if t.is_cuda), None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim.Optimizer`` does it; its options are checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
        except Exception:
            self.param_groups.pop()
            raise
        self._waiting.extend(group["params"])
        if self._inner is not None:
            self._name_parameters(self._inner)

    def _check(self, group: Mapping[str, Any]) -> None:
        """Raise for options that no optimizer can be made with, and tensors it cannot update."""
        options = self._options.read(group)
        for tensor in group["params"]:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                raise TypeError(
                    f"parameters must be floating or complex tensors; got {tensor.dtype}"
                )
            if noted(tensor):
                parameter_array(tensor)  # raises
        if like := small_arrays(group["params"]):
            of_all = {**self._of_all, "backend": "numpy"}
            self._made_of([{"params": like, **options}], **of_all)

    def _made_of(self, groups: list[dict[str, Any]], **of_all: Any) -> Optimizer:
        """Return an optimizer of ours; what depends on other options does so as in its class."""
        return self._formula(groups, **self._options.read(self.defaults), **of_all)

    def _bind(self, tensors: Iterable[Tensor], entries: Mapping[Any, Any]) -> None:
        """Make an optimizer of these parameters, with the state that there is of them."""
        self._refuse_averages()
        wanted = set(tensors)
        own: list[Tensor] = []
        groups: list[dict[str, Any]] = []
        ranges, settings = [], []
        for group in self.param_groups:
            chosen = [tensor for tensor in group["params"] if tensor in wanted]
            if not chosen:
                continue
            ranges.append((len(own), len(own) + len(chosen)))
            own += chosen
            names = [name for name in self._options.ours if name in group]
            values = [group[name] for name in names]
            settings.append(_Settings(group, itemgetter(*names), len(groups), _live(values)))
            options = self._options.read(group)
            groups.append({"params": [parameter_array(tensor) for tensor in chosen], **options})
        inner = self._made_of(groups, **self._of_all)
        if entries:
            inner.load_state_dict(self._saved(inner, own, ranges, entries), convert=True)
        self._inner, self._pending = inner, {}
        self._tensors, self._ranges, self._settings = own, ranges, settings
        inner.before_step, inner.after_step = self._before_step, self._after_step
        self._name_parameters(inner)
        every = chain.from_iterable(group["params"] for group in self.param_groups)
        self._waiting = [tensor for tensor in every if tensor not in wanted]
        self._places = [*map(place_of, own)]
        self._seen = [one.read(one.group) for one in settings]
        self._look_anew()

    def _called(self) -> dict[Tensor, str]:
        """Return what every parameter is called where it is shown, in the order of the groups."""
        groups = [*enumerate(self.param_groups)]
        places = {t: f"{n}.{k}" for n, group in groups for k, t in enumerate(group["params"])}
        pairs = [
            (n, tensor, name)
            for n, group in groups
            for tensor, name in zip(group["params"], group.get("param_names", ()), strict=False)
        ]
        for names in (
            {tensor: str(name) for _, tensor, name in pairs},
            {tensor: f"{n}.{name}" for n, tensor, name in pairs},
        ):
            if len({*names.values()}) == len(places):
                return names
        return places

    @property
    def _parameter_names(self) -> list[str]:
        return [*self._called().values()]

    def _name_parameters(self, inner: Optimizer) -> None:
        """Tell an optimizer of ours what its parameters are called where they are shown."""
        names = map(self._called().__getitem__, self._tensors)
        inner._shown_as = dict(zip(self._names(self._ranges), names, strict=True))

    def _refuse_averages(self) -> None:
        """Raise RuntimeError while parameters are averages, from which no training goes on."""
        if not getattr(self._inner, "training", True):
            raise RuntimeError(
                "the parameters are averages, to evaluate with; call opt.train() before steps, "
                "loading and copying"
            )

    def _bind_more(self) -> None:
        """Take in parameters that have a gradient for the first time."""
        if self._inner is None:
            known = [tensor for tensor in self._waiting if tensor in self._pending]
            fresh = [tensor for tensor in self._waiting if tensor.grad is not None]
        else:  # all that may have one later: each such change takes the whole state along
            known = self._tensors
            fresh = [t for t in self._waiting if t.grad is not None or t.requires_grad]
        self._bind([*known, *fresh], self.state)

    def _bind_known(self) -> None:
        """Make an optimizer of what there is state of, and no optimizer yet."""
        if known := [tensor for tensor in self._waiting if tensor in self._pending]:
            self._bind(known, self._pending)

    def _follow_memory(self) -> Optimizer:
        """Go over to parameters that lie elsewhere or otherwise, as after ``p.data = ...``.

        Returns the optimizer that makes the steps from now on.
        """
        assert self._inner is not None
        now = [parameter_array(tensor) for tensor in self._tensors]
        before = [*chain.from_iterable(self._inner.params)]
        alike = all(
            arrays.location(new) == arrays.location(old)
            and (new.dtype, new.shape) == (old.dtype, old.shape)
            for new, old in zip(now, before, strict=True)
        )
        if alike:
            self._inner.rebind([now[begin:end] for begin, end in self._ranges])
            self._places = [*map(place_of, self._tensors)]
            self._look_anew()
        else:  # another dtype or device
            self._bind(self._tensors, self.state)
        return self._inner

    def _follow_settings(self, place: int, now: Any) -> None:
        """Go over to options of a group that were set since the last step."""
        assert self._inner is not None
        group = self._inner.param_groups[self._settings[place].number]
        options = self._options.read(self._settings[place].group)
        changed = {name: value for name, value in options.items() if not _same(group[name], value)}
        if changed.keys() == {"lr"}:
            group["lr"] = changed["lr"]
        elif changed:
            group.update(changed)
        self._seen[place] = now
        self._settings[place] = self._settings[place]._replace(live=_live(now))

    # Steps ---------------------------------------------------------------------------------------

    def step(
        self, closure: Callable[[], Any] | None = None, *, value: Any = None, hessian: Any = None
    ) -> Any:
        """Update all parameters that have a gradient; return what ``closure`` returned.

        Args:
            closure: works the loss and the gradients out anew, and returns the loss.
            value: the loss that the gradients are of, for optimizers that step by it (MoMo), a
                number or a tensor; what ``closure`` returns, if there is one.
            hessian: for Sophia and AdaHessian estimates of the Hessian's diagonal: a list with a
                tensor, or None, for each parameter, group after group.

        Raises what ``fastopt.Optimizer.step`` raises; nothing has changed then.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _pre_hooks
            or _post_hooks
            or torch._C._autograd._profiler_enabled()
            or torch.compiler.is_compiling()
        ):
            return _step_with_hooks(self, closure, value=value, hessian=hessian)
        return self._step(closure, value, hessian)

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch then wraps it no more: hooks are seen to

    def _step(self, closure: Callable[[], Any] | None, value: Any, hessian: Any) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if self._formula._takes_value and value is None:
                value = loss
        with self._lock:
            for tensor in self._waiting:
                if tensor.grad is not None:
                    self._bind_more()
                    break
            inner = self._inner
            if inner is None:  # there has been no gradient
                return loss
            for place, (group, read, _, live) in enumerate(self._settings):
                if live or read(group) != self._seen[place]:
                    self._follow_settings(place, read(group))
            tensors = self._tensors
            given = [tensor.grad for tensor in tensors]
            if (
                self._windows is not None
                and self._windows.look(tensors, given)
                and not (self._may_be_noted and any(given[k].is_neg() for k in self._may_be_noted))
            ):
                grads = self._in_windows
            else:
                if [*map(place_of, tensors)] != self._places:
                    inner = self._follow_memory()
                    tensors = self._tensors
                found = self._arrays_of(given)
                grads = [found[begin:end] for begin, end in self._ranges]
                if any(grad is None for grad in given):
                    tensors = [t for t, g in zip(tensors, given, strict=True) if g is not None]
                    if not tensors:
                        return loss
            extra = {} if value is None and hessian is None else self._extra(value, hessian)
            if self._on_device is None:
                inner.step(grads, **extra)
            else:
                with stream_of(self._on_device):
                    inner.step(grads, **extra)
            torch.autograd.graph.increment_version(tensors)  # autograd cannot see what arrays write
        return loss

    def _arrays_of(self, given: list[Tensor | None]) -> list[Any]:
        """Return gradients as steps take them; look from now on without making arrays if possible.

        That pays on Numba alone, which an optimizer may go over to in any step.
        """
        if self._may_look and self._inner is not None and self._inner.backend == "numba":
            from fastopt.backends.numba.backend import tensor_windows

            self._may_look = False
            params = [*chain.from_iterable(self._inner.params)]
            self._windows = tensor_windows(torch.Tensor, params)
            if self._windows is not None:
                windows = self._windows.windows
                self._in_windows = [windows[begin:end] for begin, end in self._ranges]
                self._may_be_noted = [k for k, p in enumerate(params) if may_be_noted(p)]
        try:
            if all(grad.data_ptr() for grad in given):  # type: ignore[union-attr]  # of None see below
                return [grad.numpy() for grad in given]  # type: ignore[union-attr]
        except (AttributeError, TypeError, RuntimeError):  # None, bfloat16, sparse, on a GPU
            pass
        return [*map(gradient_of, given)]

    def _extra(self, value: Any, hessian: Any) -> dict[str, Any]:
        """Return what else a step is handed, as arrays."""
        found: dict[str, Any] = {}
        if value is not None:
            found["value"] = value.item() if isinstance(value, torch.Tensor) else value
        if hessian is not None:
            every = [*chain.from_iterable(group["params"] for group in self.param_groups)]
            if len(hessian) != len(every):
                raise ValueError(
                    f"hessian must be a list with a tensor or None for each of {len(every)} "
                    f"parameters; got {len(hessian)}"
                )
            by_tensor = dict(zip(every, hessian, strict=True))
            flat = [gradient_of(by_tensor[tensor]) for tensor in self._tensors]
            found["hessian"] = [flat[begin:end] for begin, end in self._ranges]
        return found

    # What is seen --------------------------------------------------------------------------------

    @property
    def before_step(self) -> list[Hook]:
        """Functions of ``fastopt``, the optimizer within, that its steps call first: append to it.

        A step without any gradient calls none. As PyTorch's own hooks, which are called around
        these, they are no part of copies.
        """
        return self._before_step

    @property
    def after_step(self) -> list[Hook]:
        """Functions of ``fastopt``, the optimizer within, that its steps call last, likewise."""
        return self._after_step

    def explain(
        self, *, grad_scale: float = 1.0, value: Any = None, hessian: Any = None
    ) -> Explanation:
        """Return what ``step()`` would do with the gradients as they are now, and why.

        Call it after ``loss.backward()``; nothing changes, and no hook is called. The step is made
        on a copy: see ``fastopt.Optimizer.explain`` for what that takes. Every parameter is there,
        also one that has no gradient, and is "frozen" then if it requires none.

        Parameters are called as they were named, ``Adam(model.named_parameters())``, with the
        number of the group before it, "1.weight", where two groups have the same name; else by
        group and place, "0.2". So they are in ``summary`` and ``fastopt.watch`` too.

        Example:
            >>> import torch
            >>> import fastopt.torch
            >>> model = torch.nn.Linear(2, 1)
            >>> opt = fastopt.torch.SGD(model.named_parameters(), lr=0.5)
            >>> model(torch.ones(1, 2)).sum().backward()
            >>> why = opt.explain()
            >>> why["weight"].grad_rms, round(why["weight"].update_rms, 6), why["bias"].status
            (1.0, 0.5, 'updated')

        Args:
            grad_scale: what gradients are multiplied by first. With a ``GradScaler`` call
                ``scaler.unscale_(opt)`` before, or hand in ``1 / scaler.get_scale()``; it is the
                scaler that leaves steps out then, which is not foreseen here.
            value, hessian: as for ``step``; what a closure would return is ``value``.

        Raises what ``step`` does for gradients and parameters that are no good.
        """
        from fastopt.interop import torch_explain  # milliseconds, which a program may do without

        with self._lock:
            return torch_explain.explained(self, grad_scale, value, hessian)

    def summary(self) -> Summary:
        """Return what this optimizer is: settings, groups, arrays, bytes, backend and why.

        State is that which there is: a parameter has some from its first gradient on.

        Example:
            >>> import torch
            >>> import fastopt.torch
            >>> layer = torch.nn.Linear(2, 3)
            >>> opt = fastopt.torch.Adam(layer.named_parameters())
            >>> [(one.name, one.shape) for one in opt.summary().arrays]
            [('weight', (3, 2)), ('bias', (3,))]
        """
        from fastopt.interop import torch_explain

        with self._lock:
            return torch_explain.summarised(self)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def _twin(self) -> TorchOptimizer:
        """Return a copy of this one, with the very same optimizer within, to be given another."""
        twin: TorchOptimizer = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._settings, twin._seen = [*self._settings], [*self._seen]
        return twin

    def _for_the_next_step(self) -> TorchOptimizer:
        """Return what holds the optimizer that would make the next step, where nothing changes.

        It goes on from this one as ``_step`` does, with an optimizer of its own where that would
        change this one's: parameters have come, have other settings, or lie elsewhere.
        """
        twin = self._twin()
        if any(tensor.grad is not None for tensor in self._waiting):
            twin._bind_more()
        elif self._inner is None:
            twin._bind_known()
        else:
            now = [read(group) for group, read, _, _ in self._settings]
            moved = [*map(place_of, self._tensors)] != self._places
            if moved or now != self._seen or any(one.live for one in self._settings):
                twin._inner = copy.copy(self._inner)  # of the same arrays
                for place, values in enumerate(now):
                    twin._follow_settings(place, values)
                if moved:
                    twin._follow_memory()
        return twin

    # State ---------------------------------------------------------------------------------------

    @property
    def fastopt(self) -> Optimizer | None:
        """The optimizer that makes the steps; None before the first gradient."""
        return self._inner

    @property
    def state(self) -> defaultdict[Any, Any]:
        """What is remembered of each parameter that has made a step, as copies.

        "step", and the averages by PyTorch's names, where it has the class, else by ours. What is
        remembered of all together, where there is any, is under "fastopt".
        """
        found: defaultdict[Any, Any] = defaultdict(dict)
        found.update(self._pending if self._inner is None else self._entries(self._inner))
        return found

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        groups = vars(self).get("param_groups", [])
        self._unbind()
        self._waiting = [*chain.from_iterable(group["params"] for group in groups)]
        self._pending = dict(state)

    def _names(self, ranges: Sequence[tuple[int, int]]) -> list[str]:
        """Return the names that our optimizer's parameters have in its state_dict."""
        counts = [end - begin for begin, end in ranges]
        return [f"{number}.{k}" for number, count in enumerate(counts) for k in range(count)]

    def _entries(self, inner: Optimizer) -> dict[Any, Any]:
        saved = inner.state_dict()
        found: dict[Any, Any] = {}
        steps = [0]
        for tensor, name in zip(self._tensors, self._names(self._ranges), strict=True):
            entry = saved["state"][name]
            if not entry["step"]:
                continue
            steps.append(entry["step"])
            found[tensor] = {
                self._options.slots.get(slot, slot): tensor_of(value)
                if isinstance(value, np.ndarray)
                else value
                for slot, value in entry.items()
                if slot != "step"
            } | {"step": torch.tensor(float(entry["step"]), dtype=_steps_dtype(entry["step"]))}
        memory = saved.get("memory", {})
        if found and (memory or saved["step_count"] != max(steps)):
            found["fastopt"] = {"step_count": saved["step_count"], "memory": memory}
        return found

    def _saved(
        self,
        inner: Optimizer,
        tensors: Sequence[Tensor],
        ranges: Sequence[tuple[int, int]],
        entries: Mapping[Any, Any],
    ) -> dict[str, Any]:
        """Return a state_dict for a new optimizer of ours, made of what is remembered."""
        saved = inner.state_dict()
        back = {theirs: ours for ours, theirs in self._options.slots.items()}
        steps = [0]
        for tensor, name in zip(tensors, self._names(ranges), strict=True):
            if not (entry := entries.get(tensor)):
                continue
            fresh = saved["state"][name]
            own = {back.get(slot, slot): saved_array(value) for slot, value in entry.items()}
            own = {slot: value for slot, value in own.items() if value is not None}
            self._refuse_foreign(own.keys() - fresh.keys() - {"step"})
            own["step"] = count_of(entry.get("step", 1), f"the step of {name}")
            for slot, value in fresh.items():  # what PyTorch's own state lacks
                own.setdefault(slot, value)
            saved["state"][name] = own
            steps.append(own["step"])
        beside = entries.get("fastopt", {})
        saved["step_count"] = int(beside.get("step_count", max(steps)))
        if beside.get("memory"):
            saved["memory"] = dict(beside["memory"])
        return saved

    def _refuse_foreign(self, unknown: Collection[str]) -> None:
        """Raise CheckpointError for a state of PyTorch's class, where that is another one."""
        name = self._formula.__name__
        if unknown and not self._options.slots and hasattr(torch.optim, name):
            raise CheckpointError(
                f"a state of fastopt.torch.{name} has no {', '.join(sorted(unknown))}, as that of "
                f"torch.optim.{name} has. States of PyTorch are read for "
                f"{', '.join(sorted(one.__name__ for one in TWINS))}; begin this one anew"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned here, or in PyTorch's class of this name.

        State of another floating dtype is converted to the one in use, each value rounded once. On
        an error nothing has changed.

        Raises ValueError for other groups; CheckpointError, which is one, for state that does not
        fit.
        """
        self._refuse_averages()
        before = dict(vars(self))
        handle = self.register_load_state_dict_pre_hook(_keep_dtypes)
        with self._lock:
            try:
                super().load_state_dict(state_dict)
                self._bind_known()
            except BaseException:
                self.__dict__.clear()
                self.__dict__.update(before)
                raise
            finally:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_averages()
        return {**super().__getstate__(), "_of_all": self._of_all}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        entries = rest.pop("state", {})
        super().__setstate__(rest)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        self.state = {
            key: {slot: _unwrapped(one) for slot, one in entry.items()}
            for key, entry in entries.items()
        }


class _AsIs:
    """A value that PyTorch does not cast to a parameter's dtype when it loads a state."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, _AsIs) else value


def _keep_dtypes(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state_dict whose tensors PyTorch takes over as they are."""
    entries = {
        key: {slot: _AsIs(value) for slot, value in entry.items()}
        for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": entries}


def _steps_dtype(step: int) -> Any:
    """Return the dtype of a step count: float32, as PyTorch has it, while that holds it."""
    return torch.float32 if step < 2**24 else torch.float64


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


def stream_of(tensor: Tensor) -> Any:
    """Return a context in which CuPy works on PyTorch's stream of a tensor's device."""
    with backends.use_backend("cupy"):
        cupy: Any = backends.array_namespace()
    stream = torch.cuda.current_stream(tensor.device)
    return cupy.cuda.ExternalStream(stream.cuda_stream, tensor.device.index)


@torch._disable_dynamo  # type: ignore[untyped-decorator]  # torch is not looked into
@torch.optim.Optimizer.profile_hook_step  # type: ignore[untyped-decorator]  # likewise
def _step_with_hooks(
    opt: TorchOptimizer, closure: Any = None, *, value: Any = None, hessian: Any = None
) -> Any:
    """Make a step, with hooks before and after it, as PyTorch calls them."""
    return opt._step(closure, value, hessian)


# -------------------------------------------------------------------------------------------------
# The classes, each made when it is first asked for.

_made: dict[str, type[TorchOptimizer]] = {}


def _class_of(name: str) -> type[TorchOptimizer]:
    import fastopt

    formula: type[Optimizer] = getattr(fastopt, name)
    options = Options.of(formula)
    said = inspect.getdoc(formula) or ""
    theirs = f"The signature is that of ``torch.optim.{name}``, with fastopt's options besides."
    doc = (
        f"``fastopt.{name}`` for PyTorch's tensors.\n\n"
        f"{theirs if hasattr(torch.optim, name) else ''}\n\n{said}"
    )
    body: dict[str, Any] = {
        "__doc__": doc,
        "__module__": "fastopt.torch",
        "__signature__": options.signature,
        "_formula": formula,
        "_options": options,
    }
    if hasattr(formula, "eval"):
        body |= {"eval": _eval, "train": _train}
    return type(name, (TorchOptimizer,), body)


def _eval(self: TorchOptimizer) -> Any:
    """Put the averages into the parameters, to evaluate with; see ``fastopt``'s own class."""
    with self._lock:
        inner: Any = self._inner
        if inner is None:
            return nullcontext(self)
        trained_before = inner.training
        if trained_before and [*map(place_of, self._tensors)] != self._places:
            inner = self._follow_memory()
        inner.eval()
        torch.autograd.graph.increment_version(self._tensors)
    return Mode(self, trained_before)


def _train(self: TorchOptimizer) -> Any:
    """Put back what the parameters are in training, wherever they are by now."""
    with self._lock:
        inner: Any = self._inner
        if inner is None:
            return nullcontext(self)
        trained_before = inner.training
        inner.train()
        if not trained_before:
            held = chain.from_iterable(inner.params)
            for tensor, place, array in zip(self._tensors, self._places, held, strict=True):
                if place_of(tensor) != place:
                    tensor.data.copy_(tensor_of(arrays.on_host(array)))
            torch.autograd.graph.increment_version(self._tensors)
    return Mode(self, trained_before)


def __getattr__(name: str) -> Any:
    """Return the optimizer of a name; AttributeError if there is none."""
    if name not in _made:
        if name.startswith("_") or name not in optimizers.names():
            raise AttributeError(f"fastopt.torch has no optimizer {name!r}", name=name)
        _made[name] = _class_of(name)
    return _made[name]


def __dir__() -> list[str]:
    """Return the names of the optimizers."""
    return optimizers.names()
