"""Schedule-free SGD and AdamW: the average of the path is evaluated, and no schedule is needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from sys import float_info
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, Self, TypeVar, Unpack

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import (
    BETA,
    EPS,
    NONNEGATIVE,
    Check,
    Decay,
    Number,
    Options,
    Pair,
    Schedulable,
    Scheduled,
    Value,
    Whole,
)
from fastopt.core.options import Common, NonfinitePolicy
from fastopt.core.signals import Deferred
from fastopt.engine.extra import NOTHING, Extra
from fastopt.engine.policy import Outcome
from fastopt.optimizers.base import Around, Optimizer
from fastopt.optimizers.common import at_most, eps_alone, one_minus_power, or_guard, power, sqrt
from fastopt_kernels import Rule, schedule_free, schedule_free_adam

if TYPE_CHECKING:
    from fastopt.optimizers.explain import Explanation

Opt = TypeVar("Opt", bound="ScheduleFree")
Result = TypeVar("Result")

LARGEST = float_info.max
BETWEEN = Number(low=0.0, high=1.0, low_open=True, high_open=True)
"""Where y stands between z and x: with 0 nothing could be told of x, with 1 nothing of z."""


# -------------------------------------------------------------------------------------------------
# What both have in common: where the parameters are, and how much a step counts.


class Mode(AbstractContextManager[Opt], Generic[Opt]):
    """What ``eval`` and ``train`` return: at the end of a ``with`` the mode is that of before."""

    __slots__ = ("_opt", "_trained_before")

    def __init__(self, opt: Opt, trained_before: bool) -> None:
        self._opt = opt
        self._trained_before = trained_before

    def __enter__(self) -> Opt:
        """Return the optimizer."""
        return self._opt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Go back to the mode of before."""
        if self._trained_before:
            self._opt.train()
        else:
            self._opt.eval()


class ScheduleFree(Optimizer):
    """Base of those whose parameters stand at y in training and at the average x to evaluate."""

    _averages: ClassVar[Mapping[str, Check]] = {
        "warmup_steps": Whole(0),
        "weight_lr_power": NONNEGATIVE,
        "r": NONNEGATIVE,
    }
    """The checks of what says how much a step counts in x."""

    _kept: ClassVar[list[Array] | None] = None
    """In eval mode what parameters are in training, in the order of buckets; each instance's."""

    @staticmethod
    @abstractmethod
    def _beta(options: Options) -> float:
        """Return the share of x in y."""

    @staticmethod
    def _warmed_up(options: Options, lr: Value, t: int) -> tuple[Value, dict[str, Value]]:
        """Return the learning rate of a parameter's t-th step, and what the step counts by."""
        if t < options["warmup_steps"]:
            lr = lr * (t / options["warmup_steps"])
        counts = {
            "rate": power(lr, options["weight_lr_power"]),
            "factor": power(float(t), options["r"]),
        }
        # Where numbers are immense a weight is 0, and not infinity over infinity.
        return lr, {name: at_most(value, LARGEST) for name, value in counts.items()}

    # Modes ---------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether steps can be made: the parameters are y, and not x."""
        return self._kept is None

    @property
    def _elsewhere(self) -> bool:
        return self._kept is not None or super()._elsewhere

    def eval(self) -> Mode[Self]:
        """Put the averages x into the parameters, to evaluate with; again, nothing happens.

        ::

            with opt.eval():
                loss = evaluate(params)

        After a ``with`` the mode is that of before; without one it lasts until ``train``, which
        brings back the exact bits that the parameters had. So what is written into parameters
        meanwhile is lost. A copy of all parameters is kept until then. A parameter without a step
        is as it is, and x is within the parameter's bounds.

        A step is an error in this mode, and so is what replaces parameters. ``save``, ``load`` and
        ``state_dict`` do in both modes the same: they save and restore y, from which training goes
        on, and after ``load`` the parameters are the x of what was loaded. On a device nothing
        waits for it. What replays a captured CUDA graph has to see to the mode by itself.

        Raises ValueError for a parameter that is no longer the optimizer's array, or read-only;
        MemoryError (CuPy's OutOfMemoryError) where there is no room; RuntimeError from within a
        step, and while a stream is captured in a CUDA graph. Nothing has changed then.
        """
        return self._go_to(self._evaluate)

    def train(self) -> Mode[Self]:
        """Put back what the parameters are in training, to the bit; again, nothing happens.

        At first the optimizer is in this mode. Raises what ``eval`` does.
        """
        return self._go_to(self._go_back)

    def _go_to(self, mode: Callable[[], None]) -> Mode[Self]:
        with self._state_lock.lock:
            trained_before = self.training
            super()._alone(mode)
        return Mode(self, trained_before)

    def _evaluate(self) -> None:
        if self._kept is not None:
            return
        self._check_arrays()
        state, bounds = self._state, self._state.bounds()
        kept = [arrays.copy_of(p.leaf.array) for bucket in state.buckets for p in bucket.parameters]
        originals = iter(kept)
        with Deferred():
            try:
                for bucket in state.buckets:
                    share = 1.0 - 1.0 / self._beta(state.groups[bucket.group])
                    for position, parameter in zip(
                        bucket.positions, bucket.parameters, strict=True
                    ):
                        array, limits = parameter.leaf.array, bounds.get(position, ())
                        with arrays.on_device_of(array):
                            d = bucket.arena.numbers_of("d", parameter, True)
                            arrays.write_beyond(array, next(originals), d, share, limits)
            except BaseException:  # no memory for a temporary, for instance
                self._write(kept)
                raise
            self._kept = kept  # type: ignore[misc]  # the instance's own

    def _go_back(self) -> None:
        if self._kept is None:
            return
        self._check_arrays()
        with Deferred():
            self._write(self._kept)
            self._kept = None  # type: ignore[misc]

    def _write(self, kept: list[Array]) -> None:
        parameters = (p for bucket in self._state.buckets for p in bucket.parameters)
        for parameter, values in zip(parameters, kept, strict=True):
            with arrays.on_device_of(values):
                parameter.leaf.array[...] = values

    def _check_arrays(self) -> None:
        """Raise for parameters that are no longer those that the optimizer was given."""
        buckets, now = self._state.buckets, self._state.tree.current()
        for bucket in buckets:
            for parameter, array in zip(bucket.parameters, bucket.of_leaves(now), strict=True):
                parameter.check_array(array)
        first = buckets[0].parameters[0].leaf.array
        if arrays.kind(first) == "cupy" and arrays.capturing(first):
            raise RuntimeError(
                f"{type(self).__name__}: eval and train keep and bring back copies of parameters, "
                "which a CUDA graph would not have; call them before or after a capture"
            )

    # What can be done in eval mode, and what cannot -----------------------------------------------

    def _alone(self, work: Callable[[], Result]) -> Result:
        """Do something between two steps, with the parameters where steps have left them."""

        def at_y() -> Result:
            if self._kept is None:
                return work()
            self._go_back()
            try:
                return work()
            finally:
                self._evaluate()

        return super()._alone(at_y)

    def _refuse_in_eval(self, what: str) -> None:
        if self._kept is not None:
            self._say_train_first(what)

    def _say_train_first(self, what: str) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__}: {what} in eval mode, in which the parameters are averages "
            "that no step goes on from; call opt.train() before, or evaluate in "
            "`with opt.eval(): ...`"
        )

    def _step(
        self,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
        extra: Extra = NOTHING,
    ) -> Outcome:
        self._refuse_in_eval("a step")
        return super()._step(grads, grad_scale, on_nonfinite, around, extra)

    def _explain(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy | None, extra: Extra
    ) -> Explanation:
        self._refuse_in_eval("explain")
        return super()._explain(grads, grad_scale, on_nonfinite, extra)

    def rebind(self, params: Any) -> Self:
        """Do what ``Optimizer.rebind`` does; RuntimeError in eval mode."""
        self._refuse_in_eval("rebind (or a step with params=)")
        return super().rebind(params)

    def resize(self, name: str, array: Any, keep: Any = None) -> Self:
        """Do what ``Optimizer.resize`` does; RuntimeError in eval mode."""
        self._refuse_in_eval("resize")
        return super().resize(name, array, keep)

    def add_param_group(self, group: Mapping[str, Any]) -> Self:
        """Do what ``Optimizer.add_param_group`` does; RuntimeError in eval mode."""
        self._refuse_in_eval("add_param_group")
        return super().add_param_group(group)

    def _copied(self) -> dict[str, Any]:
        with self._state_lock.lock:
            return {**super()._copied(), "kept": self._kept}

    def _become(self, copied: dict[str, Any]) -> None:
        super()._become(copied)
        self._kept = copied["kept"]  # type: ignore[misc]


# -------------------------------------------------------------------------------------------------
# ScheduleFreeSGD: the path of gradient descent, averaged.


class ScheduleFreeSGD(ScheduleFree):
    """Schedule-free SGD: gradients are taken between the iterate and its average.

    ::

        g <- grad + weight_decay * y                     y is the parameter
        s <- lr * min(1, t / warmup_steps)
        peak <- max(peak, s^weight_lr_power)             peak, total = 0 at first
        w <- t^r * peak;  total <- total + w;  c <- w / total
        z <- z - s * g                                   z, x = y at first
        x <- (1 - c) * x + c * z
        y <- momentum * x + (1 - momentum) * z

    Here grad is the gradient at y, g that with the decay, s the rate of the step, z the point that
    makes the steps, x the average of z, peak the largest weight by lr so far, w the weight of the
    newest z in x, total the sum of weights, and c the share of w in total.

    In training the parameters are y. **Evaluate at x**: ``with opt.eval(): ...``, see there. The
    state is d = z - y, whose x is y + (1 - 1 / momentum) * d: so what is written into parameters
    from outside (weights that are loaded, a projection) moves z and x along. t, peak and total are
    each array's own: they follow the steps that are made with a gradient for it.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter over those of the gradient; a constant
            is meant, ten times that of SGD with momentum or more; a number, or a function of the
            step number (0 for the first step).
        momentum: share of x in y, in (0, 1).
        warmup_steps: steps of a parameter over which lr rises to its full size, a whole number
            from 0 on.
        weight_lr_power: power of the largest lr so far by which a step counts in x, >= 0.
        r: power of the step count by which it counts, >= 0; 0 counts all alike.
        weight_decay: coefficient of the L2 term, of y, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Defazio et al., "The Road Less Scheduled" (NeurIPS 2024), algorithm in section 2, as the
    authors' package schedulefree computes it; there a group counts and weighs all its steps
    together, which is up to 25 % of the way off where gradients are missing. optax agrees where
    there is no warm-up; its warm-up begins with a step of length 0, and is 4 to 17 % of the way
    off after 30 steps.
    """

    _checks = {"momentum": BETWEEN, **ScheduleFree._averages}

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        momentum: float = 0.9,
        warmup_steps: int = 0,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            warmup_steps=warmup_steps,
            weight_lr_power=weight_lr_power,
            r=r,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _beta(options: Options) -> float:
        momentum: float = options["momentum"]
        return momentum

    @staticmethod
    def _rule(options: Options) -> Rule:
        return schedule_free.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        lr, counts = ScheduleFree._warmed_up(options, lr, t)
        return {**counts, "beta": options["momentum"], "lr": lr}


# -------------------------------------------------------------------------------------------------
# ScheduleFreeAdamW: the same with the gradient over the root of its averaged square.


class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-free AdamW: Adam whose momentum is the average of its path.

    ::

        v <- beta2 * v + (1 - beta2) * grad^2            v = 0 at first
        g <- grad / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * y       y is the parameter
        s <- lr * min(1, t / warmup_steps)
        peak <- max(peak, s^weight_lr_power)             peak, total = 0 at first
        w <- t^r * peak;  total <- total + w;  c <- w / total
        z <- z - s * g                                   z, x = y at first
        x <- (1 - c) * x + c * z
        y <- beta1 * x + (1 - beta1) * z

    Here grad is the gradient at y, v the average of its squares, g the gradient over their root,
    with the decay, s the rate of the step, z the point that makes the steps, x the average of z,
    peak the largest weight by lr so far, w the weight of the newest z in x, total the sum of
    weights, and c the share of w in total. beta1 and beta2 are ``betas``.

    In training the parameters are y. **Evaluate at x**: ``with opt.eval(): ...``, see there. The
    state is v and d = z - y, whose x is y + (1 - 1 / beta1) * d: so what is written into parameters
    from outside (weights that are loaded, a projection) moves z and x along. t, peak and total are
    each array's own: they follow the steps that are made with a gradient for it.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; a constant is meant, as large as that
            of AdamW with a schedule or up to ten times as large; a number, or a function of the
            step number (0 for the first step).
        betas: share of x in y, in (0, 1); and share of the averaged squares that is kept, in
            [0, 1), or a function of the step number.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        warmup_steps: steps of a parameter over which lr rises to its full size, a whole number
            from 0 on.
        weight_lr_power: power of the largest lr so far by which a step counts in x, >= 0.
        r: power of the step count by which it counts, >= 0; 0 counts all alike.
        weight_decay: share of y that is taken off per step and unit of lr, >= 0, or a function of
            the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, stochastic_rounding, cautious,
            l1, mask_zero, complex_moment, seed, backend. It has no cautious_decay.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Defazio et al., "The Road Less Scheduled" (NeurIPS 2024), algorithm 1, as the authors'
    package schedulefree computes it: v is corrected, and the decay is that of y; there a group
    counts and weighs all its steps together, which is up to 46 % of the way off where gradients are
    missing. optax agrees where there is no warm-up; its warm-up begins with a step of length 0, and
    is 8 to 24 % of the way off after 30 steps.
    """

    _checks = {
        "betas": Pair(Schedulable(BETWEEN), BETA),
        "eps": Schedulable(EPS),
        **ScheduleFree._averages,
    }

    _lr_scalars = ("decay", "step_size")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 2.5e-3,
        *,
        betas: tuple[float, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        warmup_steps: int = 0,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            warmup_steps=warmup_steps,
            weight_lr_power=weight_lr_power,
            r=r,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _beta(options: Options) -> float:
        beta: float = options["betas"][0]
        return beta

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return schedule_free_adam.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        lr, counts = ScheduleFree._warmed_up(options, lr, t)
        # As for Adam: 1 / (sqrt(v / c2) + eps) = root / (sqrt(v) + root * eps).
        root = sqrt(one_minus_power(beta2, t))
        return {
            **counts,
            "beta": beta1,
            "one_minus_beta2": 1.0 - beta2,
            "eps": root * or_guard(options["eps"], guard),
            "decay": lr * options["weight_decay"],
            "step_size": lr * root,
        }

    @staticmethod
    def _review(options: Options) -> None:
        if callable(options["betas"][0]):
            raise ValueError(
                "ScheduleFreeAdamW: betas[0] says where the average is, as seen from the "
                f"parameters, and must be a number; got {options['betas'][0]!r}"
            )

    _smallest_denominator = staticmethod(eps_alone)
