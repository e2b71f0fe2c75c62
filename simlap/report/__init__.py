"""The report of a study: who is better, by how much, and how sure that is."""

from simlap.report.build import Report, build, content, render, summary_of, write_report
from simlap.report.console import print_report

__all__ = ["Report", "build", "content", "print_report", "render", "summary_of", "write_report"]
