"""The session's own promises: no skip passes for green, and every run draws the same numbers."""

import pytest

from tests.unit.sources import ROOT

SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='later')\ndef test_a(): pass",
    "condition": "import pytest\n@pytest.mark.skipif(True, reason='no reference')\ndef test_a(): pass",
    "call": "import pytest\ndef test_a(): pytest.skip('no checkpoint')",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('none')\ndef test_a(f): pass",
    "module": "import pytest\npytest.skip('not here', allow_module_level=True)\ndef test_a(): pass",
    "missing package": "import pytest\npytest.importorskip('no_such_package')\ndef test_a(): pass",
    "unittest": "import unittest\nclass A(unittest.TestCase):\n    @unittest.skip('no')\n    def test_a(self): pass",
}


@pytest.fixture
def session(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    return pytester


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS.keys())
def test_a_skip_fails(session, source):
    session.makepyfile(source)
    result = session.runpytest_subprocess("-p", "no:xdist")
    assert result.ret in {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}
    result.stdout.fnmatch_lines(["*A skipped test proves nothing*"])


@pytest.mark.parametrize("selection", [["-k", "no_such_test"], ["-m", "no_such_mark"], []], ids=str)
def test_a_run_of_no_test_at_all_is_no_success(session, selection):
    session.makepyfile("def test_a(): pass" if selection else "def a(): pass")
    assert session.runpytest_subprocess("-p", "no:xdist", *selection).ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_an_ordinary_test_passes_and_an_expected_failure_is_no_skip(session):
    session.makepyfile("import pytest\ndef test_a(): pass\n@pytest.mark.xfail\ndef test_b(): assert False")
    session.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1, xfailed=1)


def test_a_file_is_done_by_one_process_and_the_ladder_is_climbed_by_one(session):
    source = """
        import os, pathlib, pytest

        @pytest.fixture(scope="session")
        def ladder():
            with pathlib.Path("climbed").open("a") as file:
                file.write(f"{os.getpid()}/{os.environ['OMP_NUM_THREADS']} ")

        @pytest.mark.parametrize("number", range(5))
        def test_a(ladder, number):
            pass
    """
    files = [f"tests/suites/test_{rung}" for rung in ("weights", "layers", "data")]
    (session.path / "tests" / "suites").mkdir(parents=True)
    session.makepyfile(**dict.fromkeys(files, source))
    session.runpytest_subprocess("-n", "2", "--dist", "loadfile", "--import-mode=importlib").assert_outcomes(passed=15)
    climbed = {tuple(entry.split("/")) for entry in (session.path / "climbed").read_text().split()}
    assert [threads for _, threads in climbed] == ["1"]


def test_another_file_that_asks_about_the_ladder_is_named(session):
    session.makepyfile(
        test_other="import pytest\n@pytest.fixture\ndef ladder(): pass\ndef test_a(ladder): pass",
    )
    result = session.runpytest_subprocess("-p", "no:xdist")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_other.py::test_a asks about the ladder*"])


def test_two_runs_draw_the_same_random_numbers_and_the_same_examples(session):
    session.makepyfile(
        """
        import random
        import numpy as np
        import torch
        from hypothesis import given, strategies as st

        seen = []

        @given(st.floats())
        def test_a(x):
            seen.append(x)

        def test_b():
            print("drawn", random.random(), np.random.rand(), torch.rand(1).item(), seen[1:])
        """
    )
    first, second = (
        [line for line in session.runpytest_subprocess("-s", "-p", "no:xdist").outlines if "drawn" in line]
        for _ in range(2)
    )
    assert len(first) == 1
    assert first == second


def test_missing_tensorflow_fails_and_says_how_to_install_it(session):
    session.makepyfile(
        """
        import sys
        sys.modules["tensorflow"] = None

        def test_a(tensorflow):
            pass
        """
    )
    result = session.runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*pip install -c constraints.txt -e '.[[]reference[]]'*"])
