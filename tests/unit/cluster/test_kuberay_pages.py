"""cluster/kuberay and cluster/image: the pages hold, and the image is made of what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.cluster.kube import FOLDER, IMAGE, OURS, PAGES, ROOT
from tests.unit.test_docs import check_command


def commands(text: str) -> list[str]:
    """simlap's, written alone or behind `--` of another program's."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [re.split(r"\s+#", line)[0].strip() for line in blocks.splitlines()] + spans
    return [found[1] for line in lines if (found := re.search(r"(?:^|-- )(simlap [a-z].*)", line))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_page(page: Path) -> None:
    text = page.read_text()
    for line in commands(text):
        check_command(line.replace("/app/", ""))
    for link in re.findall(r"\[[^\]]*\]\(([^)#\s]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for name in re.findall(r"[\w-]+\.yaml\b", text):
        assert (page.parent / name).exists() or list(ROOT.glob(f"*/{name}")), name
    assert OURS in text


def test_commands_of_the_page_are_found() -> None:
    found = commands((FOLDER / "README.md").read_text())
    assert {line.split()[1] for line in found} == {"ablate", "data", "plan", "report", "run", "status", "sync"}
    assert sum("--address auto" in line for line in found) == 3


def test_page_names_every_file() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.(?:yaml|sh))\)", (FOLDER / "README.md").read_text()))
    assert linked == {path.name for path in FOLDER.iterdir()} - {"README.md"}


def test_image() -> None:
    text = (IMAGE / "Containerfile").read_text()
    allowed = [line[1:] for line in (IMAGE / "Containerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    whole = re.sub(r"\\\n(\s*#[^\n]*\n)?", " ", text)  # an instruction a line
    installs = re.findall(r"pip install .*?(?=&&|\n|$)", whole)
    assert len(installs) == 3
    assert all("-c constraints.txt" in line or "--no-deps ." in line for line in installs)
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000:1000"]
    assert "ARG DEVICE=cpu" in text
    assert not re.search(r"https?://|:latest", text)
