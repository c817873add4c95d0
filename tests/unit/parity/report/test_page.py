"""The page as text: what it says, that nothing escapes from its place, and that it loads nothing."""

import dataclasses
import html.parser
import json
import re
import sys

import pytest

from parity.records import Gate, GateStatus, Result
from parity.report.page import embedded, render, write_html
from tests.unit.parity.report import results

SAMPLES = ("passing", "forward", "failing", "wrong_gradients", "broken_run", "empty", "nothing_asked")


class Parsed(html.parser.HTMLParser):
    """Elements, attributes and texts of a page, as a browser would cut it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.texts: list[str] = []
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in = tag
        if tag in ("script", "style"):
            getattr(self, f"{tag}s").append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in in ("script", "style"):
            getattr(self, f"{self._in}s")[-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))


def unpacked(text: str) -> dict:
    """The result as it was before its comparisons were put into columns, without what belongs to the page alone."""
    data = json.loads(text)
    del data["figures"], data["training"]

    def value(column, index):
        if "all" in column:
            return column["all"]
        return column["table"][column["at"][index]] if "at" in column else column["list"][index]

    for gate in data["gates"].values():
        packed = gate["comparisons"]
        gate["comparisons"] = [
            {field: value(column, index) for field, column in packed["columns"].items()}
            for index in range(packed["count"])
        ]
    return data


@pytest.fixture(scope="module")
def pages() -> dict[str, Parsed]:
    return {name: Parsed(render(getattr(results, name)())) for name in SAMPLES}


@pytest.mark.parametrize("name", SAMPLES)
def test_embedded_data_is_the_result(pages, name):
    data, *scripts = pages[name].scripts
    assert unpacked(data) == json.loads(json.dumps(getattr(results, name)().to_dict()))
    assert len(scripts) == 2  # plotly.js and our own


def test_embedded_data_cannot_leave_its_element():
    text = embedded(results.failing())
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_hostile_names_are_text(pages):
    page = pages["failing"]
    assert "<img src=x onerror=alert(1)>" in page.text
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert "img" not in {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_page_survives_every_character(tmp_path):
    path = tmp_path / "report.html"
    write_html(results.failing(), path)  # a lone surrogate has no UTF-8
    shown = Parsed(path.read_text(encoding="utf-8")).text
    assert r"\x1b[31m\ud800\u202e\x00" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_page_loads_nothing(pages):
    for page in pages.values():
        for tag, attributes in page.elements:
            assert "src" not in attributes
            assert "srcset" not in attributes
            assert attributes.get("href", "#").startswith(("#", "data:")), tag
        assert all("url(" not in style and "@import" not in style for style in page.styles)
        _, plotly, script = page.scripts
        assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", script)
        assert plotly.startswith("/**\n* plotly.js")
        policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
        assert policy is not None
        assert policy.startswith("default-src 'none'; script-src 'sha256-")


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("passing", "Proven"),
        ("failing", "Not proven"),
        ("empty", "Not proven"),
        ("nothing_asked", "Not proven"),
    ],
)
def test_verdict_comes_first(pages, name, headline):
    texts = [text.strip() for text in pages[name].texts if text.strip()]
    assert texts[0] == f"{headline}: {getattr(results, name)().pair}"  # title
    assert headline in texts[4:8]
    assert name == "passing" or "Proven" not in texts


def test_failing_page_names_the_first_culprit_before_the_ladder(pages):
    text = pages["failing"].text
    ladder = text.index("127 comparisons")
    for words in ("performer.layers.2.attention", "performer/layers/2/self_attention", "What to do"):
        assert 0 < text.index(words) < ladder


def test_a_culprits_script_is_linked_or_why_there_is_none():
    first, second, *_ = results.failing().culprit_rows
    rows = (
        dataclasses.replace(first, script="repro/first.py"),
        dataclasses.replace(second, no_script="it has <hooks>"),
    )
    page = render(dataclasses.replace(results.failing(), culprit_rows=rows))
    assert '<a href="repro/first.py">repro/first.py</a>' in page
    assert "no script: it has &lt;hooks&gt;" in page


def test_page_holds_every_section(pages):
    text = pages["passing"].text
    for words in (
        "Weight map",
        "Comparisons",
        "c of the tanh GELU",
        "dropout is off",
        "2 x the reference's own, at least 3.4e-08",
        "machine.processor",
        "x86_64",
        "filter_list_seq",
        "64, 80",
        "1 min 47 s",
    ):
        assert words in text, words


def test_unlisted_tolerance_is_shown():
    result = dataclasses.replace(results.forward(), tolerances={})
    assert "not in the table of tolerances" in Parsed(render(result)).text


def test_gate_that_was_asked_for_and_is_absent_is_shown():
    result = Result(pair="pair", reference="reference", requested=("layers",), gates={})
    assert "there is no such gate" in Parsed(render(result)).text


def test_reason_of_a_blocked_gate_is_shown():
    gate = Gate(name="layers", status=GateStatus.BLOCKED, reason="gate <b>weights</b> did not pass")
    result = Result(pair="pair", reference="reference", requested=("layers",), gates={"layers": gate})
    assert "gate <b>weights</b> did not pass" in Parsed(render(result)).text


@pytest.mark.parametrize("library", ["jinja2", "plotly.offline"])
def test_missing_library_names_the_extra(monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    path = tmp_path / "report.html"
    with pytest.raises(ImportError, match=r"extra `report`.*pip install 'epibert-parity\[report\]'"):
        write_html(results.passing(), path)
    assert not path.exists()


def headings(page: Parsed) -> set[str]:
    return {str(attributes["id"]) for tag, attributes in page.elements if tag == "h2"}


def test_training_has_its_figures(pages):
    found = headings(pages["passing"])
    assert {"gradients-heading", "trajectory-heading", "convergence-heading", "by-case-heading"} <= found
    assert "absent-heading" not in found
    ids = {attributes.get("id") for _, attributes in pages["passing"].elements}
    assert {"gradients", "trajectory-0", "trajectory-1", "runs-0", "differences-0", "runs-1", "differences-1"} <= ids


def test_training_that_was_not_asked_for_is_said_in_a_line(pages):
    found = headings(pages["forward"])
    assert "absent-heading" in found
    assert not {"gradients-heading", "trajectory-heading", "convergence-heading", "by-case-heading"} & found
    for name in ("gradients", "trajectory", "convergence"):
        assert f"{name} not run: not asked for." in pages["forward"].text


def test_blocked_convergence_says_why(pages):
    page = pages["wrong_gradients"]
    assert "convergence-heading" not in headings(page)
    assert "trajectory-heading" in headings(page)
    assert "convergence blocked: the gate 'gradients' did not pass. Nothing was measured." in page.text
    assert "trajectory blocked: the gate 'gradients' did not pass. What is shown of it proves nothing." in page.text


def test_decision_of_the_convergence_is_in_words(pages):
    text = pages["passing"].text
    found = results.passing().equivalences[0]
    assert f"90 % interval [{found.low:+.3g}, {found.high:+.3g}], margin ±0.012 declared beforehand" in text
    assert "n = 24 pairs" in text
    assert text.count("Equivalent: the interval lies inside the margin.") == 2


def test_hostile_names_in_training_are_text(pages):
    for name in ("wrong_gradients", "broken_run"):
        page = pages[name]
        assert "<img src=x onerror=alert(1)>" in page.text
        assert [tag for tag, _ in page.elements].count("script") == 3
        assert "img" not in {tag for tag, _ in page.elements}
    assert r"port, seed 1: ValueError: </script><script>" in pages["broken_run"].text


def test_runs_without_a_decision_and_decisions_without_runs_are_shown():
    result = results.passing()
    assert (
        Parsed(render(dataclasses.replace(result, equivalences=()))).text.count("No decision on it was recorded.") == 2
    )
    assert "Equivalent" in Parsed(render(dataclasses.replace(result, runs=()))).text


def test_a_full_run_stays_small():
    result = results.full_size()
    assert len(result.comparisons) > 16_000
    assert len(render(result)) < 8_000_000


def test_seeded_faults_are_shown_where_a_campaign_is_given():
    assert "Seeded faults" not in " ".join(Parsed(render(results.passing())).texts)
    texts = [text.strip() for text in Parsed(render(results.failing())).texts]
    assert "Seeded faults" in texts
    assert "faults: 5, caught 4" in texts
    assert any("Of other sources than this run" in text for text in texts)
    assert any(text.startswith("not caught: ") for text in texts)
    assert any(text.startswith("false alarm: seed 1") for text in texts)
