"""The scale of a loss where a device keeps it: what the host knows of it, and when it waits."""

from __future__ import annotations

from collections.abc import Callable

from fastopt.arrays import Array
from fastopt.backends.decisions import Control
from fastopt.backends.scale_memory import Answer, ScaleMemory
from fastopt.scale_policy import Scale, ScalePolicy
from fastopt.scaled_loss import times

LOOK_EVERY = 16
"""Steps after which the device is asked, without waiting, whether it has given up."""

PREPARE = "call scaler.warmup(opt) before a step is captured in a CUDA graph"


class Stepped:
    """Whether the optimizer has stepped, where a device knows: ``bool`` of it waits for the device.

    It can be asked at any time, once or often. Raises FloatingPointError as reading the scale does,
    and RuntimeError for a step that was captured in a CUDA graph, which is many steps or none.
    """

    __hash__ = None  # type: ignore[assignment]  # it is equal to a bool, which it waits for

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._known: bool | None = None

    def __bool__(self) -> bool:
        if self._known is None:
            self._known = self._ask()
        return self._known

    def __eq__(self, other: object) -> bool:
        return bool(self) == other if isinstance(other, bool | Stepped) else NotImplemented

    def __repr__(self) -> str:
        known = "the device knows" if self._known is None else self._known
        return f"<Stepped: {known}>"


class ScaleOnDevice:
    """A scale in a device's memory, which the steps made there bring up to date."""

    def __init__(self, memory: ScaleMemory, policy: ScalePolicy, now: Scale) -> None:
        self._memory = memory
        self._policy = policy
        self._given_up = 0  # skips that somebody is still to be told of
        self._steps = 0
        self.captured = False
        """Whether replays of a CUDA graph may change the scale."""
        self._answer: Answer | None = None  # of the last step
        self._now, self._behind = now, False
        with memory.here():
            memory.send(now)

    @property
    def device(self) -> int | None:
        """The number of the device."""
        return self._memory.device

    @property
    def inverse(self) -> Array:
        """What gradients are multiplied by, on the device."""
        return self._memory.inverse

    def times(self, loss: Array, out: Array | None) -> Array:
        """Return an array of the device times the scale, see ``LossScaler.multiply``."""
        with self._memory.here():
            return times(loss, self._memory.factor, out)

    # Steps -------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Look whether the device has given up; return whether the step is being captured."""
        self._answer = None
        with self._memory.here():
            if self._memory.capturing():
                return True
            if (told := self._memory.arrived()) is not None:
                self._hear(told.given_up)
        self.refuse()
        return False

    def follow(self, control: Control) -> None:
        """Bring the scale up to date after a decision that was just launched."""
        memory = self._memory
        self.captured |= (capturing := memory.capturing())
        self._answer = memory.place_of_captured if capturing else memory.place()
        control.rescale(memory, self._answer)
        self._behind = True
        self._steps += 1
        if self._steps % LOOK_EVERY == 0 and not capturing:
            memory.request()

    def answer(self, settle: Callable[[], object]) -> bool | Stepped:
        """Return whether the step since ``begin`` was made, or what knows it."""
        answer = self._answer
        if answer is None:
            return False

        def ask() -> bool:
            if answer is self._memory.place_of_captured:
                raise RuntimeError(
                    "this step was captured in a CUDA graph, and is made when that is launched; "
                    "read opt.step_count and opt.skipped_steps then"
                )
            settle()
            return self._memory.answer(answer)

        return Stepped(ask)

    # What the device says ----------------------------------------------------------------------

    def now(self) -> Scale:
        """Return the scale; waits for the device if a step was made since."""
        self.refuse_capture()  # whatever is captured would keep what is returned
        if self._behind:
            with self._memory.here():
                told = self._memory.fetch()
                self._now, self._behind = told.scale, self.captured
                self._hear(told.given_up)
        return self._now

    def refuse(self) -> None:
        """Raise FloatingPointError, once, if too many steps in a row were skipped."""
        skips, self._given_up = self._given_up, 0
        if skips:
            raise self._policy.given_up(skips)

    def write(self, now: Scale) -> None:
        """Go on from another scale; waits for the device."""
        with self._memory.here():
            self._memory.fetch()  # nothing older is on its way after that
            self._memory.send(now)
        self._now, self._behind, self._given_up = now, self.captured, 0

    def refuse_capture(self) -> None:
        """Raise RuntimeError while a stream is captured."""
        with self._memory.here():
            if self._memory.capturing():
                raise RuntimeError(
                    "the scale of the loss cannot be read or set while a stream is captured in a "
                    "CUDA graph; do it before or after"
                )

    def _hear(self, given_up: int) -> None:
        if given_up:
            self._given_up = given_up
            self._memory.forget_given_up()


Scaling = ScaleOnDevice | None
"""The scale of a loss that follows a step, if there is one on the device that decides on it."""
