"""Faults of the kind that an engineer makes, and the tests that must notice each of them."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A ``text`` that stands once in ``file`` is replaced; then one of ``tests`` must fail."""

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


ARRAYS, TREE, NORMS = "fastopt/core/arrays.py", "fastopt/core/tree.py", "fastopt/core/norms.py"
CODES, BUCKETS = "fastopt/core/quantization.py", "fastopt/core/buckets.py"
GROUPS, HYPER = "fastopt/core/param_groups.py", "fastopt/core/hyperparameters.py"
STEP, TABLES = "fastopt/engine/step.py", "fastopt/engine/tables.py"
SCALARS = "fastopt/engine/scalars.py"
TRANSFORMS, TRANSFORMS_TESTS = "fastopt/engine/transforms.py", "tests/engine/test_transforms.py"
DECOUPLED_TESTS = "tests/optimizers/test_decoupled_lr.py"
DEVICE, POLICY = "fastopt/engine/device.py", "fastopt/engine/policy.py"
STATE, FILE = "fastopt/checkpoint/state_dict.py", "fastopt/checkpoint/file.py"
PIECES_TESTS = "tests/checkpoint/test_pieces.py"
AVERAGING = "fastopt/wrappers/averaging.py"
BY_VALUE = "kernels/fastopt_kernels/around/clip_value.py"
EACH = "kernels/fastopt_kernels/around/clip_each.py"
VALUE_TESTS, EACH_TESTS = (
    "tests/optimizers/test_clip_value.py",
    "tests/optimizers/test_clip_each.py",
)
DECAY, DECAY_TESTS = (
    "kernels/fastopt_kernels/around/cautious_decay.py",
    "tests/optimizers/test_cautious_decay.py",
)
L1, L1_TESTS = "kernels/fastopt_kernels/around/l1.py", "tests/optimizers/test_l1.py"
NUMPY, NUMBA = "fastopt/backends/numpy/backend.py", "fastopt/backends/numba/backend.py"
MEMBERS, MEMBERS_TESTS = "fastopt/engine/members.py", "tests/engine/test_members.py"
EXPLAIN, WATCH = "fastopt/optimizers/explain.py", "fastopt/viz/watch.py"
EXPLAIN_TESTS, WATCH_TESTS = "tests/optimizers/test_explain.py", "tests/viz/test_watch.py"
NUMBA_TEXT = "fastopt/backends/numba/codegen.py"
RANDOM_BITS = (
    "tests/core/test_state_dtype.py::test_every_element_is_rounded_by_random_bits_of_its_own"
)
WITHIN = (
    "tests/core/test_aliasing.py::"
    "test_a_gradient_shares_memory_with_a_parameter_that_lies_within_another"
)
FUSED_PASSES = (
    "tests/backends/test_fused_passes.py::test_one_call_ends_in_the_bits_of_one_pass_after_another",
)
FLUSHED = (
    "tests/optimizers/test_hyperparameters.py::"
    "test_n8_state_is_flushed_where_it_is_nothing_beside_the_smallest_denominator"
)

BASE, SHARDED = "fastopt/distributed/base.py", "fastopt/distributed/sharded.py"
SUMS, RANKS = "fastopt/distributed/sums.py", "fastopt/distributed/ranks.py"
WORLDS = ("tests/distributed/test_world_sizes.py::test_runs_end_in_the_bits_of_an_accumulator",)
ONE_BY_ONE = (
    "tests/distributed/test_rank_faults.py::test_a_fault_on_one_rank_changes_nothing_on_any",
)
SAME_FILE = (
    "tests/distributed/test_shared_checkpoints.py::"
    "test_the_bytes_are_those_of_one_process_whose_file_goes_on_in_its_bits",
)

FAULTS = (
    # core: where arrays lie in memory
    Fault(
        "an_array_that_overlaps_itself_only_if_it_is_broadcast",
        ARRAYS,
        "            if stride < reach:",
        "            if stride == 0:",
        ("tests/core/test_arrays.py::test_a2_a_parameter_that_overlaps_itself_is_refused",),
    ),
    Fault(
        "runs_that_go_round_the_period_end_at_its_end",
        ARRAYS,
        "            yield 0, last - period",
        "            yield 0, 0",
        ("tests/core/test_aliasing.py",),
    ),
    Fault(
        "extents_that_nest_are_not_looked_through",
        ARRAYS,
        "np.maximum.accumulate(high) if len(high) else high",
        "high",
        (
            "tests/core/test_aliasing.py::"
            "test_a_gradient_shares_memory_with_a_parameter_that_reaches_over_another",
        ),
    ),
    Fault(
        "axes_that_run_backwards_come_last",
        ARRAYS,
        "key=lambda axis: -abs(strides[axis])",
        "key=lambda axis: -strides[axis]",
        ("tests/core/test_layouts.py::test_an_array_without_gaps_is_updated_without_a_copy",),
    ),
    # core: trees
    Fault(
        "an_empty_branch_counts_as_frozen",
        TREE,
        "return bool(found) and ignored.issuperset(found)",
        "return ignored.issuperset(found)",
        ("tests/core/test_trainable.py::test_an_empty_branch_is_held_too",),
    ),
    Fault(
        "every_group_is_taken_for_one_leaf",
        TREE,
        "            start += part.num_leaves",
        "            start += 1",
        ("tests/core/test_trainable.py", "tests/core/test_arrays.py"),
    ),
    # core: norms
    Fault(
        "arrays_are_not_filled_up_to_whole_tiles",
        NORMS,
        "            values[part.size :] = 0.0\n",
        "",
        ("tests/core/test_clip_functions.py::test_the_norm_has_the_bits_of_an_optimizers",),
    ),
    Fault(
        "sums_that_overflow_are_not_taken_again",
        NORMS,
        "    if total == math.inf:",
        "    if math.isnan(total):",
        (
            "tests/engine/test_max_grad_norm.py::"
            "test_a_norm_does_not_overflow_or_underflow_where_it_is_a_number",
        ),
    ),
    Fault(
        "only_a_sum_of_nothing_has_lost_squares",
        NORMS,
        "    elif total < TOO_SMALL:",
        "    elif total == 0.0:",
        (
            "tests/engine/test_max_grad_norm.py::"
            "test_a_norm_does_not_overflow_or_underflow_where_it_is_a_number",
        ),
    ),
    # core: state in few bits
    Fault(
        "a_positive_average_may_become_0",
        CODES,
        "        codes = np.maximum(codes, values >= _NORMAL)",
        "        codes = np.maximum(codes, 0)",
        ("tests/core/test_quantization.py",),
    ),
    Fault(
        "the_scale_of_a_block_is_rounded_down",
        CODES,
        "np.clip(largest + _u32(0x7FFFF) >> 23, _u32(27), _u32(253))",
        "np.clip(largest >> 23, _u32(27), _u32(253))",
        ("tests/core/test_quantization.py",),
    ),
    Fault(
        "negative_numbers_are_rounded_to_odd_as_positive_ones",
        CODES,
        "(np.abs(back) > np.abs(values))",
        "(back > values)",
        ("tests/checkpoint/test_convert.py::test_beside_a_tie_the_nearer_neighbour_is_taken",),
    ),
    # core: buckets
    Fault(
        "step_counts_stay_even_whatever_is_missing",
        BUCKETS,
        "        if len(self.steps) > 1 and (active is not None or not self.steps_equal):",
        "        if len(self.steps) > 1 and not self.steps_equal:",
        (
            "tests/optimizers/test_formulas.py::test_f8_each_parameter_has_a_first_gradient_of_its_own",
        ),
    ),
    Fault(
        "step_counts_that_are_loaded_are_even",
        BUCKETS,
        "        self.steps[index] = step\n        self._compare_steps()",
        "        self.steps[index] = step",
        ("tests/checkpoint/test_state_dict.py",),
    ),
    Fault(
        "gradients_are_missing_if_all_are",
        BUCKETS,
        "        if not complete and any(grad is None for grad in given):",
        "        if not complete and all(grad is None for grad in given):",
        (
            "tests/optimizers/test_formulas.py::test_f8_each_parameter_has_a_first_gradient_of_its_own",
        ),
    ),
    # core: parameter groups
    Fault(
        "two_stars_stand_for_no_level_at_the_end",
        GROUPS,
        "for skipped in range(len(name) + 1))",
        "for skipped in range(len(name)))",
        ("tests/core/test_groups.py::test_a_pattern_stands_for",),
    ),
    Fault(
        "a_rate_is_not_reviewed_after_other_settings_changed",
        GROUPS,
        "        self._reviewed_rate, self._reviewed_schedule = None, -1.0",
        "        self._reviewed_schedule = -1.0",
        (
            "tests/optimizers/test_hyperparameters.py::"
            "test_a_rate_that_float32_does_not_hold_is_refused_whatever_was_reviewed_before",
        ),
    ),
    Fault(
        "settings_of_a_group_that_changed_less_often_go_unnoticed",
        GROUPS,
        "        self.changes.besides_lr += 1",
        "        self.changes.besides_lr = max(self.changes.besides_lr, self.revision)",
        (
            "tests/core/test_trainable.py::"
            "test_a_group_is_frozen_whose_settings_have_changed_less_often_than_others",
        ),
    ),
    # core: hyperparameters
    Fault(
        "bounds_are_rounded_outwards",
        HYPER,
        "rounded < values if towards > 0 else rounded > values",
        "rounded > values if towards > 0 else rounded < values",
        ("tests/optimizers/test_bounds.py::test_in_every_dtype_nothing_is_outside",),
    ),
    Fault(
        "coefficients_are_looked_at_in_the_first_step_alone",
        HYPER,
        "    for t in (1, _LATE):",
        "    for t in (1,):",
        ("tests/engine/test_overflow.py::test_a_coefficient_that_float32_has_not_is_refused",),
    ),
    # core: the scale of a loss, signals
    Fault(
        "the_scale_grows_a_step_late",
        "fastopt/core/loss_scale.py",
        "now.good_steps + 1 >= self.growth_interval",
        "now.good_steps >= self.growth_interval",
        ("tests/wrappers/test_loss_scaler.py::test_scale_and_steps_are_those_of_pytorch",),
    ),
    Fault(
        "an_interrupt_that_was_held_back_is_lost",
        "fastopt/core/signals.py",
        "                raise_signal(self._number)",
        "                pass",
        ("tests/checkpoint/test_atomic_file.py::test_signals_wait_until_the_file_is_in_place",),
    ),
    # engine
    Fault(
        "squares_overflow_by_the_norm_before_clipping",
        POLICY,
        "norm * factor >= SQUARES_OVERFLOW",
        "norm >= SQUARES_OVERFLOW",
        ("tests/engine/test_overflow.py::test_what_counts_is_the_norm_after_scale_and_clipping",),
    ),
    Fault(
        "groups_are_frozen_once_and_for_all",
        STEP,
        "        if frozen != self._frozen:",
        "        if self._frozen is None:",
        ("tests/core/test_trainable.py::test_one_array_is_frozen_and_trained_again",),
    ),
    Fault(
        "scalars_of_a_schedule_are_kept",
        SCALARS,
        "None if always else self._settings",
        "self._group.revision",
        ("tests/engine/test_scheduled_hyperparameters.py",),
    ),
    Fault(
        "scalars_are_kept_though_a_setting_changes",
        SCALARS,
        "        if self._prepared_for != self._settings or",
        "        if self._prepared_for is None or",
        ("tests/engine/test_scheduled_hyperparameters.py",),
    ),
    Fault(
        "parameters_share_the_row_of_the_first",
        SCALARS,
        "            rows[i] = number_of.setdefault(int(bucket.steps[i]), len(number_of))",
        "            number_of.setdefault(int(bucket.steps[i]), len(number_of))",
        ("tests/optimizers/test_vectors.py",),
    ),
    Fault(
        "rows_come_again_where_only_some_groups_are_scheduled",
        TABLES,
        "        if any(group.scheduled for group in self._state.groups):",
        "        if all(group.scheduled for group in self._state.groups):",
        (
            "tests/cuda/test_on_device.py::"
            "test_a_schedule_of_one_group_that_turns_later_is_followed",
        ),
    ),
    Fault(
        "parameters_that_missed_steps_take_the_rows_of_the_others",
        TABLES,
        "        return self.scalars.row_at(step_count, self.lag)",
        "        return self.scalars.row_at(step_count, 0)",
        (
            "tests/cuda/test_on_device.py::"
            "test_so_they_do_with_schedules_and_gradients_that_are_missing_for_a_while",
        ),
    ),
    Fault(
        "steps_since_the_counts_were_asked_for_are_forgotten",
        DEVICE,
        "            self.high = counts.steps + self._since_request",
        "            self.high = counts.steps",
        ("tests/cuda/test_on_device.py::test_a_hundred_steps_wait_for_nothing",),
    ),
    # checkpoint
    Fault(
        "the_step_count_is_not_taken_over",
        STATE,
        "            state.counts.steps[0] = step_count\n",
        "",
        ("tests/checkpoint/test_state_dict.py::test_a_schedule_goes_on_where_it_was",),
    ),
    Fault(
        "a_hash_is_there_and_not_compared",
        FILE,
        "    if digest != sha:",
        "    if not sha:",
        ("tests/checkpoint/test_damage.py",),
    ),
    Fault(
        "two_names_alike_and_no_more",
        FILE,
        "        while key in self.arrays:",
        "        if key in self.arrays:",
        ("tests/checkpoint/test_save_load.py::test_names_that_are_written_alike_are_told_apart",),
    ),
    Fault(
        "arrays_of_one_byte_are_laid_out_in_another_order",
        FILE,
        '    *("I8", "U8", "BOOL"),',
        '    *("U8", "I8", "BOOL"),',
        (f"{PIECES_TESTS}::test_a_file_is_laid_out_as_safetensors_does_it",),
    ),
    Fault(
        "a_piece_may_leave_a_gap",
        FILE,
        "                if offset != done or done + len(data) > place.size:",
        "                if done + len(data) > place.size:",
        (f"{PIECES_TESTS}::test_pieces_in_another_order_are_an_error_that_says_which",),
    ),
    Fault(
        "a_manifest_that_is_an_array_keeps_the_room_for_its_hashes",
        FILE,
        "for at, content in ((at_text, self._text), (0, self._start)):",
        "for at, content in ((0, self._start),):",
        (f"{PIECES_TESTS}::test_a_run_in_pieces_is_the_same_file_and_loads",),
    ),
    Fault(
        "what_came_in_pieces_is_read_back_and_not_compared",
        FILE,
        "else _digest(file, place.size) == self._hashes[place.key]",
        "else bool(_digest(file, place.size))",
        (f"{PIECES_TESTS}::test_what_reads_back_as_something_else_does_not_replace_the_old_file",),
    ),
    Fault(
        "an_error_of_another_process_is_taken_for_one_of_the_file",
        FILE,
        "if error.filename is None and error is not content.raised:",
        "if error.filename is None:",
        (f"{PIECES_TESTS}::test_what_the_pieces_raise_goes_through_as_it_is",),
    ),
    Fault(
        "arrays_in_a_file_need_not_follow_one_another",
        FILE,
        "        if begin != at or end < begin:",
        "        if end < begin:",
        (f"{PIECES_TESTS}::test_a_header_that_does_not_fit_is_told_by_what_is_wrong",),
    ),
    # rows
    Fault(
        "a_row_that_comes_three_times_counts_twice",
        "fastopt/core/rows.py",
        "for k in range(1, counts.max(initial=0)):",
        "for k in range(1, min(2, counts.max(initial=0))):",
        ("tests/engine/test_rows.py::test_gradients_of_one_row_are_added_in_their_order",),
    ),
    Fault(
        "steps_of_rows_are_not_counted",
        "fastopt/engine/rows.py",
        "        self.whole.advance([self.place], 1)\n",
        "",
        ("tests/engine/test_rows.py::test_pytorchs_sparse_gradients",),
    ),
    Fault(
        "bounds_of_rows_stay_behind",
        "fastopt/engine/rows.py",
        "        for name, row in self.bucket.arena.rows.items():",
        "        for name in self.bucket.rule.state:\n"
        "            row = self.bucket.arena.rows[name]",
        ("tests/engine/test_rows.py::test_constants_of_rows_go_with_them",),
    ),
    Fault(
        "the_norm_leaves_rows_out",
        STEP,
        "        return parts + [Measured(one.bucket, one.kernel, one.gradients) for one in some]",
        "        return parts",
        ("tests/engine/test_rows.py::test_a_first_step_is_that_of_the_dense_gradient",),
    ),
    Fault(
        "rows_take_the_state_of_the_first_table",
        NUMBA,
        "PARAM=parameter.flat, OFFSET=parameter.offset)",
        "PARAM=parameter.flat, OFFSET=0)",
        ("tests/engine/test_rows.py::test_tables_side_by_side_are_as_each_alone",),
    ),
    Fault(
        "compiled_sums_of_rows_leave_the_last_out",
        "fastopt/backends/numba/compiled.py",
        "for place in range(i + 1, after):",
        "for place in range(i + 1, max(after - 1, i + 2)):",
        ("tests/engine/test_rows.py::test_numba_lays_rows_out_as_numpy_does",),
    ),
    # wrappers
    Fault(
        "the_warmup_of_an_average_has_no_end",
        AVERAGING,
        "return min(self._decay, n / (9 + n)) if self._warmup else self._decay",
        "return n / (9 + n) if self._warmup else self._decay",
        ("tests/wrappers/test_ema.py::test_the_warmup_is_that_of_its_formula",),
    ),
    Fault(
        "a_skipped_step_counts_for_lookahead",
        AVERAGING,
        "            if outcome:",
        "            if outcome is not None:",
        ("tests/wrappers/test_lookahead.py::test_a_skipped_step_does_not_count",),
    ),
    Fault(
        "averages_stay_where_members_were",
        "fastopt/wrappers/base.py",
        "        if tree.selections != self._tree.selections:",
        "        if len(tree.selections) < len(self._tree.selections):",
        (
            "tests/engine/test_members.py::"
            "test_averages_and_slow_weights_go_along_with_their_members",
        ),
    ),
    Fault(
        "the_mean_is_over_as_many_as_there_should_be",
        "fastopt/wrappers/accumulator.py",
        "1.0 / (weight + (weight == 0.0))",
        "1.0 / self._every",
        ("tests/wrappers/test_accumulator.py::test_flush_steps_with_the_mean_of_what_is_there",),
    ),
    Fault(
        "the_scale_falls_if_all_have_skipped",
        "fastopt/wrappers/loss_scaler.py",
        "after_step(now) if all(made) else",
        "after_step(now) if any(made) else",
        (
            "tests/wrappers/test_loss_scaler.py::"
            "test_the_scale_falls_if_any_optimizer_of_the_iteration_skipped_and_stays_until_then",
        ),
    ),
    # schedules
    Fault(
        "reports_after_a_reduction_are_counted_as_bad",
        "fastopt/schedules/plateau.py",
        "            cooling, bad = cooling - 1, 0",
        "            cooling = cooling - 1",
        ("tests/schedules/test_plateau.py::test_the_learning_rate_falls_as_pytorchs",),
    ),
    Fault(
        "a_milestone_counts_from_the_step_after_it",
        "fastopt/schedules/functions.py",
        "bisect_right(self.milestones, step)",
        "bisect_right(self.milestones, step - 1)",
        ("tests/schedules/test_schedules.py::test_a_schedule_equals_the_oracle",),
    ),
    # decay
    Fault(
        "a_parameter_of_0_or_a_step_of_0_is_against_decay",
        DECAY,
        "((after <= decayed) & (before >= 0)) | ((after >= decayed) & (before <= 0))",
        "((after < decayed) & (before > 0)) | ((after > decayed) & (before < 0))",
        (f"{DECAY_TESTS}::test_some_decay_and_some_do_not",),
    ),
    Fault(
        "compiled_code_decays_where_the_step_is_away_from_0",
        DECAY,
        "(after <= decayed and before >= 0) or (after >= decayed and before <= 0)",
        "(after >= decayed and before >= 0) or (after <= decayed and before <= 0)",
        (f"{DECAY_TESTS}::test_it_is_decay_where_the_update_agrees",),
    ),
    Fault(
        "what_has_not_decayed_is_rounded_once_more",
        DECAY,
        "return np.where(shrinks | (decayed == before), after,",
        "return np.where(shrinks, after,",
        (f"{DECAY_TESTS}::test_where_nothing_has_decayed_nothing_is_rounded",),
    ),
    Fault(
        "an_l1_goes_past_0",
        L1,
        "shrunk = np.where(after < -l1, after + l1, after - after)",
        "shrunk = np.where(after < 0, after + l1, after - after)",
        (f"{L1_TESTS}::test_it_is_a_step_and_then_a_proximal_one",),
    ),
    Fault(
        "an_l1_makes_0_of_nan",
        L1,
        "shrunk = after + l1 if after < -l1 else after - after",
        "shrunk = after + l1 if after < -l1 else l1 - l1",
        (f"{L1_TESTS}::test_nan_stays_and_the_edge_becomes_0",),
    ),
    Fault(
        "an_l1_is_not_multiplied_by_the_learning_rate",
        SCALARS,
        "options[name] * rate if name in fragment.lr_scalars else options[name]",
        "options[name]",
        (f"{L1_TESTS}::test_it_goes_by_schedules_of_lr_and_by_lr_scale",),
    ),
    Fault(
        "an_l1_keeps_the_learning_rate_that_it_began_with",
        SCALARS,
        "by_rate = decays or any(fragment.lr_scalars for fragment in spec.fragments)",
        "by_rate = decays",
        (f"{L1_TESTS}::test_a_learning_rate_that_is_set_between_steps_is_followed",),
    ),
    # clipping
    Fault(
        "nan_is_cut_off",
        BY_VALUE,
        "np.minimum(np.maximum(grad, -clip_value), clip_value)",
        "np.fmin(np.fmax(grad, -clip_value), clip_value)",
        (f"{VALUE_TESTS}::test_nan_stays_and_infinity_is_cut_off",),
    ),
    Fault(
        "compiled_code_cuts_off_above_alone",
        BY_VALUE,
        "    raised = -clip_value if grad < -clip_value else grad",
        "    raised = grad",
        (f"{VALUE_TESTS}::test_it_is_a_step_with_gradients_that_were_cut_off_before",),
    ),
    Fault(
        "short_gradients_are_scaled_up",
        EACH,
        "1.0 if factor > 1.0 or limit == inf else factor",
        "1.0 if limit == inf else factor",
        (f"{EACH_TESTS}::test_what_is_not_finite_is_as_with_pytorch",),
    ),
    Fault(
        "an_infinite_limit_makes_nan",
        EACH,
        "if factor > 1.0 or limit == inf else",
        "if factor > 1.0 else",
        (f"{VALUE_TESTS}::test_it_is_not_turned_on_or_off_in_use_and_the_advice_helps",),
    ),
    Fault(
        "nan_is_no_reason_to_scale",
        EACH,
        "1.0 if factor > 1.0 or limit == inf else factor",
        "factor if factor < 1.0 else 1.0",
        (f"{EACH_TESTS}::test_what_is_not_finite_is_as_with_pytorch",),
    ),
    Fault(
        "nothing_is_added_to_the_norm_of_an_array",
        EACH,
        '(sqrt(sums["squares"]) + 1e-6)',
        '(sqrt(sums["squares"]) + 1e-12)',
        (f"{EACH_TESTS}::test_what_comes_before_it_and_after_it",),
    ),
    Fault(
        "squares_are_summed_as_they_are",
        EACH,
        '        squared=("squares",),\n',
        "",
        (f"{EACH_TESTS}::test_what_comes_before_it_and_after_it",),
    ),
    Fault(
        "clipping_sees_the_l2_term",
        "fastopt/backends/numba/codegen.py",
        '    yield "grad = plain_grad"\n    for fragment in fragments:',
        '    yield "grad = plain_grad + l2 * param"\n    for fragment in fragments:',
        (f"{VALUE_TESTS}::test_what_comes_before_it_and_after_it",),
    ),
    Fault(
        "a_fragment_gets_the_inputs_of_the_rule",
        "fastopt/core/passes.py",
        "        given, inputs = inputs, inputs + len(memory.inputs)",
        "        given, inputs = 0, inputs + len(memory.inputs)",
        (f"{EACH_TESTS}::test_it_is_a_step_with_gradients_that_were_scaled_before",),
    ),
    Fault(
        "what_is_off_is_turned_on_in_use",
        "fastopt/engine/build.py",
        "        if (group[name] is None) != (options[name] is None):",
        "        if group[name] is not None and options[name] is None:",
        (f"{VALUE_TESTS}::test_it_is_not_turned_on_or_off_in_use_and_the_advice_helps",),
    ),
    # whole gradients
    Fault(
        "small_parameters_have_the_norm_that_they_have",
        TRANSFORMS,
        "xp.maximum(_norms(param, units), EPS)",
        "_norms(param, units)",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "gradients_are_clipped_as_if_they_were_not_scaled",
        TRANSFORMS,
        "(abs(grad_scale) * _norms(grad, units))",
        "_norms(grad, units)",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "all_rows_of_a_member_are_one_unit",
        TRANSFORMS,
        "by_row = grad.ndim - self.members >= 2",
        "by_row = grad.ndim >= 2 and not self.members",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "the_last_rows_of_many_are_left_as_they_are",
        TRANSFORMS,
        "for start in range(0, len(grad), rows)]",
        "for start in range(0, len(grad) - rows + 1, rows)]",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "half_precision_is_rounded_on_the_way",
        TRANSFORMS,
        "                grad = grad.astype(np.float32)  # in which it is read",
        "                pass",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "gradients_that_are_parameters_are_taken",
        TRANSFORMS,
        "        extents.check_apart(grad, path)\n",
        "",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "some_gradients_that_are_others_now_are_taken_for_replaced_buffers",
        STEP,
        "buffers = self._buffers if self.transforms is None else None",
        "buffers = self._buffers",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "gradients_are_made_anew_after_the_options_were_taken_back",
        STEP,
        "        self.transforms = transforms_of(state, self.extents)\n",
        "        self.transforms = self.transforms or transforms_of(state, self.extents)\n",
        (TRANSFORMS_TESTS,),
    ),
    Fault(
        "decay_that_is_the_share_of_a_step_is_checked_as_a_share_per_rate",
        HYPER,
        "    numbers = with_decay(_numbers(options))\n    with np.errstate",
        "    numbers = _numbers(options)\n    with np.errstate",
        (DECOUPLED_TESTS,),
    ),
    # backends
    Fault(
        "negative_averages_are_flushed_whole",
        "fastopt/core/denormals.py",
        "(np.abs(values) if signed else values) < tiny",
        "values < tiny",
        ("tests/optimizers/test_vectors.py",),
    ),
    Fault(
        "a_gradient_that_is_part_of_a_parameter_is_taken",
        "fastopt/core/arrays.py",
        "            return owners.keys().isdisjoint(map(id, grads))",
        "            return True",
        (
            "tests/backends/test_prepared_steps.py::"
            "test_a_gradient_that_shares_memory_with_a_parameter_is_refused",
        ),
    ),
    Fault(
        "a_gradient_that_is_a_view_is_not_looked_at",
        "fastopt/core/arrays.py",
        "            if before >= 0 and self._highs[before] > low:\n                return False",
        "            if before >= 0 and self._highs[before] > high:\n                return False",
        (
            "tests/backends/test_prepared_steps.py::"
            "test_a_gradient_that_shares_memory_with_a_parameter_is_refused",
        ),
    ),
    Fault(
        "a_parameter_that_was_moved_is_written_where_it_was",
        "fastopt/backends/numpy/fused.py",
        "            and [*map(_VALUE, self._words)] == self._at\n",
        "",
        (
            "tests/backends/test_prepared_steps.py::"
            "test_parameters_that_have_changed_are_left_to_the_general_way",
        ),
    ),
    Fault(
        "prepared_steps_scale_the_gradient_alone",
        "fastopt/backends/numpy/fused.py",
        "            self._row[0] *= self._real.type(scale)  # what stands there is 1 or -1",
        "            self._row[:2] *= self._real.type(scale)",
        ("tests/backends/test_prepared_steps.py::test_random_histories_end_in_the_same_bits",),
    ),
    Fault(
        "compiled_code_flushes_negative_averages_whole",
        "fastopt/backends/numba/codegen.py",
        "zero if abs({slot}) < {least}",
        "zero if {slot} < {least}",
        ("tests/backends/test_same_bits.py::test_small_arrays_end_in_the_same_bits",),
    ),
    Fault(
        "sums_of_more_tiles_than_lanes_are_lost",
        "fastopt/backends/numba/compiled.py",
        "sums[k] if tile < LANES else lanes[tile % LANES] + sums[k]",
        "sums[k]",
        FUSED_PASSES,
    ),
    Fault(
        "a_step_in_one_call_reads_the_scalars_of_a_step_before",
        NUMBA,
        "            job.set(DERIVED=self.derived)\n",
        "",
        FUSED_PASSES,
    ),
    Fault(
        "all_arrays_take_the_memory_of_the_first",
        NUMBA,
        "[(n, first + step * k, inputs, value, k, k + 1) for k, n in enumerate(sizes)]",
        "[(n, first, inputs, value, k, k + 1) for k, n in enumerate(sizes)]",
        FUSED_PASSES,
    ),
    Fault(
        "the_passes_of_a_step_in_one_call_are_left_out",
        "fastopt/backends/numba/compiled.py",
        "    _make_passes(pool, program)\n    for bucket in range(buckets):\n",
        "    for bucket in range(buckets):\n",
        FUSED_PASSES,
    ),
    Fault(
        "the_end_of_a_tile_is_summed_in_one_lane",
        "fastopt/backends/numba/compiled.py",
        "                lane[j % LANES] += value * value",
        "                lane[0] += value * value",
        (
            "tests/engine/test_max_grad_norm.py::"
            "test_the_norm_is_exact_to_float64_and_the_same_bits_on_every_backend",
        ),
    ),
    # what earlier tests did not see, and more of its kind
    Fault(
        "rows_of_an_earlier_step_are_left_over",
        NUMBA,
        "            self._rows[:] = 0\n",
        "",
        ("tests/backends/test_random_histories.py::test_nothing_is_left_over",),
    ),
    Fault(
        "the_table_of_an_earlier_step_is_left_over",
        NUMBA,
        "            job.set(TABLE=self._table, ROWS=self._members or 1, VARIES=self._varies)\n",
        "",
        ("tests/backends/test_random_histories.py::test_nothing_is_left_over",),
    ),
    Fault(
        "warming_up_updates_with_the_last_gradients",
        NUMBA,
        "            gradients = Gradients(nothing, own.compiled.gradient, [])",
        "            gradients = Gradients(nothing, own.compiled.gradient, [], self._grads.copy())",
        (
            "tests/backends/test_random_histories.py::test_warming_up_changes_nothing_whatever_has_happened",
        ),
    ),
    Fault(
        "random_bits_come_again_in_every_chunk_on_numpy",
        NUMPY,
        "(place.start + parameter.stream, self.param.size)",
        "(parameter.stream, self.param.size)",
        (RANDOM_BITS,),
    ),
    Fault(
        "random_bits_come_again_in_every_chunk_on_numba",
        NUMBA_TEXT,
        "('STREAM')}, leaf] + start)",
        "('STREAM')}, leaf])",
        (RANDOM_BITS,),
    ),
    Fault(
        "random_bits_come_again_in_every_block_of_8_bits_on_numba",
        NUMBA_TEXT,
        "place = u32(counter + u32(block_begin))",
        "place = u32(counter)",
        (RANDOM_BITS,),
    ),
    Fault(
        "random_bits_come_again_in_every_block_on_cupy",
        "fastopt/backends/cupy/source.py",
        "(streams[which] + start) % 2**32",
        "streams[which] % 2**32",
        (RANDOM_BITS,),
    ),
    Fault(
        "parameters_that_are_gathered_share_random_bits",
        NUMPY,
        "tuple((parameters[i].stream, parameters[i].size) for i in indices)",
        "tuple((parameters[self.first].stream, parameters[i].size) for i in indices)",
        ("tests/core/test_state_dtype.py::test_both_backends_end_in_the_same_bits",),
    ),
    Fault(
        "the_nearest_parameter_alone_is_compared_with_a_gradient",
        ARRAYS,
        "                )\n            position -= 1",
        "                )\n            position = -1",
        (WITHIN,),
    ),
    Fault(
        "parameters_that_begin_within_a_gradient_are_not_looked_at",
        ARRAYS,
        "        position = bisect_left(self._lows, high) - 1",
        "        position = bisect_left(self._lows, low + 1) - 1",
        (WITHIN,),
    ),
    Fault(
        "compiled_code_sees_no_parameter_that_begins_within_a_gradient",
        "fastopt/backends/numba/headers.py",
        "np.searchsorted(low, data + nbytes) - 1",
        "np.searchsorted(low, data) - 1",
        (
            "tests/core/test_aliasing.py::"
            "test_a_gradient_that_reaches_into_a_parameter_or_out_of_it_is_refused",
        ),
    ),
    Fault(
        "compiled_norms_keep_squares_that_are_denormal",
        "fastopt/backends/numba/compiled.py",
        "        if not TOO_SMALL <= total < np.inf:",
        "        if not 0.0 < total < np.inf:",
        (
            "tests/engine/test_max_grad_norm.py::"
            "test_a_norm_does_not_overflow_or_underflow_where_it_is_a_number",
        ),
    ),
    Fault(
        "norms_of_single_arrays_keep_squares_that_are_denormal",
        NORMS,
        "(1.0 / SMALLER, found < TOO_SMALL)",
        "(1.0 / SMALLER, found == 0.0)",
        (
            "tests/engine/test_max_grad_norm.py::"
            "test_norms_of_single_arrays_neither_overflow_nor_underflow",
        ),
    ),
    Fault(
        "norms_on_a_device_keep_squares_that_are_denormal",
        "fastopt/backends/cupy/decide.cuh",
        "(large || sum < TOO_SMALL)",
        "(large || sum == 0)",
        ("tests/cuda/test_on_device.py::test_a_norm_in_float64_is_numpys_however_large_or_small",),
    ),
    Fault(
        "bounds_that_are_arrays_are_set_without_effect",
        "fastopt/engine/build.py",
        "    if kinds[0] != kinds[1] or not same_arrays:",
        "    if kinds[0] != kinds[1]:",
        (
            "tests/optimizers/test_bounds.py::"
            "test_bounds_that_are_arrays_are_kept_or_refused_and_never_without_effect",
        ),
    ),
    Fault(
        "the_floor_of_positive_state_is_not_squared",
        "fastopt/core/denormals.py",
        "min(highest, floor * floor * square)",
        "min(highest, floor * square)",
        (FLUSHED,),
    ),
    Fault(
        "signed_state_is_flushed_by_the_highest_threshold_alone",
        "fastopt/core/denormals.py",
        "max(min(highest, floor * 2.0**-60), lowest)",
        "max(highest, lowest)",
        (FLUSHED,),
    ),
    Fault(
        "the_floor_of_an_eps_inside_the_root_is_no_root",
        "fastopt/optimizers/common.py",
        'return sqrt(eps) if options["eps_inside_sqrt"] else eps',
        "return eps",
        (FLUSHED,),
    ),
    Fault(
        "a_rate_is_set_group_by_group",
        GROUPS,
        '            checked = [group.checked({"lr": rate}) for group in self]',
        '            checked = [{"lr": rate} for group in self]',
        (
            "tests/optimizers/test_hyperparameters.py::"
            "test_a_rate_that_one_group_refuses_is_set_in_none",
        ),
    ),
    Fault(
        "a_rate_is_set_in_the_groups_before_one_that_has_to_review_it",
        GROUPS,
        "        if all(group.takes_rate(rate) for group in self):",
        "        if self[0].takes_rate(rate):",
        (
            "tests/optimizers/test_hyperparameters.py::test_a_rate_that_one_group_refuses_is_set_in_none",
        ),
    ),
    Fault(
        "a_manifest_without_a_sha256_is_believed",
        FILE,
        "    if digest != sha:",
        "    if sha and digest != sha:",
        ("tests/checkpoint/test_damage.py::test_an_array_without_its_own_sha256_is_refused",),
    ),
    Fault(
        "a_sha256_need_not_be_text",
        FILE,
        "        if not isinstance(digest, str):",
        "        if digest is None:",
        ("tests/checkpoint/test_damage.py::test_an_array_without_its_own_sha256_is_refused",),
    ),
    Fault(
        "the_copy_of_the_file_from_before_is_not_flushed",
        FILE,
        '            with spare.open("rb+") as file:\n                os.fsync(file.fileno())\n',
        "",
        ("tests/checkpoint/test_atomic_file.py::test_whatever_gets_a_name_is_on_the_disk",),
    ),
    Fault(
        "a_new_file_is_not_flushed",
        FILE,
        "        file.flush()\n        os.fsync(file.fileno())\n",
        "        file.flush()\n",
        ("tests/checkpoint/test_atomic_file.py::test_whatever_gets_a_name_is_on_the_disk",),
    ),
    Fault(
        "rows_that_are_the_same_for_a_while_are_so_for_ever",
        TABLES,
        "            for far in _FAR:",
        "            for far in (1,):",
        ("tests/cuda/test_on_device.py::test_scalars_that_change_very_slowly_are_followed",),
    ),
    Fault(
        "rows_that_are_the_same_for_millions_of_steps_are_so_for_ever",
        TABLES,
        "            for far in _FAR:",
        "            for far in _FAR[:1]:",
        ("tests/cuda/test_on_device.py::test_rows_come_again_if_they_never_change",),
    ),
    Fault(
        "rows_that_differ_in_their_last_bits_are_the_same",
        TABLES,
        "        return all(one.tobytes() == two.tobytes() for one, two in pairs)",
        "        return all(np.allclose(one, two, 1e-6, 0.0) for one, two in pairs)",
        ("tests/cuda/test_on_device.py::test_scalars_that_change_very_slowly_are_followed",),
    ),
    Fault(
        "a_member_that_is_not_finite_steps",
        POLICY,
        "            made = finite.copy()\n",
        "            made = np.ones_like(finite)\n",
        (f"{MEMBERS_TESTS}::test_each_is_judged_by_itself",),
    ),
    Fault(
        "members_are_clipped_by_one_limit_of_all",
        POLICY,
        "            factors[factors > 1.0] = 1.0\n",
        "            factors[:] = min(factors.min(), 1.0)\n",
        (f"{MEMBERS_TESTS}::test_each_is_judged_by_itself",),
    ),
    Fault(
        "a_skipped_member_counts_a_step_of_the_parameter",
        MEMBERS,
        "        bucket.miss(index, missed)\n",
        "        bucket.miss(index, 0 * missed)\n",
        (f"{MEMBERS_TESTS}::test_each_is_judged_by_itself",),
    ),
    Fault(
        "a_skipped_member_counts_a_step_of_the_optimizer",
        MEMBERS,
        "        members.missed[~each.made] += 1\n",
        "",
        (f"{MEMBERS_TESTS}::test_schedules_follow_the_steps_of_each",),
    ),
    Fault(
        "members_take_the_rows_of_others",
        MEMBERS,
        "np.asarray(plan.table)[first + rows]",
        "np.asarray(plan.table)[first : first + len(rows)]",
        (f"{MEMBERS_TESTS}::test_each_is_judged_by_itself",),
    ),
    Fault(
        "what_members_missed_is_not_loaded",
        STATE,
        "                    bucket.miss(index, np.asarray(steps))\n",
        "                    bucket.allow_misses()\n",
        (f"{MEMBERS_TESTS}::test_runs_go_on",),
    ),
    Fault(
        "columns_of_members_that_change_are_not_written",
        NUMBA,
        "                    if value is written[k]:\n",
        "                    if written[k] is not None:\n",
        (
            "tests/engine/test_scalars_of_members.py::test_steps_in_one_call_have_the_bits_of_separate_optimizers",
        ),
    ),
    Fault(
        "columns_of_members_are_the_same_for_all",
        NUMBA,
        "                    varies |= 1 << k\n",
        "                    varies |= k >> 9\n",
        (
            "tests/engine/test_scalars_of_members.py::test_steps_in_one_call_have_the_bits_of_separate_optimizers",
        ),
    ),
    # what a step would do, and what it has done
    Fault(
        "a_step_is_explained_by_making_it",
        EXPLAIN,
        '            "params": tree.nest([_copy_to_host(leaf.array) for leaf in tree.leaves]),\n',
        '            "params": tree.nest([leaf.array for leaf in tree.leaves]),\n',
        (f"{EXPLAIN_TESTS}::test_what_it_says_is_what_the_step_does_and_nothing_changes",),
    ),
    Fault(
        "a_step_is_explained_by_the_scalars_of_the_last_one",
        EXPLAIN,
        "    steps = {where: int(state.buckets[where[0]].steps[where[1]]) + 1 for where in before}",
        "    steps = {where: int(state.buckets[where[0]].steps[where[1]]) for where in before}",
        (f"{EXPLAIN_TESTS}::test_adams_numbers",),
    ),
    Fault(
        "the_effective_rate_leaves_the_scale_out",
        EXPLAIN,
        "            steep = _moduli(slope) * abs(scale)",
        "            steep = _moduli(slope)",
        (f"{EXPLAIN_TESTS}::test_adams_numbers",),
    ),
    Fault(
        "a_master_that_begins_is_compared_with_zeros",
        EXPLAIN,
        "        np.copyto(compared, own.astype(compared.dtype), where=~stands)\n",
        "",
        (f"{EXPLAIN_TESTS}::test_advice_is_given_where_it_is_due",),
    ),
    Fault(
        "what_clip_value_cuts_is_counted_before_the_norm_is_clipped",
        EXPLAIN,
        "_cut(seen, self._verdict.scale, limit, bucket.spec.real)",
        "_cut(seen, self._scale, limit, bucket.spec.real)",
        (f"{EXPLAIN_TESTS}::test_clipping_by_norm_by_value_and_of_each_array",),
    ),
    Fault(
        "a_watch_records_gradients_before_their_scale",
        WATCH,
        "        scale = abs(_number(pending.grad_scale))",
        "        scale = 1.0",
        (f"{WATCH_TESTS}::test_numbers_are_those_of_the_run",),
    ),
    Fault(
        "a_watch_counts_steps_that_are_not_made_as_made",
        WATCH,
        '            "made": float(np.mean(skipped == 0)),',
        '            "made": float(np.mean(skipped >= 0)),',
        (f"{WATCH_TESTS}::test_steps_that_are_skipped_missing_gradients_and_frozen_groups",),
    ),
    # distributed: sums, shares, agreement, checkpoints, the end
    Fault(
        "a_rank_adds_its_own_micro_batch_first",
        SUMS,
        "            for rank, one in enumerate(self._said):\n",
        "            own, said = sums.ranks.rank, enumerate(self._said)\n"
        "            for rank, one in sorted(said, key=lambda x: x[0] != own):\n",
        WORLDS,
    ),
    Fault(
        "a_message_begins_where_the_one_before_did",
        SUMS,
        "total = sums.own[part.position][part.start - begin : part.stop - begin]",
        "total = sums.own[part.position][: part.size]",
        WORLDS,
    ),
    Fault(
        "the_tiles_that_are_left_over_belong_to_nobody",
        "fastopt/distributed/shares.py",
        "sum(tiles) * rank // ranks",
        "sum(tiles) // ranks * rank",
        ("tests/distributed/test_shares.py",),
    ),
    Fault(
        "losses_are_added_without_their_weights",
        BASE,
        'factor * said["value"]',
        'said["value"]',
        WORLDS,
    ),
    Fault(
        "a_loss_is_scaled_by_what_clips_the_gradients",
        BASE,
        "engine.prepare(matched, scale, policy, {}, extra, verdict)",
        "engine.prepare(matched, verdict.scale if verdict else scale, policy, {}, extra, verdict)",
        WORLDS,
    ),
    Fault(
        "a_rank_that_trains_nothing_fails",
        SHARDED,
        "strict=bool(matched)",
        "strict=True",
        WORLDS,
    ),
    Fault(
        "an_error_of_one_rank_is_kept_from_the_others",
        BASE,
        """        if error is not None:
            words = {"does": what, "error": f"{type(error).__name__}: {error}"[:2000]}
""",
        """        if error is not None:
            raise error
""",
        ONE_BY_ONE,
    ),
    Fault(
        "settings_of_several_numbers_are_not_compared",
        BASE,
        "    if isinstance(option, tuple | list):\n        return all(map(_is_plain, option))\n",
        "",
        (
            "tests/distributed/test_rank_faults.py::"
            "test_what_differs_between_ranks_is_said_when_they_are_put_together",
        ),
    ),
    Fault(
        "an_error_in_the_middle_of_sending_is_forgotten",
        RANKS,
        "if self.lost is None and self.size > 1:",
        "if False:",
        (
            "tests/distributed/test_rank_faults.py::"
            "test_a_failure_in_the_middle_of_sending_is_the_end",
        ),
    ),
    Fault(
        "what_was_added_before_an_error_in_the_backward_pass_stays",
        BASE,
        "            except BaseException:\n                self._clear()\n",
        "            except BaseException:\n",
        (
            "tests/distributed/test_handed_in.py::"
            "test_an_error_in_the_block_on_one_rank_is_one_on_all",
        ),
    ),
    Fault(
        "a_process_that_has_lost_ranks_waits_for_them_at_its_end",
        RANKS,
        "        _worlds.append(self._mpi.COMM_WORLD)\n",
        "        pass\n",
        (
            "tests/distributed/test_dead_ranks.py::"
            "test_the_others_name_a_rank_that_was_killed_and_end",
        ),
    ),
    Fault(
        "the_last_scale_of_a_part_is_left_out",
        "fastopt/distributed/files.py",
        "-(-part.stop // BLOCK)",
        "part.stop // BLOCK",
        SAME_FILE,
    ),
    Fault(
        "counters_are_saved_as_if_they_were_trained",
        "fastopt/distributed/files.py",
        "for leaf in leaves if not leaf.is_counter]",
        "for leaf in leaves]",
        SAME_FILE,
    ),
    Fault(
        "an_average_over_ranks_is_one_of_a_share",
        AVERAGING,
        "        return self._opt._tree\n",
        "        return self._innermost._tree  # type: ignore[union-attr]\n",
        (
            "tests/distributed/test_rank_faults.py::"
            "test_what_stands_around_an_optimizer_stands_around_ranks",
        ),
    ),
)
