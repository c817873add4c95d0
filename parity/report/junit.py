"""JUnit XML of a result: one suite per gate, one case per comparison, nothing ever skipped."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from parity.records import Comparison, GateStatus, Result, Status
from parity.report.summary import (
    Rung,
    aspect,
    expected,
    got,
    ladder,
    owner,
    place,
    printable,
    setting,
    subject,
    verdict,
)


def write_junit(result: Result, path: str | Path) -> None:
    """Writes what CI servers read.

    A gate that was asked for and did not pass always has a failure or an error. In a blocked gate every case is a
    failure, agreeing or not, because an agreement there proves nothing. A gate that was neither asked for nor run has
    no suite.

    Args:
        result: What a verification found.
        path: File to write.
    """
    root = ElementTree.Element("testsuites", name=printable(result.pair))
    suites = [_suite(result, rung) for rung in ladder(result) if rung.requested or rung.compared]
    if not suites:
        # No suite at all would be read as success.
        suites = [ElementTree.Element("testsuite", name="verdict", time="0.000")]
        case = ElementTree.SubElement(suites[0], "testcase", classname="verdict", name="gate", time="0.000")
        ElementTree.SubElement(case, "error", type="empty", message=printable(verdict(result).sentence))
    root.extend(suites)
    for suite in suites:
        _count(suite, [suite])
    _count(root, suites)
    root.set("time", f"{sum(result.seconds.values()):.3f}")
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    Path(path).write_bytes(text + b"\n")


def _count(element: ElementTree.Element, suites: list[ElementTree.Element]) -> None:
    for name, tag in (("tests", "testcase"), ("failures", "testcase/failure"), ("errors", "testcase/error")):
        element.set(name, str(sum(len(suite.findall(tag)) for suite in suites)))
    element.set("skipped", "0")


def _suite(result: Result, rung: Rung) -> ElementTree.Element:
    name = printable(rung.name)
    suite = ElementTree.Element("testsuite", name=name, time=f"{result.seconds.get(rung.name, 0.0):.3f}")
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"status": rung.label, "reason": rung.reason, "reference": result.reference}
    for key, value in facts.items():
        ElementTree.SubElement(properties, "property", name=key, value=printable(value))
    gate = result.gates.get(rung.name)
    seen: Counter[str] = Counter()
    for row in gate.comparisons if gate is not None else ():
        title = f"{subject(row)}{aspect(row)} [{setting(row)}]"
        seen[title] += 1
        if seen[title] > 1:  # several calls of one layer: CI servers keep one case per name
            title += f" #{seen[title]}"
        case = ElementTree.SubElement(suite, "testcase", classname=f"{name}.{owner(row)}", name=title, time="0.000")
        _outcome(case, row, rung)
    red = rung.failed or (rung.status is GateStatus.BLOCKED and rung.compared)
    if rung.status is not GateStatus.PASSED and not red:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="gate", time="0.000")
        kind = "failure" if rung.status is GateStatus.BLOCKED else "error"
        problem = ElementTree.SubElement(
            case, kind, type=rung.label if rung.compared else f"{rung.label}, empty", message=printable(rung.reason)
        )
        problem.text = f"{rung.label}: {printable(rung.reason, multiline=True)}"
    return suite


def _outcome(case: ElementTree.Element, row: Comparison, rung: Rung) -> None:
    blocked = rung.status is GateStatus.BLOCKED
    if row.status is Status.PASS and not blocked:
        return
    if row.status is Status.PASS:
        kind, message = "blocked", f"agrees, but proves nothing: {printable(rung.reason)}"
    else:
        kind, message = row.status.value, f"{got(row)}; expected {expected(row)}"
    tag = "error" if row.status is Status.NOT_RUN else "failure"
    problem = ElementTree.SubElement(case, tag, type=kind, message=message)
    lines = [
        f"got: {got(row)}",
        f"expected: {expected(row)}",
        f"where: port {place(row, 'port')}, reference {place(row, 'reference')}, {printable(row.quantity)}, "
        f"shape {row.shape}, {setting(row)}",
        f"answers for it: {owner(row)}",
    ]
    if row.detail:
        lines.append(f"detail: {printable(row.detail, multiline=True)}")
    if blocked:
        lines.append(f"blocked: {printable(rung.reason, multiline=True)}")
    problem.text = "\n".join(lines)
