// The scale of a loss on the device: one thread notes each decision, and follows them.
//
// The arithmetic is that of core/loss_scale.py, in float64 and in the same order. From Python: the
// fields of `scales` and `tallies`; ROW, the field of `counts`, and SKIPPED_ROW.

namespace fastopt {

struct ScalePolicy {
    double growth_factor, backoff_factor;
    long long growth_interval;
    double min_scale, max_scale;
    long long max_skips;
};

// Note whether a step was made or skipped.
__device__ __forceinline__ void note(const long long *counts, long long *tallies) {
    const long long row = counts[ROW];
    if (row == SKIPPED_ROW) tallies[SKIPPED] = 1;
    if (row >= 0) tallies[MADE] = 1;
}

// Change the scale after what was noted here, and what happened elsewhere.
__device__ __forceinline__ void rescale(
    const ScalePolicy &policy, long long made_elsewhere, long long skipped_elsewhere,
    double *scales, long long *tallies, float *singles
) {
    const bool made = made_elsewhere != 0 || tallies[MADE] != 0;
    const bool skipped = skipped_elsewhere != 0 || tallies[SKIPPED] != 0;
    double scale = scales[SCALE];
    long long good = tallies[GOOD_STEPS], skips = tallies[SKIPS];
    if (skipped) {
        skips = scale == policy.min_scale ? skips + 1 : 0;
        good = 0;
        scale *= policy.backoff_factor;
        if (scale < policy.min_scale) scale = policy.min_scale;
        if (skips >= policy.max_skips) tallies[GIVEN_UP] = skips;
    } else if (made) {
        skips = 0;
        good += 1;
        if (good >= policy.growth_interval) {
            good = 0;
            scale *= policy.growth_factor;
            if (scale > policy.max_scale) scale = policy.max_scale;
        }
    }
    const double inverse = 1.0 / scale;
    scales[SCALE] = scale;
    scales[INVERSE] = inverse;
    singles[SCALE] = static_cast<float>(scale);
    singles[INVERSE] = static_cast<float>(inverse);
    tallies[GOOD_STEPS] = good;
    tallies[SKIPS] = skips;
    tallies[MADE] = tallies[SKIPPED] = 0;
}

}  // namespace fastopt
