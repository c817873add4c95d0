"""The page in a real browser, at desktop and phone width, light and dark. Fails where there is no Chromium."""

import dataclasses
import re

import pytest

from parity.report.page import write_html
from tests.unit.parity.report import results
from tests.unit.parity.report.browser import Browser

pytestmark = pytest.mark.browser

SAMPLES = ("passing", "failing", "broken_run", "empty", "nothing_asked")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name in (*SAMPLES, "wrong_gradients", "leaving"):
        write_html(getattr(results, name)(), folder / f"{name}.html")
    return folder


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SAMPLES)
def test_page_opens_cleanly(browser, pages, name, size, dark):
    path = pages / f"{name}.html"
    browser.open(path, width=SIZES[size][0], height=SIZES[size][1], dark=dark)
    assert browser.run("document.title").startswith("Proven" if name == "passing" else "Not proven")
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= SIZES[size][0], "the page scrolls sideways"
    assert (browser.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)") == dark


@pytest.mark.parametrize("size", SIZES)
def test_failing_run_says_it_all_on_the_first_screen(browser, pages, size):
    width, height = SIZES[size]
    browser.open(pages / "failing.html", width=width, height=height)
    start = browser.run("document.querySelector('.start').innerText")
    assert "performer.layers.2.attention" in start
    assert "performer/layers/2/self_attention" in start
    assert "What to do" in start
    assert browser.run("document.querySelector('.start').getBoundingClientRect().bottom") <= height


def test_hostile_names_are_text_everywhere(browser, pages):
    browser.open(pages / "failing.html")
    assert browser.run("document.title").startswith("Not proven")
    assert browser.run("document.querySelectorAll('img, body script:not([id])').length") == 2  # plotly and our own
    assert "<script>" in browser.run("document.getElementById('comparisons').innerText")
    assert "<img src=x" in browser.run("document.getElementById('weights').innerText + weights.textContent")
    hover = browser.run("figure.data.flatMap(trace => trace.text || []).find(text => text.includes('alert'))")
    assert "alert(1)&gt;" in hover
    assert not re.search(r"<(?!/?b>|br>)", hover)


def test_a_foreign_script_does_not_run(browser, pages):
    browser.open(pages / "passing.html")
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.taken = true'}))"
    )
    assert browser.run("window.taken") is None
    assert any("Content Security Policy" in str(problem) for problem in browser.problems)


def test_figure_draws_every_layer_and_switches(browser, pages):
    browser.open(pages / "passing.html")
    layers = len({row.port for row in results.passing().gates["layers"].comparisons})
    drawn = "figure.data.filter(trace => trace.customdata).map(trace => trace.y.length)"
    assert browser.run(drawn) == [layers] * 3
    blocks = len({row.port for row in results.passing().gates["blocks"].comparisons})
    browser.run("document.querySelectorAll('[name=Reading]')[1].click()")
    assert browser.run(drawn) == [blocks] * 3
    browser.run("document.querySelector('#figure-controls [type=checkbox]').click()")
    assert browser.run(drawn) == [blocks] * 2
    assert browser.problems == []


def test_many_cases_are_chosen_from_a_list(browser, tmp_path):
    result = results.forward()
    gate = result.gates["layers"]
    rows = [dataclasses.replace(row, case=f"case {number}") for number in range(6) for row in gate.comparisons]
    rows = [row for row in rows if row.case != "case 4" or row.port == "stem_conv"]
    gates = {**result.gates, "layers": dataclasses.replace(gate, comparisons=tuple(rows))}
    write_html(dataclasses.replace(result, gates=gates), tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    drawn = "figure.data.filter(trace => trace.customdata).map(trace => trace.y.length)"
    assert browser.run(drawn) == [len({row.port for row in gate.comparisons})] * 3
    browser.run(
        "(s => { s.value = 'case 4'; s.dispatchEvent(new Event('change')); })(document.querySelector('[name=Case]'))"
    )
    assert browser.run(drawn) == [1] * 3
    assert browser.problems == []


def test_exact_zeros_are_drawn_and_explained(browser, pages):
    browser.open(pages / "passing.html")
    trace = "figure.data.find(trace => trace.name === 'float64')"
    assert browser.run(f"{trace}.y.every(value => value > 0)")
    assert browser.run(f"{trace}.marker.symbol.includes('triangle-down-open')")
    assert "exact zero" in browser.run("document.getElementById('figure-note').textContent")
    assert "0" in browser.run("figure.layout.yaxis.ticktext")


def test_missing_and_non_finite_are_drawn(browser, pages):
    browser.open(pages / "failing.html")
    layers = len({row.port for row in results.failing().gates["layers"].comparisons})
    assert browser.run("figure.data.filter(trace => trace.customdata).map(trace => trace.y.length)") == [layers] * 3
    assert "none" in browser.run("figure.layout.yaxis.ticktext")


def test_keyboard_reads_layers_and_lists_their_comparisons(browser, pages):
    browser.open(pages / "passing.html")
    browser.run("document.getElementById('figure').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.press(key)
    readout = browser.run("document.getElementById('readout').textContent")
    assert readout.startswith("stem_res_conv.block.norm (stem_res_conv/_layer/0) float64: ")
    browser.press("Enter")
    rows = "[...document.querySelectorAll('#comparisons tbody tr')].map(row => row.innerText)"
    listed = browser.run(rows)
    assert listed
    assert all("stem_res_conv.block.norm" in row for row in listed)


def test_tables_search_filter_and_sort(browser, pages):
    browser.open(pages / "failing.html")
    failed = len(results.failing().gates["layers"].failures)
    rows = "document.querySelectorAll('#comparisons tbody tr').length"
    assert browser.run(rows) == failed
    type_in = (
        "(s => {{ s.value = '{}'; s.dispatchEvent(new Event('input')); }})(document.querySelector('#{} [type=search]'))"
    )
    browser.run(type_in.format("layers.4.norm float64", "comparisons"))
    assert browser.run(rows) == 2
    browser.run(type_in.format("", "comparisons"))
    browser.run("[...document.querySelectorAll('#comparisons th button')].find(b => b.textContent === 'Error').click()")
    assert browser.run("document.querySelector('#comparisons th[aria-sort]').getAttribute('aria-sort')") == "descending"
    assert "missing" in browser.run("document.querySelector('#comparisons tbody tr').innerText").replace(
        "non-finite", "missing"
    )
    browser.run(type_in.format("stem_conv_atac", "weights"))
    assert browser.run("document.querySelectorAll('#weights tbody tr').length") == 1


def test_every_control_is_reached_by_the_keyboard(browser, pages):
    browser.open(pages / "failing.html")
    reached = set()
    for _ in range(90):
        browser.press("Tab")
        reached.add(
            browser.run("document.activeElement.id || document.activeElement.type || document.activeElement.className")
        )
    assert {"skip", "figure", "radio", "checkbox", "search", "select-one", "button", "scroll"} <= reached


def element(name: str) -> str:
    return f"document.getElementById('{name}')"


def choose(name: str, value: str) -> str:
    setting = f"s => {{ s.value = '{value}'; s.dispatchEvent(new Event('change')); }}"
    return f"({setting})(document.getElementsByName('{name}')[0])"


def test_gradients_of_every_parameter_are_drawn(browser, pages):
    browser.open(pages / "passing.html")
    counts = "gradients.data.filter(trace => trace.customdata).map(trace => [trace.name, trace.y.length])"
    drawn = f"Object.fromEntries({counts})"
    parameters = len(results.parameters())
    assert browser.run(drawn) == {
        "isolated float64": parameters,
        "accumulated float64": parameters,
        "accumulated float32": parameters - 7,
    }
    limits = browser.run("gradients.data.find(trace => trace.name === 'isolated float64 limit').y")
    assert set(limits) == {1e-11, 1e-12}
    assert browser.run("gradients.layout.yaxis.type") == "log"
    curve = browser.run("gradients.data.find(trace => trace.name === 'isolated float64 line').y")
    assert curve.count(None) == 7, "noise is joined to the curve"
    assert "zero in exact arithmetic" in browser.run(f"{element('gradients-note')}.textContent")
    browser.run("document.getElementsByName('gradients view')[1].click()")
    assert browser.run(drawn)["isolated float64"] == 2 * len(list(results.names()))
    browser.run(f"{element('gradients-controls')}.querySelector('[type=checkbox]').click()")
    assert "isolated float64" not in browser.run(drawn)
    assert browser.problems == []


def test_hostile_names_among_the_gradients_are_text(browser, pages):
    browser.open(pages / "wrong_gradients.html")
    hover = browser.run("gradients.data.flatMap(trace => trace.text || []).find(text => text.includes('alert'))")
    assert "alert(1)&gt;" in hover
    assert not re.search(r"<(?!/?b>|br>)", hover)
    assert "none" in browser.run("gradients.layout.yaxis.ticktext")
    assert browser.run("document.querySelectorAll('img').length") == 0
    browser.run(f"{element('gradients')}.focus()")
    browser.press("ArrowRight")
    assert browser.run(f"{element('gradients-readout')}.textContent").startswith("stem_conv.weight (stem_conv/kernel)")
    browser.press("Enter")
    listed = browser.run("[...document.querySelectorAll('#comparisons tbody tr')].map(row => row.innerText)")
    assert listed
    assert all("stem_conv.weight" in row for row in listed)


def test_trajectory_has_a_panel_for_each_precision(browser, pages):
    browser.open(pages / "passing.html")
    for position, precision in enumerate(("float64", "float32")):
        panel = element(f"trajectory-{position}")
        rows = [
            row
            for row in results.passing().gates["trajectory"].comparisons
            if row.precision == precision and row.quantity.startswith("weights")
        ]
        for name, field in (("port", "error"), ("envelope", "reference_error"), ("limit", "limit")):
            values = browser.run(f"{panel}.data.find(trace => trace.name === '{name}').y")
            assert values == [getattr(row, field) for row in rows]
        assert browser.run(f"{panel}.layout.yaxis.type") == "log"
    before = browser.run("document.getElementById('trajectory-0').data.find(trace => trace.name === 'port').y")
    browser.run(choose("trajectory quantity", "loss"))
    after = browser.run("document.getElementById('trajectory-0').data.find(trace => trace.name === 'port').y")
    assert after != before
    browser.run("document.getElementById('trajectory-0').focus()")
    browser.press("End")
    readout = browser.run(f"{element('trajectory-0-readout')}.textContent")
    assert readout.startswith(f"loss at step {results.STEPS} port ")
    browser.press("Enter")
    listed = browser.run("[...document.querySelectorAll('#comparisons tbody tr')].map(row => row.innerText)")
    assert len(listed) == len(results.QUANTITIES)
    assert browser.problems == []


def test_trajectory_that_fails_shows_what_fails(browser, pages):
    browser.open(pages / "leaving.html")
    symbols = browser.run(
        "document.getElementById('trajectory-0').data.find(trace => trace.name === 'port').marker.symbol"
    )
    assert symbols.count("x") == results.STEPS - 19
    assert browser.run("document.getElementsByName('trajectory quantity')[0].value") == "weights"


def test_convergence_draws_runs_and_differences(browser, pages):
    browser.open(pages / "passing.html")
    count = len(results.SEEDS)
    for position, equivalence in enumerate(results.passing().equivalences):
        for side in ("reference", "port"):
            drawn = f"document.getElementById('runs-{position}').data.find(trace => trace.name === '{side} runs').y"
            assert len([value for value in browser.run(drawn) if value is not None]) == 4 * count
        differences = f"document.getElementById('differences-{position}')"
        points = browser.run(f"{differences}.data.find(trace => trace.name === 'differences').x")
        assert points == list(equivalence.differences)
        interval = browser.run(f"{differences}.data.find(trace => trace.name === 'interval').x")
        assert interval == [equivalence.low, equivalence.high]
        zone = browser.run(f"{differences}.layout.shapes[0]")
        assert (zone["x0"], zone["x1"]) == (-equivalence.margin, equivalence.margin)
    browser.run("document.getElementById('differences-1').focus()")
    for key in ("ArrowRight", "ArrowRight"):
        browser.press(key)
    assert browser.run(f"{element('runs-1-readout')}.textContent").startswith("seed 2 reference 0.")
    selected = "document.getElementById('runs-1').data.filter(trace => trace.name.endsWith('selected')).length"
    assert browser.run(selected) == 2
    assert browser.problems == []


def test_a_case_lists_its_comparisons(browser, pages):
    browser.open(pages / "passing.html")
    browser.run("document.querySelectorAll('.cases details').forEach(details => { details.open = true; })")
    button = "[...document.querySelectorAll('.list-case')].find(button => button.dataset.gate === 'state')"
    browser.run(f"{button}.click()")
    rows = len(results.passing().gates["state"].comparisons)
    assert browser.run("document.querySelectorAll('#comparisons tbody tr').length") == rows
    assert browser.run("document.documentElement.scrollWidth") <= SIZES["desktop"][0]


@pytest.mark.parametrize("size", SIZES)
def test_nothing_moves_when_the_figures_are_drawn(browser, pages, size):
    browser.open(pages / "passing.html", width=SIZES[size][0], height=SIZES[size][1])
    moved = browser.run(
        "new Promise(done => { let sum = 0; new PerformanceObserver(list => list.getEntries().forEach(entry => {"
        " sum += entry.value; })).observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(sum), 300); })"
    )
    assert moved == 0


def test_a_full_run_opens(browser, tmp_path):
    write_html(results.full_size(), tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    browser.run(
        "(s => { s.value = 'exp_avg_sq 1e-3'; s.dispatchEvent(new Event('input')); })"
        "(document.querySelector('#comparisons [type=search]'))"
    )
    browser.run(
        "document.querySelectorAll('#comparisons select').forEach("
        "s => { s.value = ''; s.dispatchEvent(new Event('change')); })"
    )
    assert browser.run("document.querySelectorAll('#comparisons tbody tr').length") == 200
    assert browser.problems == []
