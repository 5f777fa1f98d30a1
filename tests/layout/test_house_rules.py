"""The layout is the architecture: these rules hold it, and each is seen to fail when broken."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 400  # lines: what can be read in one sitting; composition roots regrow without a limit
VAGUE = {"utils", "util", "helpers", "common", "manager", "base", "misc"}


def sources(root: Path) -> list[Path]:
    return [
        path
        for room in ("src", "tests", "training")
        for path in sorted((root / room).rglob("*.py"))
        if ".cache" not in path.parts
    ]


def violations(root: Path) -> list[str]:
    """Return what breaks the house rules below `root`, a sentence each."""
    found = []
    for path in sources(root):
        name = path.relative_to(root)
        text = path.read_text()
        lines = text.count("\n")
        if lines > LONGEST:
            found.append(f"{name} has {lines} lines, more than {LONGEST}")
        if path.stem in VAGUE:
            found.append(f"{name} is named after nothing")
        if name.parts[0] == "src" and text.strip() and not text.startswith('"""'):
            found.append(f"{name} does not begin by saying why it exists")
    return found


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contracts of `root` on the package below `root`."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of the package and its contracts, to break."""
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.onnx")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_house_rules_hold():
    """Every file can be read in one sitting, has a telling name, and says why it exists."""
    assert violations(ROOT) == []


def test_the_house_rules_fail_on_a_long_a_vague_and_a_silent_file(copy):
    """Each rule is seen to fail on a planted violation."""
    (copy / "src/polyolo/long.py").write_text('"""Long."""\n' + "x = 1\n" * LONGEST)
    (copy / "src/polyolo/utils.py").write_text('"""Vague."""\n')
    (copy / "src/polyolo/silent.py").write_text("x = 1\n")
    assert len(violations(copy)) == 3


def test_the_import_contracts_hold(copy):
    """The rooms import each other only as the house plan says."""
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("place", "line", "contract"),
    [
        ("serving/planted.py", "import polyolo.control", "rooms"),
        ("gateway/planted.py", "import polyolo.serving", "rooms"),
        ("types.py", "import polyolo.errors", "rooms"),
        ("gateway/planted.py", "import polyolo.drivers", "drivers"),
        ("control/planted.py", "import sqlalchemy", "SQL"),
        ("serving/planted.py", "import onnxruntime", "engine"),
        ("serving/planted.py", "import fastapi", "runtime"),
    ],
)
def test_the_import_contracts_fail_on_a_planted_import(copy, place, line, contract):
    """Each contract is seen to fail on an import that it forbids."""
    path = copy / "src/polyolo" / place
    path.write_text((path.read_text() if path.exists() else '"""Planted."""\n') + line + "\n")
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout
    assert re.search(rf"{contract}.* BROKEN", result.stdout), result.stdout
