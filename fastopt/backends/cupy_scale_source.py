"""The CUDA C++ that lets the scale of a loss follow a step: one thread, after the decision.

The arithmetic is that of ``fastopt.scale_policy``, in float64 and in the same order.
"""

from __future__ import annotations

from string import Template
from typing import Any

from fastopt.backends.cupy_control_source import COUNTS, SKIPPED_ROW, places_of
from fastopt.backends.cupy_source import OPTIONS

SCALES = ("scale", "inverse")
"""What the loss is multiplied by, and what its gradients are; in float64, and in float32 too."""

TALLIES = ("good_steps", "skips", "given_up")
"""The steps since the scale last changed, the skips in a row at the smallest one, and how many of
those there were when they became too many (0: they have not, since the host last looked)."""

_OPERATION = Template("""
    const long long row = counts[$row];
    double scale = scales[fastopt::SCALE];
    long long good = tallies[fastopt::GOOD_STEPS], skips = tallies[fastopt::SKIPS];
    if (row == $skipped) {
        skips = scale == min_scale ? skips + 1 : 0;
        good = 0;
        scale *= backoff_factor;
        if (scale < min_scale) scale = min_scale;
        if (skips >= max_skips) tallies[fastopt::GIVEN_UP] = skips;
    } else if (row >= 0) {
        skips = 0;
        good += 1;
        if (good >= growth_interval) {
            good = 0;
            scale *= growth_factor;
            if (scale > max_scale) scale = max_scale;
        }
    }
    const double inverse = 1.0 / scale;
    scales[fastopt::SCALE] = scale;
    scales[fastopt::INVERSE] = inverse;
    singles[fastopt::SCALE] = static_cast<float>(scale);
    singles[fastopt::INVERSE] = static_cast<float>(inverse);
    tallies[fastopt::GOOD_STEPS] = good;
    tallies[fastopt::SKIPS] = skips;
    answers[place] = row >= 0;
""")

_PREAMBLE = Template("""
namespace fastopt {

$fields

}  // namespace fastopt
""")


def rescale() -> dict[str, Any]:
    """Return the arguments of the kernel that follows a decision, to be launched with one thread.

    It takes the ``counts`` of the decision, the numbers of a ScalePolicy, and the ``place`` among
    the ``answers`` where it writes whether the step was made. ``scales``, ``tallies`` and
    ``singles``, the scales in single precision, it brings up to date.
    """
    return {
        "in_params": "raw int64 counts, float64 growth_factor, float64 backoff_factor, "
        "int64 growth_interval, float64 min_scale, float64 max_scale, int64 max_skips, int64 place",
        "out_params": "raw float64 scales, raw int64 tallies, raw float32 singles, "
        "raw int64 answers",
        "operation": _OPERATION.substitute(row=COUNTS.index("row"), skipped=SKIPPED_ROW),
        "name": "fastopt_rescale",
        "preamble": _PREAMBLE.substitute(fields=places_of(SCALES, TALLIES)),
        "no_return": True,
        "options": OPTIONS,
    }
