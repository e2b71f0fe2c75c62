"""The report of a study: who is better, by how much, and how sure that is."""

from simlap.report.build import Report, build, print_report, render, summary_of, write_report

__all__ = ["Report", "build", "print_report", "render", "summary_of", "write_report"]
