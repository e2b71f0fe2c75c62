"""The parts of the study's page, by subject; `simlap.report.html` puts them together."""
