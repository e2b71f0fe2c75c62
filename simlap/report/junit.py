"""Claims as JUnit XML, which continuous integration reads: a test case for each."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from simlap.report.claims import Judged


def junit(study: str, judged: Sequence[Judged]) -> str:
    """One test suite. What fails is a failure, what is undecided an error: neither passes.

    Args:
        study: its name.
        judged: its claims, in the order of the file.
    """
    failures, errors = (sum(one.verdict == verdict for one in judged) for verdict in ("fails", "undecided"))
    suite = ElementTree.Element(
        "testsuite", name=_plain(study), tests=str(len(judged)), failures=str(failures), errors=str(errors), time="0"
    )
    for one in judged:
        case = ElementTree.SubElement(suite, "testcase", classname=_plain(study), name=_plain(one.claim), time="0")
        if one.verdict != "holds":
            kind = "failure" if one.verdict == "fails" else "error"
            ElementTree.SubElement(case, kind, type=one.verdict, message=_plain(one.text)).text = _plain(one.text)
        else:
            ElementTree.SubElement(case, "system-out").text = _plain(one.text)
    whole = ElementTree.Element("testsuites")
    whole.append(suite)
    ElementTree.indent(whole)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(whole, encoding="unicode") + "\n"


def _plain(text: str) -> str:
    """Without what no XML document may hold."""
    return "".join(
        c for c in text if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )
