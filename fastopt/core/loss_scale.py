"""How the scale of a loss falls and grows: the arithmetic, which a device repeats to the bit."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """A scale, the steps since it last changed, and the skips in a row at the smallest one."""

    value: float
    good_steps: int = 0
    skips: int = 0


class ScalePolicy(NamedTuple):
    """What a step makes of the scale, see ``LossScaler``."""

    growth_factor: float
    backoff_factor: float
    growth_interval: int
    min_scale: float
    max_scale: float
    max_skips: int

    def after_step(self, now: Scale) -> Scale:
        """Return the scale after a step that was made."""
        if now.good_steps + 1 >= self.growth_interval:
            return Scale(min(now.value * self.growth_factor, self.max_scale))
        return Scale(now.value, now.good_steps + 1)

    def after_skip(self, now: Scale) -> Scale:
        """Return the scale after a step that was skipped."""
        skips = now.skips + 1 if now.value == self.min_scale else 0
        return Scale(max(now.value * self.backoff_factor, self.min_scale), 0, skips)

    def given_up(self, skips: int) -> FloatingPointError:
        """Return what is raised after so many skips in a row at the smallest scale."""
        return FloatingPointError(
            f"{skips} steps in a row were skipped at the smallest scale, {self.min_scale:g}: the "
            "gradients are not finite whatever the scale. Look at the loss and at what it divides "
            "by; on_nonfinite='raise' without a scaler names the parameter."
        )
