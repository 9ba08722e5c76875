"""What an optimizer says of its mathematics: its rule, and the scalars of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from fastopt.hyperparameters import Check
from fastopt.param_group import Options
from fastopt_kernels import Rule


class Formula(ABC):
    """The words and numbers of an optimizer; it knows no array and no backend.

    A subclass gives ``_checks`` for its own hyperparameters, ``_rule``, ``_scalars`` and
    ``_lr_scalars``, and where they differ from the defaults here ``_floor``, ``_fill``, ``_review``
    and ``_decoupled``.

    Where a check is ``Schedulable`` the option may be a function of the step number: ``_rule`` and
    ``_review`` see the function, ``_scalars`` the number that it gave for the step.
    """

    _checks: ClassVar[Mapping[str, Check]] = {}
    _decoupled: ClassVar[bool] = False
    """Whether weight decay acts on the parameter, or as an L2 term on the gradient."""
    _lr_scalars: ClassVar[tuple[str, ...]] = ()
    """The scalars that are proportional to the learning rate; where one is too small for the dtype
    of the arithmetic it is 0, and steps go on, while any other is refused."""

    @staticmethod
    @abstractmethod
    def _rule(options: Options) -> Rule:
        """Return the rule that these hyperparameters ask for."""

    @staticmethod
    @abstractmethod
    def _scalars(options: Options, lr: float, t: int, guard: float) -> dict[str, float]:
        """Return the rule's scalars in the t-th step (1 for the first) of a parameter.

        ``guard`` stands in for an eps of 0.
        """

    @staticmethod
    def _floor(options: Options) -> float:
        """Return the smallest denominator of an update; 1 if nothing is divided."""
        return 1.0

    @staticmethod
    def _fill(options: Options) -> dict[str, float]:
        """Return the value that state begins with, by slot, where it is not 0."""
        return {}

    @staticmethod
    def _review(options: Options) -> None:
        """Raise ValueError for hyperparameters that make no sense together."""
