"""The schedule with a memory: a learning rate that falls when the loss no longer does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, SupportsFloat

from fastopt.core.hyperparameters import FINITE, FRACTION, NONNEGATIVE, Check, OneOf, Whole
from fastopt.errors import CheckpointError
from fastopt.schedules.functions import Schedule


class _Memory(NamedTuple):
    """What the reports so far have left; one value, so that it changes at once or not at all."""

    lr: float
    best: float | None = None  # None before the first finite report
    bad_reports: int = 0  # in a row
    cooldown_left: int = 0


_CHECKS: Mapping[str, Check] = {
    "lr": NONNEGATIVE,
    "best": lambda name, given: None if given is None else FINITE(name, given),
    "bad_reports": Whole(0),
    "cooldown_left": Whole(0),
}


@dataclass(frozen=True, eq=False)
class ReduceLROnPlateau(Schedule):
    """A learning rate that is multiplied by ``factor`` when the reported loss stops improving.

    ::

        better:         loss < best * (1 - threshold)    loss < best - threshold if "abs"
                        loss > best * (1 + threshold)    loss > best + threshold for mode "max"
        if better:      best <- loss;  bad <- 0
        else:           bad <- bad + 1
        if cooling > 0: cooling <- cooling - 1;  bad <- 0
        if bad > patience:
            lr <- max(lr * factor, lr_min)               if that is less by more than eps
            cooling <- cooldown;  bad <- 0

    Use it as ``lr`` and call ``report`` once per epoch, or whenever there is a loss to report. Its
    value does not depend on the step number. One may serve several groups or optimizers. What it
    remembers is part of the optimizer's ``state_dict``, also inside ``warmup`` and ``join``, but
    not where a function of the user's own hides it.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.ReduceLROnPlateau(0.1, factor=0.5, patience=1)
        >>> for loss in (1.0, 0.9, 0.9, 0.9):
        ...     lr.report(loss)
        ...     print(lr(0))
        0.1
        0.1
        0.1
        0.05

    Args:
        lr: value before the first reduction, >= 0.
        factor: of a reduction, in [0, 1).
        patience: how many reports in a row may be no better, >= 0; the next one reduces lr.
        threshold: what counts as better, >= 0.
        threshold_mode: "rel", a share of the best loss so far, or "abs", in units of the loss. As
            in PyTorch, "rel" is meant for losses above 0.
        cooldown: how many reports after a reduction are not counted as bad, >= 0.
        lr_min: never reduced below this, >= 0.
        eps: a reduction by no more than this is not made, >= 0, in units of lr.
        mode: "min" if lower is better, "max" if higher is.

    Source: as PyTorch 2.13's ``ReduceLROnPlateau``, but a loss that is infinite is never better,
    whatever the mode.
    """

    _checks: ClassVar[Mapping[str, Check]] = {
        "lr": NONNEGATIVE,
        "factor": FRACTION,
        "patience": Whole(0),
        "threshold": NONNEGATIVE,
        "threshold_mode": OneOf(("rel", "abs")),
        "cooldown": Whole(0),
        "lr_min": NONNEGATIVE,
        "eps": NONNEGATIVE,
        "mode": OneOf(("min", "max")),
    }
    lr: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    lr_min: float = 0.0
    eps: float = 1e-8
    mode: str = "min"
    _memory: _Memory = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._remember(_Memory(self.lr))

    def _remember(self, memory: _Memory) -> None:
        object.__setattr__(self, "_memory", memory)

    @property
    def foreseeable(self) -> bool:
        """The value of a coming step depends on what is reported until then."""
        return False

    def _at(self, step: int) -> float:
        return self._memory.lr

    def report(self, loss: SupportsFloat) -> None:
        """Take note of a loss: a number, or an array of NumPy or CuPy with no axes.

        NaN is never better, and is warned of; infinity is never better.
        """
        number = _as_number(loss)
        if math.isnan(number):
            message = "the reported loss is NaN, which counts as no better than the best so far"
            warnings.warn(f"ReduceLROnPlateau: {message}", RuntimeWarning, stacklevel=2)
        lr, best, bad, cooling = self._memory
        if self._is_better(number, best):
            best, bad = number, 0
        else:
            bad += 1
        if cooling:
            cooling, bad = cooling - 1, 0
        if bad > self.patience:
            lr, bad, cooling = self._reduced(lr), 0, self.cooldown
        self._remember(_Memory(lr, best, bad, cooling))

    def _is_better(self, loss: float, best: float | None) -> bool:
        if best is None or not math.isfinite(loss):
            return math.isfinite(loss)
        sign = 1.0 if self.mode == "min" else -1.0
        if self.threshold_mode == "rel":
            return sign * loss < sign * best * (1.0 - sign * self.threshold)
        return sign * loss < sign * best - self.threshold

    def _reduced(self, lr: float) -> float:
        lower = max(lr * self.factor, self.lr_min)
        return lower if lr - lower > self.eps else lr

    def state_dict(self) -> dict[str, Any]:
        """Return what the reports so far have left, as a dict of plain values."""
        return {"mode": self.mode, **self._memory._asdict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a ``state_dict``; raises CheckpointError, and changes nothing, if it is none.

        The constructor's arguments stay as they are.
        """
        self._restorer(saved)()

    def _restorer(self, saved: Any) -> Callable[[], None]:
        """Return what takes over a ``state_dict`` that is looked at here, and cannot fail."""
        names = ["mode", *_Memory._fields]
        if not isinstance(saved, Mapping) or saved.keys() != set(names):
            got = sorted(map(str, saved)) if isinstance(saved, Mapping) else repr(saved)
            raise CheckpointError(f"ReduceLROnPlateau: expected a dict of {names}; got {got}")
        if saved["mode"] != self.mode:
            raise CheckpointError(
                f"ReduceLROnPlateau: the state is of mode {saved['mode']!r}, in which another loss "
                f"is better than in {self.mode!r}; construct it with that mode"
            )
        try:
            memory = _Memory(**{k: check(k, saved[k]) for k, check in _CHECKS.items()})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"ReduceLROnPlateau: {error}") from error
        return lambda: self._remember(memory)


_NO_NUMBERS = ("b", "c", "S", "U")
"""Kinds of dtypes that float() would take all the same: truth values, complex numbers, text."""


def _as_number(loss: Any) -> float:
    """Return a loss as a float; it may be NaN or infinite."""
    try:
        kind = getattr(getattr(loss, "dtype", None), "kind", "")
        if isinstance(loss, bool | str | bytes) or kind in _NO_NUMBERS:
            raise TypeError
        if getattr(loss, "ndim", 0) != 0:
            raise TypeError
        return float(loss)
    except (TypeError, ValueError):
        raise TypeError(f"ReduceLROnPlateau: a loss must be one number; got {loss!r}") from None
    except OverflowError:
        return math.inf
