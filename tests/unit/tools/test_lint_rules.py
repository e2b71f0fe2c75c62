"""What runs code from a file that it reads, or unpacks what an archive says, does not get past the linter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def findings(code: str, name: str = "simlap/new.py") -> set[str]:
    """The rules that a file of ours with this code breaks."""
    ruff = str(Path(sys.executable).parent / "ruff")
    words = [ruff, "check", "--no-cache", "--output-format", "concise", "--stdin-filename", name, "-"]
    done = subprocess.run(words, input=code, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return {line.split()[1] for line in done.stdout.splitlines() if line.startswith(name)}


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("import pickle\n\npickle.load(open('x', 'rb'))\n", "S301"),
        ("from pickle import Unpickler\n", "TID251"),
        ("import pickle\n\nread = pickle.loads\n", "TID251"),
        ("import pickle\n\npickle.dumps(1)\n", "TID251"),
        ("import shelve\n", "TID251"),
        ("import marshal\n", "TID251"),
        ("import numpy as np\n\nnp.load('x')\n", "TID251"),
        ("from ray import cloudpickle\n", "TID251"),
        ("import torch\n\ntorch.load('x')\n", "TID251"),
        ("import torch\n\ntorch.save(1, 'x')\n", "TID251"),
        ("import yaml\n\nyaml.load('x', Loader=yaml.Loader)\n", "S506"),
        ("import yaml\n\nyaml.unsafe_load('x')\n", "TID251"),
        ("import yaml\n\nyaml.safe_load('x')\n", "TID251"),
        ("eval('1')\n", "S307"),
        ("exec('1')\n", "S102"),
        ("import tarfile\n", "TID251"),
        ("from zipfile import ZipFile\n", "TID251"),
        ("import shutil\n\nshutil.unpack_archive('x')\n", "TID251"),
        ("import subprocess\n\nsubprocess.run('ls', shell=True)\n", "S602"),
        ("import os\n\nos.chmod('x', 0o666)\n", "S103"),
        ("import requests\n\nrequests.get('x', verify=False, timeout=1)\n", "S501"),
        ("HOST = '0.0.0.0'\n", "S104"),
        ("import tempfile\n\ntempfile.mktemp()\n", "S306"),
    ],
)
def test_it_is_found(code: str, rule: str) -> None:
    assert rule in findings(code)


def test_what_is_safe_is_not() -> None:
    code = "import pickle\n\ntry:\n    int('x')\nexcept pickle.UnpicklingError as error:\n    raise ValueError('x') from error\n"
    assert findings(code) == set()


def test_nothing_is_excused_but_what_is_known() -> None:
    """Every exception to the rules in code of ours, with its reason."""
    excused = sorted(
        (str(path.relative_to(ROOT)), line.split("# noqa: ")[1].split()[0])
        for folder in ("simlap", "tools", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if any(f"# noqa: {rule}" in line for rule in ("S1", "S2", "S3", "S5", "S6", "TID251"))
    )
    assert excused == [
        ("simlap/comm/host.py", "S108"),
        ("simlap/config/yaml.py", "S506"),
        ("simlap/train/weights.py", "TID251"),
    ]
    assert (
        'torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)'
        in (ROOT / "simlap/train/weights.py").read_text()
    )
