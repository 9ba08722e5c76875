"""Base of what stands around an optimizer and makes its steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn

from fastopt.attributes import KnownAttributes
from fastopt.beside import Beside
from fastopt.gradient_policy import NonfinitePolicy
from fastopt.optimizer import Optimizer, Scheduled
from fastopt.param_group import ParamGroups
from fastopt.resumable import Resumable

if TYPE_CHECKING:
    from fastopt.scale_on_device import Scaling


class Wrapper(KnownAttributes, Resumable):
    """Steps an optimizer, or another wrapper, and passes on what can be read and set."""

    def __init__(self, opt: Optimizer | Wrapper) -> None:
        name = type(self).__name__
        if not isinstance(opt, Optimizer | Wrapper):
            raise TypeError(
                f"{name} takes an optimizer, as fastopt.{name}(fastopt.Adam(params)); "
                f"got {type(opt).__name__}"
            )
        self._opt = opt
        self._innermost: Optimizer = opt._innermost if isinstance(opt, Wrapper) else opt

    @property
    def opt(self) -> Optimizer | Wrapper:
        """What it stands around."""
        return self._opt

    def _make_beside(self) -> Beside:
        """Return arrays that stand beside the optimizer's parameters."""
        trees = [grouping.tree for grouping in self._innermost._groupings]
        return Beside(trees, self._innermost._grouped)

    @abstractmethod
    def _step(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy, scaling: Scaling = None
    ) -> Any:
        """Make a step as ``Optimizer._step`` does."""

    @property
    def lr(self) -> float:
        """The optimizer's learning rate in its next step; can be set."""
        return self._opt.lr

    @lr.setter
    def lr(self, value: Scheduled) -> None:
        self._opt.lr = value

    @property
    def step_count(self) -> int:
        """How many steps the optimizer has made."""
        return self._opt.step_count

    @property
    def skipped_steps(self) -> int:
        """How many steps the optimizer has left out for what was in the gradients."""
        return self._opt.skipped_steps

    @property
    def on_nonfinite(self) -> NonfinitePolicy:
        """What gradients that do not fit do in the optimizer's step."""
        return self._opt.on_nonfinite

    @property
    def param_groups(self) -> ParamGroups:
        """The optimizer's parameter groups."""
        return self._opt.param_groups

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, as optimizers cannot. Use "
            "state_dict and load_state_dict."
        )
