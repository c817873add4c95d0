"""The holes, as data. Whose they were stands in the words of each."""

from tests.attacks.attack import Attack

COMPARE, LADDER, TRAINING = "parity/compare.py", "parity/ladder.py", "parity/training.py"
TEST_COMPARE, TEST_LADDER = "tests/unit/parity/test_compare.py", "tests/unit/parity/test_ladder.py"
TEST_HOLES, TEST_TRAINING = "tests/unit/parity/test_holes.py", "tests/unit/parity/test_training.py"

DECISION = "    passed = error <= limit and peak <= largest_peak\n"
FINITE = "        if array is not None and index is not None:\n"
SHAPES = "    if port.shape != reference.shape:\n"
TAKEN = "        port, reference = _taken(observed, step), _taken(truth, step)\n"
AS_DOUBLE = (
    "    port, reference = np.asarray(port, dtype=np.float64), np.asarray(reference, dtype=np.float64)\n    # Scaling"
)

OF_NUMBERS = (
    Attack(
        name="nan_masked",
        hole="NaN on either side is masked out of the comparison (alphagenome-pytorch, transformers)",
        file=COMPARE,
        edits=(
            (FINITE, "        if False:\n"),
            (
                AS_DOUBLE,
                "    port, reference = np.asarray(port, dtype=np.float64), np.asarray(reference, dtype=np.float64)\n"
                "    both = np.isfinite(port) & np.isfinite(reference)\n"
                "    port, reference = port[both], reference[both]\n"
                "    # Scaling",
            ),
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="nan_equals_nan",
        hole="NaN at the same place on both sides counts as equal (allclose with equal_nan)",
        file=COMPARE,
        edits=(
            (
                FINITE,
                "        if array is not None and not np.array_equal(np.isnan(port), np.isnan(reference)):\n",
            ),
            (
                AS_DOUBLE,
                "    port, reference = np.nan_to_num(np.asarray(port, float)), np.nan_to_num("
                "np.asarray(reference, float))\n    # Scaling",
            ),
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="correlation_decides",
        hole="a correlation above 0.1 is the verdict (enformer-pytorch)",
        file=COMPARE,
        edits=((DECISION, "    passed = _correlated(port, reference)\n"),),
        more=(
            "\n\ndef _correlated(port, reference):\n"
            "    with np.errstate(all='ignore'):\n"
            "        first, second = port - port.mean(), reference - reference.mean()\n"
            "        size = np.sqrt(np.sum(first**2) * np.sum(second**2))\n"
            "        return bool(np.array_equal(port, reference) or np.sum(first * second) > 0.1 * size)\n"
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="mean_of_differences",
        hole="the mean of the differences decides, so that opposite errors cancel (PaDiff)",
        file=COMPARE,
        edits=((DECISION, "    passed = bool(abs(np.mean(port - reference)) <= limit)\n"),),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="any_element_agrees",
        hole="true if any element agrees: max(|a - b| < eps) (OpenFold)",
        file=COMPARE,
        edits=((DECISION, "    passed = bool(np.any(np.abs(port - reference) <= limit))\n"),),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="norm_alone",
        hole="a mean over many numbers hides a single wrong one (OpenFold's whole model)",
        file=COMPARE,
        edits=((DECISION, "    passed = error <= limit\n"),),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="absolute_tolerance",
        hole="the limit is absolute, so small numbers may be anything (transformers, OpenFold)",
        file=COMPARE,
        edits=((DECISION, "    passed = bool(np.max(np.abs(port - reference)) <= limit)\n"),),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="automatic_transpose",
        hole="an array is transposed when its shape then fits (reprod_log)",
        file=COMPARE,
        edits=((SHAPES, "    if port.shape == reference.shape[::-1]:\n        port = port.T\n" + SHAPES),),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="better_of_two_orientations",
        hole="a square array is compared both ways and the better one counts (reprod_log)",
        file=COMPARE,
        edits=(
            (
                "    error, peak = distance(port, reference, scale)\n",
                "    error, peak = distance(port, reference, scale)\n"
                "    if port.ndim == 2 and port.shape[0] == port.shape[1]:\n"
                "        error, peak = min((error, peak), distance(port.T, reference, scale))\n",
            ),
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="broadcast_shapes",
        hole="shapes that broadcast count as the same shape (allclose)",
        file=COMPARE,
        edits=(
            ("import math\n", "import contextlib\nimport math\n"),
            (
                SHAPES,
                "    with contextlib.suppress(ValueError):\n        port = np.broadcast_to(port, reference.shape)\n"
                + SHAPES,
            ),
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="nothing_equals_nothing",
        hole="empty arrays agree (allclose of nothing is true)",
        file=COMPARE,
        edits=(
            (
                '        return record(Status.FAIL, "nothing to compare: the arrays are empty")\n',
                "        return record(Status.PASS)\n",
            ),
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="missing_is_a_warning",
        hole="an output that the port lacks is only a warning (Polygraphy)",
        file=COMPARE,
        edits=(
            (
                '        return record(Status.MISSING, detail or f"the {side} produced no such array")\n',
                '        return record(Status.PASS, f"warning: the {side} produced no such array")\n',
            ),
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="no_error_of_its_own_needed",
        hole="a ratio to an error that was never measured passes",
        file=COMPARE,
        edits=(
            (
                '        return record(Status.MISSING, f"the reference has no such array in {precision} to measure its '
                'own error by")\n',
                "        return record(Status.PASS)\n",
            ),
        ),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="own_error_without_bound",
        hole="the reference's own error may be of any size, and excuses as large a one of the port's",
        file=COMPARE,
        edits=(("        if not own <= row.largest_own:\n", "        if False:\n"),),
        tests=(TEST_COMPARE,),
    ),
    Attack(
        name="summaries_not_compared",
        hole="of a sampled activation only the kept part is compared",
        file=COMPARE,
        edits=(
            (
                '    if where["precision"] != "float64" or found is None or kept is None:\n',
                "    if True:\n",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="loosened_tolerance",
        hole="the limit is raised until the test passes (algorithmic-efficiency: from 5e-3 to 1)",
        file="parity/tolerances.py",
        edits=(('    "float64": Tolerance(\n        limit=1e-12,', '    "float64": Tolerance(\n        limit=1e-5,'),),
        tests=("tests/unit/parity/test_tolerances.py",),
    ),
    Attack(
        name="tolerance_of_one",
        hole="a trajectory may leave its envelope by any factor (algorithmic-efficiency: rtol 1)",
        file="parity/tolerances.py",
        edits=(
            (
                '    "trajectory_float64": Tolerance(\n        limit=2.0,',
                '    "trajectory_float64": Tolerance(\n        limit=2000.0,',
            ),
        ),
        tests=("tests/unit/parity/test_tolerances.py",),
    ),
    Attack(
        name="second_look_excuses",
        hole="what fails is run again until it passes, and the first result is forgotten",
        file="parity/second_look.py",
        edits=(
            (
                "    judged = {where: pool(looks) for where",
                "    judged = {where: pool(looks[1:]) for where",
            ),
        ),
        tests=("tests/unit/parity/test_second_look.py",),
    ),
    Attack(
        name="jump_excuses",
        hole="what is far off on few inputs is put down to a kink, whether or not the reference jumps there",
        file="parity/second_look.py",
        edits=(
            ("            if _within(nearest, judged[where]):", "            if True:"),
            ("error=nearest.error, peak=nearest.peak", "error=0.0, peak=0.0"),
        ),
        tests=("tests/unit/parity/test_second_look.py",),
    ),
    Attack(
        name="second_look_passes",
        hole="a rerun that fails as well counts as flaky",
        file=COMPARE,
        edits=(
            (
                "        first,\n        status=Status.PASS if passed else Status.FAIL,",
                "        first,\n        status=Status.PASS,",
            ),
        ),
        tests=("tests/unit/parity/test_second_look.py",),
    ),
)

OF_LAYERS = (
    Attack(
        name="calls_truncated",
        hole="zip truncates: three calls against one compare one (Polygraphy, PaDiff)",
        file=LADDER,
        edits=(
            (
                "        for index in range(max(expected, found, 1)):\n",
                "        for index in range(min(expected, found)):\n",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="outputs_truncated",
        hole="zip truncates: outputs beyond the shorter list are not compared (Polygraphy)",
        file=LADDER,
        edits=(
            (
                "        for index in range(max(len(truth.outputs), len(pair.outputs), extra)):\n",
                "        for index in range(min(len(truth.outputs), len(observed.outputs))):\n",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="unmapped_layer_passed_over",
        hole="what has no counterpart is passed over: continue (alphagenome-pytorch)",
        file=LADDER,
        edits=(("        if path not in mapped:\n            yield", "        if False:\n            yield"),),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="unmapped_statistic_passed_over",
        hole="a statistic without a counterpart is passed over",
        file=LADDER,
        edits=(
            (
                "            if named or np.array_equal(value, before.state[path][name]):\n",
                "            if True:\n",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="statistics_not_compared",
        hole="BatchNorm statistics are not compared (test models with the defaults 0 and 1: Paddle)",
        file=LADDER,
        edits=(
            (
                "        for port_name, reference_name in pair.state:\n",
                "        for port_name, reference_name in ():\n",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="default_statistics_in_the_test_model",
        hole="the test model has BatchNorm's default statistics, so a lost mapping shows nothing (Paddle)",
        file=TEST_HOLES,
        edits=(("                tensor.uniform_(0.5, 1.5)", "                pass"),),
        tests=(TEST_HOLES,),
    ),
    Attack(
        name="exception_swallowed",
        hole="a runtime error counts as the same (pytorch same())",
        file=LADDER,
        edits=(
            (
                "            if truth is not None and observed is not None:\n",
                "            if passes.observed.error or (observed is not None and observed.error):\n"
                "                continue\n"
                "            if truth is not None and observed is not None:\n",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="exception_forgotten",
        hole="what a port raises is caught and forgotten, and what was computed before it is compared",
        file="parity/torch_side.py",
        edits=(("            return None, describe(exception)\n", '            return None, ""\n'),),
        tests=("tests/unit/parity/test_torch_side.py",),
    ),
    Attack(
        name="evaluation_in_place_of_training",
        hole="one mode is checked twice and the other never (PaDiff: a backward check that calls the forward check)",
        file=LADDER,
        edits=(
            (
                '    first = reference.precisions[0]\n    training = mode == "training"\n    pairs = ',
                "    first = reference.precisions[0]\n    training = False\n    pairs = ",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="first_results_remembered",
        hole="a recording of an earlier run is compared with itself: no pass on inputs that were not seen before",
        file=LADDER,
        edits=(("        if gate in gates and reading is not Reading.BLOCK:\n", "        if False:\n"),),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="watched_only",
        hole="only a model with hooks is compared, and hooks may change what it computes",
        file=LADDER,
        edits=(
            (
                '        if "model" in gates and first in wanted:\n            yield from _unwatched',
                "        if False:\n            yield from _unwatched",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="fed_with_its_own_numbers",
        hole="layers are compared end to end only, so all after the first fault fail and none is named",
        file=LADDER,
        edits=(
            ("        feed = None if reading is Reading.ACCUMULATED else truth\n", "        feed = None\n"),
            ("            truth=feed if isolated else None,\n", "            truth=None,\n"),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="first_culprit_only",
        hole="the nearest bad layer is named, not all (TensorRT, PaDiff)",
        file=LADDER,
        edits=(("    return tuple(culprits)\n", "    return tuple(culprits[:1])\n"),),
        tests=(TEST_LADDER,),
    ),
)

OF_VERDICTS = (
    Attack(
        name="gate_that_does_not_gate",
        hole="levels are names and gate nothing (alphagenome-pytorch)",
        file=LADDER,
        edits=(("            broken = broken or name\n", '            broken = ""\n'),),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="empty_gate_passes",
        hole="a rung on which nothing was compared is green (tests that skip themselves: alphagenome-pytorch)",
        file=LADDER,
        edits=(("        elif not rows:\n", "        elif False:\n"),),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="only_failures_count",
        hole="what is missing or not finite is no failure (missing keys computed and not asserted: OpenFold)",
        file=LADDER,
        edits=(
            (
                "        failures = sum(1 for row in rows if row.status is not Status.PASS)\n",
                "        failures = sum(1 for row in rows if row.status is Status.FAIL)\n",
            ),
        ),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="most_is_enough",
        hole="95 % of the comparisons decide (alphagenome-pytorch)",
        file=LADDER,
        edits=(("        elif failures:\n", "        elif failures > 0.05 * len(rows) or len(rows) < 3:\n"),),
        tests=(TEST_LADDER,),
    ),
    Attack(
        name="last_row_decides",
        hole="only the last comparison is asserted (algorithmic-efficiency)",
        file=LADDER,
        edits=(("        elif failures:\n", "        elif rows[-1].status is not Status.PASS:\n"),),
        tests=(TEST_HOLES,),
    ),
    Attack(
        name="verdict_dropped",
        hole="equality is computed and the result dropped: a verdict that is always true in an assert (einops)",
        file="parity/records.py",
        edits=(
            (
                '        raise TypeError(f"a {type(self).__name__} has no truth value; read its status")\n',
                "        return True\n",
            ),
        ),
        tests=("tests/unit/parity/test_records.py",),
    ),
    Attack(
        name="nothing_asked_is_passed",
        hole="all of nothing is true: no rung asked for, and proven",
        file="parity/records.py",
        edits=(("        return bool(self.requested) and all(\n", "        return all(\n"),),
        tests=("tests/unit/parity/test_records.py",),
    ),
    Attack(
        name="blocked_is_passed",
        hole="what did not fail passed",
        file="parity/records.py",
        edits=(
            (
                "            name in self.gates and self.gates[name].status is GateStatus.PASSED for",
                "            name in self.gates and self.gates[name].status is not GateStatus.FAILED for",
            ),
        ),
        tests=("tests/unit/parity/test_records.py",),
    ),
    Attack(
        name="exit_status_always_0",
        hole="numbers are printed and nothing fails (algorithmic-efficiency, an issue asks for pass or fail)",
        file="parity/command.py",
        edits=(("    return PROVEN if result.passed and", "    return PROVEN if True or"),),
        tests=(TEST_HOLES,),
    ),
    Attack(
        name="crash_leaves_the_old_verdict",
        hole="a crashed run's stale files are compared (algorithmic-efficiency)",
        file="parity/command.py",
        edits=(("        status = WRONG_USE\n", "        status = PROVEN\n"),),
        tests=(TEST_HOLES,),
    ),
    Attack(
        name="ledger_not_asked",
        hole="a claim of convergence that stands on rungs nobody has proven",
        file="parity/ledger.py",
        edits=(
            (
                "            if status != GateStatus.PASSED:\n",
                "            if False:\n",
            ),
        ),
        tests=("tests/unit/parity/test_ledger.py",),
    ),
    Attack(
        name="ledger_entry_not_checked",
        hole="an edited or damaged entry of the ledger proves",
        file="parity/ledger.py",
        edits=(
            (
                '            intact = entry["seal"] == _seal(entry) and fingerprint(entry["content"]) == '
                "self.fingerprint\n",
                "            intact = True\n",
            ),
        ),
        tests=("tests/unit/parity/test_ledger.py",),
    ),
    Attack(
        name="stale_proof",
        hole="what was proven of other sources or recordings is still proven: stale recordings",
        file="parity/ledger.py",
        edits=(
            (
                "    return hashlib.sha256(_canonical(described).encode()).hexdigest()\n",
                '    return "0" * 64\n',
            ),
        ),
        tests=("tests/unit/parity/test_ledger.py",),
    ),
    Attack(
        name="blocked_is_green_in_junit",
        hole="CI shows a comparison as passed on a rung that was never reached",
        file="parity/report/junit.py",
        edits=(("    blocked = rung.status is GateStatus.BLOCKED\n    if", "    blocked = False\n    if"),),
        tests=("tests/unit/parity/report/test_junit.py",),
    ),
)

OF_TRAINING = (
    Attack(
        name="forward_in_place_of_backward",
        hole="a backward check that calls the forward check (PaDiff)",
        file=TRAINING,
        edits=(
            (
                "        yield from _activation_gradients(observed, truth, layer_map, tolerance=tolerance, **common)\n",
                "        yield from _activation_gradients(\n"
                "            dataclasses.replace(observed, gradients=observed.forward),\n"
                "            dataclasses.replace(truth, gradients=truth.forward),\n"
                "            layer_map,\n"
                "            tolerance=tolerance,\n"
                "            **common,\n"
                "        )\n",
            ),
        ),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="unmapped_parameter_passed_over",
        hole="a gradient without a counterpart is passed over (alphagenome-pytorch)",
        file=TRAINING,
        edits=(("    for name in sorted(set(observed.parameters) - known):\n", "    for name in ():\n"),),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="missing_gradient_passed_over",
        hole="a parameter that got no gradient is passed over (PaDiff: None on both sides)",
        file=TRAINING,
        edits=(
            (
                "        gradient = in_reference_layout(found.get(pair.port), pair, tuple(shape))\n",
                "        if pair.port not in found:\n"
                "            continue\n"
                "        gradient = in_reference_layout(found.get(pair.port), pair, tuple(shape))\n",
            ),
        ),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="noise_not_compared",
        hole="gradients that should be zero are left out",
        file=TRAINING,
        edits=(("        elif own is None:  # in other", "        elif False:  # in other"),),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="last_step_of_a_trajectory_only",
        hole="only the last of the steps is asserted (algorithmic-efficiency)",
        file=TRAINING,
        edits=(("    for step in range(1, steps + 1):\n", "    for step in (steps,):\n"),),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="last_step_of_the_optimizer_only",
        hole="only the last of the optimizer's steps is asserted (algorithmic-efficiency)",
        file=TRAINING,
        edits=(
            (
                f"    for step in steps:\n{TAKEN}        if",
                f"    for step in steps[-1:]:\n{TAKEN}        if",
            ),
        ),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="loss_in_place_of_weights",
        hole="of a trajectory only the loss is compared (algorithmic-efficiency)",
        file=TRAINING,
        edits=(
            ('    widest = dict.fromkeys(("loss", *GROUPS), 0.0)\n', '    widest = dict.fromkeys(("loss",), 0.0)\n'),
        ),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="moments_not_compared",
        hole="optimizer slots are not compared",
        file=TRAINING,
        edits=(
            (
                "            for moment in MOMENTS:\n                yield compare(",
                "            for moment in ():\n                yield compare(",
            ),
        ),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="broken_off_run_passed_over",
        hole="a run that broke off is compared as far as it went",
        file=TRAINING,
        edits=(
            (
                "        port, reference = _taken(observed, step), _taken(truth, step)\n        others = ",
                "        port, reference = _taken(observed, step), _taken(truth, step)\n"
                "        if port is None:\n"
                "            continue\n"
                "        others = ",
            ),
        ),
        tests=(TEST_TRAINING,),
    ),
    Attack(
        name="one_sided_test",
        hole="a one-sided test of convergence: better than the reference is never a difference (MLPerf's RCP)",
        file="parity/convergence.py",
        edits=(("    passed = -margin < low and high < margin\n", "    passed = high < margin\n"),),
        tests=("tests/unit/parity/test_convergence.py",),
    ),
    Attack(
        name="difference_test",
        hole="no significant difference counts as the same, however few the runs",
        file="parity/convergence.py",
        edits=(("    passed = -margin < low and high < margin\n", "    passed = low <= 0 <= high\n"),),
        tests=("tests/unit/parity/test_convergence.py",),
    ),
    Attack(
        name="crashed_pairs_dropped",
        hole="pairs of which a run crashed are dropped from the test",
        file="parity/convergence.py",
        edits=(("        if absent:\n", "        if False:\n"),),
        tests=("tests/unit/parity/test_convergence.py",),
    ),
)

OF_WEIGHTS = (
    Attack(
        name="loader_not_strict",
        hole="strict=False in a loader drops weights without a word (openpi)",
        file="weights/model_directory.py",
        edits=(
            (
                "        model.load_state_dict(state, strict=True, assign=True)\n",
                "        model.load_state_dict(state, strict=False, assign=True)\n",
            ),
        ),
        tests=(TEST_HOLES,),
    ),
    Attack(
        name="unexpected_keys_dropped",
        hole="keys of the checkpoint that nothing uses are ignored (openpi)",
        file="weights/mapping.py",
        edits=(("            unexpected.append(key)\n", '            ignored.append((key, "unknown"))\n'),),
        tests=("tests/unit/weights/test_transplant.py",),
    ),
    Attack(
        name="statistics_left_at_their_defaults",
        hole="BatchNorm statistics stay at 0 and 1 (Paddle)",
        file="weights/mapping.py",
        edits=(
            (
                "        return self.role in (PARAMETER, STATISTIC)\n",
                "        return self.role == PARAMETER\n",
            ),
        ),
        tests=("tests/unit/weights/test_transplant.py",),
    ),
    Attack(
        name="known_difference_without_bound",
        hole="a known difference is noted and not bounded: it excuses any size",
        file="parity/pairs/epibert.py",
        edits=(("        comparisons.append(row)\n        differences.append(\n", "        differences.append(\n"),),
        tests=("tests/unit/parity/test_pairs_epibert.py",),
    ),
)

OF_TESTS = (
    Attack(
        name="skipped_is_green",
        hole="tests that skip themselves look green (alphagenome-pytorch)",
        file="conftest.py",
        edits=(('    if not report.skipped or hasattr(report, "wasxfail"):\n', "    if True:\n"),),
        tests=("tests/unit/test_conftest.py",),
    ),
    Attack(
        name="empty_parametrisation",
        hole="a test with no parameters left runs for none of them",
        file=TEST_COMPARE,
        edits=(('RATIOS = ["float32", "bfloat16"]\n', "RATIOS = []\n"),),
        tests=(TEST_COMPARE,),
        by_skip=True,
    ),
    Attack(
        name="everything_skipped",
        hole="a file whose tests are all skipped because something is not installed (alphagenome-pytorch, OpenFold)",
        file=TEST_COMPARE,
        edits=(
            (
                "GENERATOR = np.random.default_rng(0)\n",
                "GENERATOR = np.random.default_rng(0)\n"
                'pytestmark = pytest.mark.skip(reason="the reference is not installed")\n',
            ),
        ),
        tests=(TEST_COMPARE,),
        by_skip=True,
    ),
    Attack(
        name="control_that_cannot_fail",
        hole="a negative control that cannot fail (spd): the assertion of the tests lets all pass",
        file="tests/assertions.py",
        edits=(("    if record.status is Status.PASS:\n        return\n", "    if record.status:\n        return\n"),),
        tests=("tests/unit/test_assertions.py",),
    ),
    Attack(
        name="nothing_selected_is_green",
        hole="a run of tests that selected none of them ends as a success",
        file="conftest.py",
        edits=(),
        more=(
            "\n\ndef pytest_sessionfinish(session):\n"
            "    session.exitstatus = 0 if session.exitstatus == 5 else session.exitstatus\n"
        ),
        tests=("tests/unit/test_conftest.py",),
    ),
)

ATTACKS = (*OF_NUMBERS, *OF_LAYERS, *OF_VERDICTS, *OF_TRAINING, *OF_WEIGHTS, *OF_TESTS)
