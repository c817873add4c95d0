"""The summary in Markdown: verdict, ladder, culprits, and no name that is read as markup."""

import dataclasses
import re

import pytest

from parity.report.markdown import render, write_markdown
from parity.report.summary import verdict
from tests.unit.parity.report import results

SAMPLES = ("passing", "failing", "wrong_gradients", "broken_run", "empty", "nothing_asked")


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


@pytest.mark.parametrize("name", SAMPLES)
def test_it_says_the_verdict_and_every_rung(tmp_path, name):
    result = getattr(results, name)()
    write_markdown(result, tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith(f"## {'✓' if verdict(result).proven else '✗'} {verdict(result).headline}")
    assert verdict(result).sentence in unescaped(text)
    assert verdict(result).next_step in unescaped(text)
    for rung in result.gates:
        assert re.search(rf"^\| {rung} \| ", text, re.MULTILINE)


def test_culprits_are_listed_with_what_was_found():
    text = unescaped(render(results.failing()))
    for culprit in results.failing().culprit_rows:
        if "<" not in culprit.port:
            assert f"| {culprit.port} | {culprit.reference} |" in text


def test_hostile_names_are_text():
    text = render(results.failing())
    assert "\\<script" in text
    assert not re.search(r"(?<!\\)[<>`]", text.replace("**", ""))


def test_many_culprits_are_counted():
    result = results.failing()
    row = result.culprit_rows[0]
    assert "And 3 others." in unescaped(render(dataclasses.replace(result, culprit_rows=(row,) * 15)))


def test_what_a_campaign_found_is_said():
    assert "faults: 5, caught 4" in unescaped(render(results.failing()))
