"""``epibert parity`` as a user meets it: exit statuses, one clear error, files complete or not there at all."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import benchmarks.command
from parity import command
from parity.attack import report as attack_report
from parity.attack.campaign import CONFIGURATIONS, SHARING
from parity.attack.records import Campaign
from parity.environment import describe_environment
from parity.ladder import GATES
from parity.pairs import epibert_run
from parity.records import SCHEMA
from parity.report import page
from tests.unit.parity.attack.toy import OUTCOME
from torch_impl import EpiBERT

FILES = ("junit.xml", "parity.json", "report.html", "summary.md")
QUICK = ("--reference", "recorded", "--gates", "weights,constants")


@pytest.fixture(autouse=True)
def _one_case(monkeypatch):
    """One recorded case is enough to see what the command does with it."""
    monkeypatch.setattr(epibert_run, "CASES", ("P1",))


def status_of(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        command.main(["parity", *map(str, arguments)])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong use prints."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("epibert: error: ")
    return lines[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def break_port(monkeypatch, fault) -> None:
    """Every port that the command builds has the fault."""
    plain = epibert_run._Case.port

    def broken(case, *arguments, **keywords) -> EpiBERT:
        port = plain(case, *arguments, **keywords)
        fault(port)
        return port

    monkeypatch.setattr(epibert_run._Case, "port", broken)


def flip_a_bit(port: EpiBERT) -> None:
    port.stem_conv.weight.data.view(torch.int32).view(-1)[7] ^= 1


# --- proven -----------------------------------------------------------------------------------------------------------


def test_what_is_proven_exits_with_0_and_writes_four_complete_files(tmp_path, capsys):
    out = tmp_path / "new [/]" / "folder"
    assert status_of(*QUICK, "--out", out) == command.PROVEN == 0
    assert sorted(content(out)) == sorted(FILES)
    result = json.loads((out / "parity.json").read_text())
    assert result["passed"] is True
    assert result["requested"] == ["weights", "constants"]
    statuses = {name: gate["status"] for name, gate in result["gates"].items()}
    assert statuses == {**dict.fromkeys(GATES, "not_run"), "weights": "passed", "constants": "passed"}
    assert ElementTree.parse(out / "junit.xml").getroot().tag == "testsuites"
    assert (out / "report.html").read_text().rstrip().endswith("</html>")
    assert (out / "summary.md").read_text().startswith("## ✓ Proven in part: EpiBERT")
    assert str(out) in capsys.readouterr().out.replace("\n", "")


def test_the_recorded_cases_of_the_fine_tuning_model_are_climbed_by_name(tmp_path):
    attack_report.write(Campaign(outcomes=(OUTCOME,), environment=describe_environment()), tmp_path)
    campaign = tmp_path / "attack.json"
    assert status_of(*QUICK, "--config", "rampage_tiny", "--attack", campaign, "--out", tmp_path) == 0
    result = json.loads((tmp_path / "parity.json").read_text())
    assert result["campaign"]["matrix"] == {OUTCOME.expected_rung: {OUTCOME.rung: 1}}
    assert result["pair"] == "EpiBERTRampage"
    assert set(result["configuration"]) == {"R1", "R2"}
    assert {row["case"] for row in result["gates"]["weights"]["comparisons"]} == {"R1 recorded", "R2 recorded"}


def test_files_of_an_earlier_run_are_replaced_and_others_are_left(tmp_path):
    for name in (*FILES, "notes.txt"):
        (tmp_path / name).write_text("earlier")
    assert status_of(*QUICK, "--out", tmp_path) == 0
    found = content(tmp_path)
    assert found.pop("notes.txt") == b"earlier"
    assert sorted(found) == sorted(FILES)
    assert b"earlier" not in found.values()


# --- not proven -------------------------------------------------------------------------------------------------------


def test_what_is_not_proven_exits_with_1_and_writes_the_files_that_say_so(tmp_path, monkeypatch, capsys):
    break_port(monkeypatch, flip_a_bit)
    assert status_of(*QUICK, "--out", tmp_path) == command.NOT_PROVEN == 1
    assert sorted(content(tmp_path)) == sorted(FILES)
    result = json.loads((tmp_path / "parity.json").read_text())
    assert result["passed"] is False
    assert result["culprits"] == ["stem_conv"]
    assert result["gates"]["constants"]["status"] == "blocked"
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suites.findall(".//failure")
    assert "stem_conv" in capsys.readouterr().out


def test_a_port_that_raises_is_not_proven_rather_than_an_error_of_the_command(tmp_path, monkeypatch):
    def raising(port: EpiBERT) -> None:
        def boom(*_: object) -> None:
            raise RuntimeError("boom")

        port.crop_final.forward = boom  # type: ignore[assignment]

    break_port(monkeypatch, raising)
    assert status_of("--reference", "recorded", "--gates", "model", "--out", tmp_path) == 1
    result = json.loads((tmp_path / "parity.json").read_text())
    assert result["culprits"] == ["crop_final"]


# --- wrong use --------------------------------------------------------------------------------------------------------


def test_a_run_is_held_against_an_earlier_one(tmp_path, monkeypatch, capsys):
    earlier, out = tmp_path / "earlier.json", tmp_path / "out"
    status_of(*QUICK, "--out", out)
    result = json.loads((out / "parity.json").read_text())
    result["tolerances"]["float64"]["limit"] /= 2
    earlier.write_text(json.dumps(result))
    # Everything is proven, but a limit grew and nobody says why.
    assert status_of(*QUICK, "--against", earlier, "--out", out) == command.NOT_PROVEN
    printed = capsys.readouterr().out
    assert "no number moved" in printed
    assert "limit grew without a new reason: float64: limit 5e-13, now 1e-12" in printed
    break_port(monkeypatch, flip_a_bit)
    assert status_of(*QUICK, "--against", earlier, "--out", out) == command.NOT_PROVEN
    printed = capsys.readouterr().out
    assert "passed before: weights P1 recorded exact value stem_conv.weight" in printed
    # The fault was planted in memory, where no source tells of it.
    assert "not deterministic" in printed


def test_a_run_that_compares_less_than_the_earlier_one_is_not_proven(tmp_path, capsys):
    earlier, out = tmp_path / "earlier.json", tmp_path / "out"
    assert status_of(*QUICK, "--out", out) == command.PROVEN
    (out / "parity.json").rename(earlier)
    fewer = ("--reference", "recorded", "--gates", "weights", "--out", out)
    capsys.readouterr()
    assert status_of(*fewer, "--against", earlier) == command.NOT_PROVEN
    printed = capsys.readouterr().out
    assert "not compared any more: the gate constants: " in printed
    assert "not deterministic" not in printed
    assert status_of(*QUICK, "--against", earlier, "--out", out) == command.PROVEN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{}", "no result of this harness"),
        (f'{{"schema": {SCHEMA}, "gates": []}}', "'gates' is missing or of another type"),
        (f'{{"schema": {SCHEMA}, "gates": {{}}}}', "'tolerances' is missing"),
    ],
)
def test_an_earlier_run_that_is_none_exits_with_2_before_any_work(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.setattr(epibert_run, "run", lambda **_: pytest.fail("the work began"))
    earlier = tmp_path / "parity.json"
    if text is not None:
        earlier.write_text(text)
    assert status_of("--against", earlier, "--out", tmp_path / "out") == command.WRONG_USE
    assert message in error_of(capsys)


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), ("{}", "no record of a campaign")])
def test_a_campaign_that_is_none_exits_with_2_before_any_work(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.setattr(epibert_run, "run", lambda **_: pytest.fail("the work began"))
    campaign = tmp_path / "attack.json"
    if text is not None:
        campaign.write_text(text)
    assert status_of("--attack", campaign, "--out", tmp_path / "out") == command.WRONG_USE
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gates", "weights,gradient"], "unknown gates ['gradient']"),
        (["--gates", ""], "no gates given"),
        (["--gates", ","], "no gates given"),
        (["--config", "config.json"], "--config belongs to --checkpoint; without one it names recorded cases: rampage"),
        (["--checkpoint", "c", "--reference", "recorded"], "nothing is recorded for a checkpoint of your own"),
        (["--checkpoint", "no/such/checkpoint"], "no/such/checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_exits_with_2_says_what_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(epibert_run, "tensorflow_installed", lambda: True)
    assert status_of(*arguments, "--out", tmp_path / "new" / "folder") == command.WRONG_USE == 2
    assert message in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["--reference", "nothing"], ["--bins", "many"]], ids=str)
def test_an_argument_that_does_not_exist_exits_with_2(tmp_path, capsys, arguments):
    assert status_of(*arguments, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reference", ["both", "live"])
def test_without_tensorflow_a_living_reference_exits_with_2_and_says_what_to_do(
    tmp_path, monkeypatch, capsys, reference
):
    monkeypatch.setattr(epibert_run, "tensorflow_installed", lambda: False)
    assert status_of("--reference", reference, "--out", tmp_path / "out") == 2
    message = error_of(capsys)
    assert "install the extra 'reference'" in message
    assert "--reference recorded" in message
    assert not (tmp_path / "out").exists()


def test_without_tensorflow_the_recorded_numbers_can_still_be_met(tmp_path, monkeypatch):
    monkeypatch.setattr(epibert_run, "tensorflow_installed", lambda: False)
    assert status_of(*QUICK, "--out", tmp_path) == 0


@pytest.mark.parametrize("out", ["file", "file/folder"])
def test_a_folder_that_cannot_be_written_exits_with_2_before_any_work(tmp_path, monkeypatch, capsys, out):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(epibert_run, "run", lambda **_: pytest.fail("the work began"))
    assert status_of(*QUICK, "--out", tmp_path / out) == 2
    assert f"cannot write to {tmp_path / out}" in error_of(capsys)
    assert content(tmp_path) == {"file": b"in the way"}


def test_without_the_library_of_the_report_it_exits_with_2_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setattr(epibert_run, "run", lambda **_: pytest.fail("the work began"))
    assert status_of(*QUICK, "--out", tmp_path / "out") == 2
    assert "report.html needs the extra `report`" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_without_tensorflow_a_benchmark_exits_with_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(epibert_run, "tensorflow_installed", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        command.main(["bench", "--config", "tiny", "--out", str(tmp_path / "out")])
    assert exit_.value.code == 2
    assert "install the extra 'reference'" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_benchmark_finds_out_that_its_folder_cannot_be_written_before_it_measures(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(benchmarks.command, "run_benchmarks", lambda *_, **__: pytest.fail("the work began"))
    with pytest.raises(SystemExit) as exit_:
        command.main(["bench", "--config", "tiny", "--out", str(tmp_path / "file")])
    assert exit_.value.code == 2
    assert f"cannot write to {tmp_path / 'file'}" in error_of(capsys)
    assert content(tmp_path) == {"file": b"in the way"}


def test_a_benchmark_whose_process_dies_is_one_message_and_status_1(tmp_path, monkeypatch, capsys):
    def dies(*_: object, **__: object) -> int:
        raise RuntimeError("port failed with status -9 (killed: out of memory?)")

    monkeypatch.setattr(benchmarks.command, "run_benchmarks", dies)
    with pytest.raises(SystemExit) as ended:
        command.main(["bench", "--config", "tiny", "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "epibert: error: port failed with status -9 (killed: out of memory?)\n"
    assert content(tmp_path) == {}


def test_a_benchmark_passes_its_status_on_and_writes_its_numbers(tmp_path, monkeypatch, capsys):
    def worse(config: str, repeats: int, rounds: int, out: Path, **selection: object) -> int:
        out.write_text(json.dumps([config, repeats, rounds, selection["parts"], selection["batches"]]))
        return 1

    monkeypatch.setattr(benchmarks.command, "run_benchmarks", worse)
    selection = ["--parts", '["training"]', "--batches", "[2]"]
    numbers = ["--repeats", "2", "--rounds", "4"]
    with pytest.raises(SystemExit) as exit_:
        command.main(["bench", "--config", "tiny", *numbers, *selection, "--out", str(tmp_path / "out")])
    assert exit_.value.code == 1
    assert content(tmp_path) == {"out/bench.json": b'["tiny", 2, 4, ["training"], [2]]'}
    assert str(tmp_path / "out") in capsys.readouterr().out.replace("\n", "")


def test_a_folder_without_recordings_exits_with_2(tmp_path, capsys):
    assert status_of(*QUICK, "--goldens", tmp_path, "--out", tmp_path / "out") == 2
    assert f"no recorded numbers in {tmp_path / 'P1'}" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


def truncated(folder: Path) -> None:
    file = folder / "P1" / "forward.h5"
    file.write_bytes(file.read_bytes()[:100_000])


def without_configuration(folder: Path) -> None:
    (folder / "P1" / "config.json").unlink()


def with_a_broken_configuration(folder: Path) -> None:
    (folder / "P1" / "config.json").write_text("{")


def without_environment(folder: Path) -> None:
    (folder / "environment.json").unlink()


def without_constants(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "P1" / "forward.h5", "a") as file:
        del file["constants"]


def without_a_shard(folder: Path) -> None:
    next((folder / "P1" / "ckpt_before").glob("*.data-*")).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        without_configuration,
        with_a_broken_configuration,
        without_environment,
        without_constants,
        without_a_shard,
    ],
    ids=lambda damage: damage.__name__,
)
def test_damaged_recordings_exit_with_2_and_leave_nothing_behind(goldens, tmp_path, capsys, damage):
    copy = shutil.copytree(goldens, tmp_path / "goldens")
    damage(copy)
    assert status_of(*QUICK, "--goldens", copy, "--out", tmp_path / "out") == 2
    assert str(copy) in error_of(capsys)
    assert not (tmp_path / "out").exists()


# --- whole files or none ----------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_the_earlier_files_as_they_were(tmp_path, monkeypatch):
    assert status_of(*QUICK, "--out", tmp_path) == 0
    before = content(tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError("the report broke")

    monkeypatch.setattr(page, "write_html", fail)
    with pytest.raises(RuntimeError, match="the report broke"):
        command.main(["parity", *QUICK, "--out", str(tmp_path)])
    assert content(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_an_error_in_the_middle_leaves_no_new_folder(tmp_path, monkeypatch):
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(epibert_run, "run", interrupted)
    assert status_of(*QUICK, "--out", tmp_path / "a" / "b") == 130
    assert list(tmp_path.iterdir()) == []


def test_an_existing_empty_folder_is_kept_after_an_error(tmp_path):
    assert status_of("--gates", "nothing", "--out", tmp_path / "") == 2
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


# --- the program itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["parity", "--help"], ["weights", "--help"], ["bench", "--help"]], ids=str
)
def test_help_is_complete_and_exits_with_0(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_every_argument_of_the_command_is_explained(capsys):
    with pytest.raises(SystemExit):
        command.main(["parity", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ("checkpoint", "config", "gates", "out", "reference", "bins", "batch", "goldens", "device", "attack"):
        assert f"--{name}" in text
    for word in ("Rungs to prove", "Folder for the four files", "128-bp bins"):
        assert word in text


def test_the_command_without_a_subcommand_exits_with_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main([])
    assert exit_.value.code == 2
    assert capsys.readouterr().err


def test_the_module_runs_the_same_command(tmp_path):
    with pytest.raises(SystemExit) as exit_:
        command.main([*QUICK, "--out", str(tmp_path)], components=command.parity, program="python -m parity")
    assert exit_.value.code == 0
    assert sorted(content(tmp_path)) == sorted(FILES)


def test_every_argument_reaches_the_work(tmp_path, monkeypatch):
    """One of them, ``--config``, has a meaning of its own to the library that reads the command line."""
    seen: dict[str, object] = {}

    def run(**given: object) -> None:
        seen.update(given)
        raise epibert_run.UsageError("seen")

    monkeypatch.setattr(epibert_run, "run", run)
    given = ("--checkpoint", "c", "--config", "f.json", "--bins", "8", "--batch", "3", "--goldens", "g")
    more = ("--gates", "weights layers", "--reference", "live", "--device", "cuda", "--out", tmp_path / "out")
    assert status_of(*given, *more) == 2
    del seen["say"], seen["jobs"], seen["ledger"]
    assert seen == {
        "checkpoint": "c",
        "config": "f.json",
        "bins": 8,
        "batch": 3,
        "goldens": "g",
        "gates": ["weights", "layers"],
        "reference": "live",
        "device": "cuda",
    }


@pytest.mark.parametrize("missing", ["functions.h5", "data/data.h5", "data/finetune_val.tfr", "R1/forward.h5"])
def test_recordings_that_lack_a_file_exit_with_2_and_name_it(goldens, tmp_path, capsys, missing):
    copy = shutil.copytree(goldens, tmp_path / "goldens")
    (copy / missing).unlink()
    assert status_of(*QUICK, "--goldens", copy, "--out", tmp_path / "out") == 2
    assert f"no recorded numbers in {copy / missing}" in capsys.readouterr().err


def test_the_configuration_of_a_transplant_reaches_the_work(goldens, tmp_path, capsys):
    checkpoint = goldens / "P1" / "ckpt_before" / "ckpt-1"
    with pytest.raises(SystemExit) as exit_:
        command.main(
            ["weights", "transplant", str(checkpoint), str(tmp_path / "out"), "--config", str(tmp_path / "none.json")]
        )
    assert exit_.value.code == 2
    assert "none.json" in error_of(capsys)


# --- attack -----------------------------------------------------------------------------------------------------------


def attack_status(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        command.main(["attack", *map(str, arguments)])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "no rotation", "no such fault"), "no fault of the name 'no such fault'"),
        (("--only", "no such fault", "--only", "no rotation"), "no fault of the name 'no such fault'"),
        (("--only=no such fault",), "no fault of the name 'no such fault'"),
        (("--only",), "--only needs the name of a fault"),
        (("--only", "--list"), "--only needs the name of a fault"),
        (("--only=",), "--only needs the name of a fault"),
        (("--only", "no rotation", "--only"), "--only needs the name of a fault"),
        (("--rules", "maybe"), "--rules takes true or false, or nothing after it, not 'maybe'"),
        (("--list", "no rotation"), "--list takes true or false, or nothing after it, not 'no rotation'"),
        (("--clean", "-1"), "--clean and --first_seed must be at least 0"),
        (("--first_seed", "-1"), "--clean and --first_seed must be at least 0"),
        (("--jobs", "0"), "--jobs at least 1"),
        (("--only", "no rotation", "--kind", "data"), "of the kind data"),
    ],
)
def test_an_attack_that_cannot_be_made_is_wrong_use(tmp_path, capsys, arguments, message):
    assert attack_status(*arguments, "--out", tmp_path / "out") == command.WRONG_USE
    assert message in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_an_attack_whose_folder_cannot_be_written_is_wrong_use(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert attack_status("--only", "no rotation", "--out", tmp_path / "file") == command.WRONG_USE
    assert "cannot write" in error_of(capsys)


def test_the_catalogue_of_faults_is_listed_and_nothing_is_done(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attack_status("--kind", "constants", "--list") == command.PROVEN
    assert "Gaussian" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_number_of_configurations():
    said = " ".join((command.attack.__doc__ or "").split())
    assert f"{SHARING} share {CONFIGURATIONS} small configurations" in said


@pytest.mark.parametrize("found", [True, False])
def test_the_status_of_an_attack_is_what_the_campaign_says(tmp_path, capsys, monkeypatch, found):
    outcome = dataclasses.replace(OUTCOME, rung="layers" if found else "")
    asked: dict[str, Any] = {}

    def campaign(target: str, **options: Any) -> Campaign:
        asked.update(options)
        return Campaign(outcomes=(outcome,))

    monkeypatch.setattr("parity.attack.campaign.run_campaign", campaign)
    names = ("no rotation", "a peak's mask as wide as a region")
    status = attack_status("--only", *names, "--rules", "--jobs", "3", "--out", tmp_path)
    assert status == (command.PROVEN if found else command.NOT_PROVEN)
    assert asked["names"] == list(names)
    assert (asked["clean"], asked["sensitivity"], asked["rules"], asked["jobs"]) == (0, False, True, 3)
    assert json.loads((tmp_path / "attack.json").read_text())["passed"] is found
    capsys.readouterr()
    for given in (("--only", names[0], f"--only={names[1]}"), ("--only=" + json.dumps(names),)):
        assert attack_status(*given, "--out", tmp_path) == status
        assert asked["names"] == list(names)
    assert attack_status("--first_seed", str(SHARING), "--out", tmp_path) == status
    assert (asked["clean"], asked["first_seed"], asked["sensitivity"]) == (200, SHARING, True)
    assert ("NOT PROVEN" in capsys.readouterr().out) is not found
