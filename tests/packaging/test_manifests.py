# SPDX-License-Identifier: GPL-2.0-or-later
"""Every package holds what `make install-vm` or `make install-dom0` installs, and no more."""

import ast
import re
from pathlib import Path

import pytest

from .machine import TOP, run
from .manifest import ALLOWED, Manifest, differences, is_allowed, of_folder, of_package

FORMATS = ("deb", "rpm", "arch", "dom0-deb", "dom0-rpm")


NOT_IN_DIST = {"/.ci", "/.ci/run", "/.gitignore"}


def side(form: str) -> str:
    return "dom0" if form.startswith("dom0") else "vm"


@pytest.mark.parametrize("form", FORMATS)
def test_same_as_make_install(
    packages: dict[str, Path], installed: dict[str, Manifest], form: str
) -> None:
    found = differences(of_package(packages[form]), installed[side(form)])
    assert {path: both for path, both in found.items() if not is_allowed(form, path)} == {}


def test_every_allowance_is_needed(
    packages: dict[str, Path], installed: dict[str, Manifest]
) -> None:
    paths = {
        form: differences(of_package(packages[form]), installed[side(form)]) for form in FORMATS
    }
    for forms, pattern, why in ALLOWED:
        for form in forms.split():
            assert any(re.fullmatch(pattern, path) for path in paths[form]), (form, why)


def test_owners_and_modes(installed: dict[str, Manifest]) -> None:
    for path, entry in [*installed["vm"].items(), *installed["dom0"].items()]:
        expected = {"d": {0o755}, "f": {0o644, 0o755}, "l": {0o777}}[entry.kind]
        if path.startswith("/etc/sudoers.d"):
            expected = {0o440, 0o750}
        assert entry.mode in expected, path


def test_conffiles_are_the_same_everywhere(
    packages: dict[str, Path], installed: dict[str, Manifest]
) -> None:
    for names, manifest in ((("deb", "rpm", "arch"), "vm"), (("dom0-deb", "dom0-rpm"), "dom0")):
        expected = {
            path for path, entry in installed[manifest].items()
            if path.startswith("/etc/") and entry.kind == "f"
        }
        for form in names:
            if form == "arch":  # see PKGBUILD
                expected = {path for path in expected if not path.startswith("/etc/qubes-rpc/")}
            assert conffiles(form, packages[form]) == expected, form


def conffiles(form: str, package: Path) -> set[str]:
    if form.endswith("deb"):
        return set(run("dpkg-deb", "--info", package, "conffiles").split())
    if form.endswith("rpm"):
        return set(run("rpm", "-qpc", package).split())
    info = run("bsdtar", "-xOf", package, ".PKGINFO")
    return {f"/{path}" for path in re.findall(r"^backup = (.*)$", info, re.MULTILINE)}


def test_uninstall_leaves_nothing(dist: Path, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "x"
    for each in ("vm", "dom0"):
        run("make", f"install-{each}", f"DESTDIR={target}", folder=tree)
        before = of_folder(target)
        run("make", f"install-{each}", f"DESTDIR={target}", folder=tree)
        assert of_folder(target) == before
        run("make", f"uninstall-{each}", f"DESTDIR={target}", folder=tree)
        assert of_folder(target) == {}


def test_building_leaves_the_tree_alone(dist: Path, tree: Path, tmp_path: Path) -> None:
    (tarball,) = dist.glob("*.tar.gz")
    run("tar", "-C", tmp_path, "-xf", tarball)
    (clean,) = tmp_path.iterdir()
    left = of_folder(tree).keys() - of_folder(clean).keys()
    assert {path for path in left if not path.startswith(("/build", "/dist"))} <= NOT_IN_DIST


def test_dom0_has_what_it_imports() -> None:
    """setup.py names those modules of the program that the extension needs, with their own."""
    listed = set(re.findall(r'"usb_proxy\.(\w+)"', (TOP / "setup.py").read_text())) - {"dom0"}
    needed, todo = {"__init__"}, sorted((TOP / "usb_proxy/dom0").glob("*.py"))
    while todo:
        for node in ast.walk(ast.parse(todo.pop().read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                module = name.removeprefix("usb_proxy.").partition(".")[0]
                files = [*(TOP / "usb_proxy").glob(f"{module}.py")]
                files += (TOP / f"usb_proxy/{module}").glob("*.py")
                if name.startswith("usb_proxy.") and files and module not in needed:
                    needed.add(module)
                    todo += files
    assert listed == needed - {"dom0"}


def test_dom0_entry_points_exist() -> None:
    points = re.findall(r"(usb_proxy[.\w]*):(\w+)\"", (TOP / "setup.py").read_text())
    assert len(points) == 2
    for module, name in points:
        code = ast.parse((TOP / f"{module.replace('.', '/')}.py").read_text())
        assert name in [node.name for node in code.body if isinstance(node, ast.ClassDef)]
