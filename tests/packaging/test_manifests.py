# SPDX-License-Identifier: GPL-2.0-or-later
"""Every package holds what `make install-vm` or `make install-dom0` installs, and no more."""

import ast
import re
from pathlib import Path

import pytest

from .machine import TOP, run
from .manifest import ALLOWED, Manifest, differences, is_allowed, of_folder, of_package

FORMATS = ("deb", "rpm", "arch", "dom0-deb", "dom0-rpm")


def side(form: str) -> str:
    return "dom0" if form.startswith("dom0") else "vm"


def in_fedora(manifest: Manifest) -> Manifest:
    """With the modules of dom0 where Debian has them."""
    places = ("/usr/lib/python3.13/site-packages", "/usr/lib/python3/dist-packages")
    return {path.replace(*places): entry for path, entry in manifest.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_no_package_has_byte_code_of_its_builder(packages: dict[str, Path], form: str) -> None:
    """Nor the list of folders, which is for `make uninstall`."""
    assert not [path for path in of_package(packages[form]) if "__pycache__" in path]


@pytest.mark.parametrize("form", ["deb", "rpm", "arch"])
def test_nothing_of_the_environment_gets_into_a_root_program(
    packages: dict[str, Path], form: str, tmp_path: Path
) -> None:
    unpack = {"deb": "dpkg-deb --fsys-tarfile", "rpm": "rpm2cpio", "arch": "zstd -qdc"}[form]
    run("sh", "-ec", f'{unpack} "$1" | bsdtar -C "$2" -xf -', "sh", packages[form], tmp_path)
    launch = tmp_path / "usr/lib/qubes/usb-proxy/launch"
    assert launch.read_text().startswith("#!/usr/bin/python3 -IS\n")


FEDORAS = {
    "__brp_mangle_shebangs": 'find "$RPM_BUILD_ROOT" -type f -perm /111 -exec '
    "sed -i '1s,^#!/bin/,#!/usr/bin/,' {} +",
    "__brp_python_bytecompile": 'for each in "$RPM_BUILD_ROOT"/usr/lib/python3.*; do '
    '[ ! -d "$each" ] || /usr/bin/python3 -m compileall -q "$each"; done',
}
"""What rpm of Fedora does after %install and Debian's does not."""


def test_a_fedora_builder_changes_nothing(
    packages: dict[str, Path], tree: Path, dist: Path, tmp_path: Path
) -> None:
    macros = {
        **FEDORAS,
        "__os_install_post": "\n".join(f"%{{?{name}}}" for name in FEDORAS),
        "python3_sitelib": "/usr/lib/python3.13/site-packages",
        "_topdir": str(tmp_path),
        "_sourcedir": str(dist),
    }
    defines = [f"--define={name} {text}" for name, text in macros.items()]
    specs = sorted((tree / "build/rpm_spec").glob("*.spec"))
    run("rpmbuild", "-bb", "--nodeps", "--quiet", *defines, *specs)
    built = {package.name: package for package in (tmp_path / "RPMS/noarch").iterdir()}
    for form in ("rpm", "dom0-rpm"):
        assert of_package(built[packages[form].name]) == of_package(packages[form])


@pytest.mark.parametrize("form", FORMATS)
def test_same_as_make_install(
    packages: dict[str, Path], installed: dict[str, Manifest], form: str
) -> None:
    found = differences(in_fedora(of_package(packages[form])), installed[side(form)])
    assert {path: both for path, both in found.items() if not is_allowed(form, path)} == {}


def test_every_allowance_is_needed(
    packages: dict[str, Path], installed: dict[str, Manifest]
) -> None:
    paths = {
        form: differences(in_fedora(of_package(packages[form])), installed[side(form)])
        for form in FORMATS
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
            path
            for path, entry in installed[manifest].items()
            if path.startswith("/etc/") and entry.kind == "f"
        }
        for form in names:
            assert conffiles(form, packages[form]) == expected, form


def conffiles(form: str, package: Path) -> set[str]:
    if form.endswith("deb"):
        return set(run("dpkg-deb", "--info", package, "conffiles").split())
    if form.endswith("rpm"):
        return set(run("rpm", "-qpc", package).split())
    info = run("bsdtar", "-xOf", package, ".PKGINFO")
    return {f"/{path}" for path in re.findall(r"^backup = (.*)$", info, re.MULTILINE)}


def test_building_leaves_the_tree_alone(dist: Path, tree: Path, tmp_path: Path) -> None:
    (tarball,) = dist.glob("*.tar.gz")
    run("tar", "-C", tmp_path, "-xf", tarball)
    (clean,) = tmp_path.iterdir()
    left = of_folder(tree).keys() - of_folder(clean).keys()
    assert {path for path in left if not path.startswith(("/build", "/dist"))} == set()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            "dom0-rpm",
            {"hwdata", "python(abi) = 3.13", "/usr/bin/python3", "qubes-core-dom0 >= 4.3.35"},
        ),
        ("rpm", {"kmod", "python3 >= 3.11", "/usr/bin/python3", "/bin/sh"}),
        ("deb", {"kmod", "python3:any (>= 3.11~)"}),
        ("dom0-deb", {"hwdata", "python3 (>= 3.11)", "qubes-core-dom0 (>= 4.3.35)", "python3:any"}),
        ("arch", {"kmod", "python", "sh"}),
    ],
)
def test_what_a_package_needs(packages: dict[str, Path], form: str, expected: set[str]) -> None:
    if form.endswith("deb"):
        found = set(run("dpkg-deb", "--field", packages[form], "Depends").strip().split(", "))
    elif form == "arch":
        info = run("bsdtar", "-xOf", packages[form], ".PKGINFO")
        found = set(re.findall("^depend = (.*)$", info, re.MULTILINE))
    else:
        lines = run("rpm", "-qp", "--requires", packages[form]).splitlines()
        found = {line for line in lines if not line.startswith(("rpmlib(", "config("))}
    assert found == expected


def test_dom0_has_what_it_imports() -> None:
    """The Makefile names those modules of the program that the extension needs, with their own."""
    told = run("make", "--silent", "--eval=list: ; @echo $(DOM0_MODULES)", "list").split()
    listed = {name.split("/")[1].removesuffix(".py") for name in told} - {"dom0"}
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
    points = re.findall(
        r"= (usb_proxy[.\w]*):(\w+)\n", (TOP / "usb_proxy/dom0/entry_points.txt").read_text()
    )
    assert len(points) == 4
    for module, name in points:
        code = ast.parse((TOP / f"{module.replace('.', '/')}.py").read_text())
        named = [node for node in code.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        assert name in [node.name for node in named]
