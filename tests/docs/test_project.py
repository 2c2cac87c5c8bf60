"""The repository as a whole: versions, scripts and what must not be in any file."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN_MODULES = {"nestling", "data", "scripts", "tests", "train"} | {
    path.stem for path in (ROOT / "scripts" / "bench").glob("*.py")
}
# Paths that exist on one machine only.
MACHINE_PATH = re.compile(rb"(?<![\w.~}/-])/(?:work|home|root|Users|mnt)/\w")


def direct_dependencies(*extras: str) -> dict[str, Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    parsed = [Requirement(text) for each in lists for text in each]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({requirement.name for requirement in parsed}) == len(parsed)
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def repository_files() -> list[Path]:
    """Files that git tracks or would track; skips where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def test_every_direct_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    pins = constraints()
    direct = direct_dependencies(*PROJECT["optional-dependencies"])
    direct.pop("nestling")  # dev takes another extra in
    assert sorted(direct.keys() - pins.keys()) == []
    for name, requirement in direct.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{requirement} does not allow {pins[name]}"


def test_every_import_outside_the_tests_is_a_direct_dependency() -> None:
    distributions = packages_distributions()
    extras = (
        "deepspeed",
        "documents",
        "faiss",
        "gpu",
        "hygiene",
        "mteb",
        "onnx",
        "quickstart",
        "stores",
        "synthesis",
        "tracking",
    )
    declared = direct_dependencies(*extras).keys()
    imported = {
        name.partition(".")[0]
        for folder in ("src", "train", "scripts", "data")
        for path in (ROOT / folder).rglob("*.py")
        for name in imports(ast.parse(path.read_text(encoding="utf-8")))
    }
    others = imported - OWN_MODULES - sys.stdlib_module_names
    assert "torch" in others
    undeclared = [
        name for name in others if not {canonicalize_name(d) for d in distributions.get(name, [name])} & declared
    ]
    assert undeclared == []


def imports(tree: ast.Module) -> list[str]:
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    return plain + [node.module for node in nodes if node.module]


def test_the_version_is_stated_alike_everywhere() -> None:
    from nestling import __version__

    assert PROJECT["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["scripts/test", "scripts/quickstart", ".ci/run"])
def test_scripts_can_be_started_and_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_the_quickstart_refuses_what_it_does_not_know_before_it_does_anything() -> None:
    done = subprocess.run([ROOT / "scripts/quickstart", "--frehs"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown argument '--frehs'" in done.stderr


def test_no_file_holds_a_path_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in repository_files()
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_links_between_pages_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in repository_files()
        if page.suffix == ".md"
        for target in link.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
