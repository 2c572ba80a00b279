"""What a source distribution holds, where tests were run and plugins were built before."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = [
    ".ci/run",
    "benchmarks/results/a.jsonl",
    "constraints.txt",
    "docs/a.md",
    "examples/facts/a.yaml",
    "peft_surgical/data/a.txt",
    "plugins/mine/LICENSE",
    "plugins/mine/mine.py",
    "tests/test_a.py",
]
LEFT_OUT = [
    ".ci/venv/lib/a.py",
    ".hypothesis/a",
    "benchmarks/.mypy_cache/3.11/a.json",
    "build/lib/a.py",
    "dist/a.whl",
    "docs/.pytest_cache/README.md",
    "examples/.ruff_cache/0.15/a",
    "plugins/mine/.pytest_cache/v/a",
    "plugins/mine/build/lib/mine.py",
    "plugins/mine/dist/mine.whl",
    "plugins/mine/mine.egg-info/PKG-INFO",
    "plugins/mine/tests/.hypothesis/a",
    "tests/.hypothesis/examples/a",
    "tests/__pycache__/test_a.cpython-311.pyc",
]


def test_a_source_distribution_holds_no_leftovers(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for name in (*KEPT, *LEFT_OUT, "peft_surgical/__init__.py", "peft_surgical_command.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("")
    for name in ("MANIFEST.in", "pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-c", "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"]
    subprocess.run([*build, str(out)], cwd=source, check=True, capture_output=True, text=True)
    [path] = out.iterdir()
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {*KEPT, "LICENSE"} <= held
    assert held.isdisjoint(LEFT_OUT)
