# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/packagers.md tells packagers to type, typed."""

import os
import shutil
from pathlib import Path

from tests.docs.documents import ALL, NOT_RUN, TOP, Step

from .conftest import KEY
from .machine import SYSTEM, Root, attempt, copy_of, need, need_root, run
from .test_install import stub_rpm

DOCUMENT = TOP / "docs/packagers.md"
URL = "https://example.org/qubes"
OFFLINE = """
APT::Get::List-Cleanup "0";
APT::Get::Assume-Yes "1";
APT::Install-Recommends "0";
"""


def debian_template(repository: Path, folder: Path) -> Root:
    """A root whose apt has no network; the files of the repository are in /srv/repo."""
    folder.mkdir()
    root = copy_of("clean", folder)
    shutil.copytree(repository, root.folder / "srv/repo")
    sources = root.folder / "srv/repo/qubes-usb-proxy.list"
    assert f"] {URL}/apt ./" in sources.read_text()
    sources.write_text(sources.read_text().replace(URL, "file:///srv/repo"))
    (root.folder / "etc/apt/apt.conf.d/90offline").write_text(OFFLINE)
    return root


def template(dist: Path, folder: Path) -> Root:
    """A root with make and Python, and the tarball in /srv."""
    folder.mkdir()
    root = copy_of("full", folder)
    shutil.copy(next(dist.glob("*.tar.gz")), root.folder / "srv")
    return root


QVM_RUN = '#!/bin/sh\n[ "$1 $2" = "--pass-io builder" ] && cd {here} && exec sh -c "$3"\n'
CHROOTED = '#!/bin/sh\nexec /usr/bin/{tool} {option}{root} "$@"\n'
PLATFORM = (
    "Provides: python(abi) = 3.13 /usr/bin/python3 hwdata qubes-core-dom0 = 4.3.35 python3 = 3.13"
)


def dom0(here: Path, folder: Path) -> dict[str, str]:
    """A dom0 of rpm alone: its commands work on a folder of their own. The environment for them."""
    need("dnf", "rpmkeys")
    root, tools = folder / "root", folder / "bin"
    for each in (root, tools, folder / "home", folder / "none"):
        each.mkdir(parents=True)
    stub_rpm(folder, "platform", folder / "none", [], PLATFORM)
    run("rpm", f"--root={root}", "-i", "--nodeps", *folder.glob("RPMS/noarch/*.rpm"))
    options = {"rpm": "--root=", "rpmkeys": "--dbpath=", "dnf": "-y --setopt=reposdir=/none "}
    options["dnf"] += "--setopt=localpkg_gpgcheck=1 --releasever=1 --installroot="
    # The rpmkeys that dnf calls looks below the root twice, with Debian's database of each user's.
    twice = root / str(root).lstrip("/")
    twice.parent.mkdir(parents=True)
    twice.symlink_to(os.path.relpath(root, twice.parent))
    database = run("rpm", "--eval", "%_dbpath").strip()
    for tool, option in options.items():
        place = f"{root}{database}" if tool == "rpmkeys" else str(root)
        (tools / tool).write_text(CHROOTED.format(tool=tool, option=option, root=place))
    (tools / "qvm-run").write_text(QVM_RUN.format(here=here))
    for program in tools.iterdir():
        program.chmod(0o755)
    return {"PATH": f"{tools}:{SYSTEM['PATH']}", "GNUPGHOME": str(folder / "home")}


def test_how_packages_reach_dom0(dist: Path, keys: Path, tmp_path: Path) -> None:
    """What the document says; and a package without a signature, or another's, gets nowhere."""
    need_root()
    here = tmp_path / "tree"
    shutil.copytree(dist.parent, here, symlinks=True)
    shutil.rmtree(here / "dist/repo")
    run("make", "repo", f"KEY={KEY}", folder=here, GNUPGHOME=str(keys))
    environment = dom0(here, tmp_path / "dom0")
    steps = [step for step in ALL[DOCUMENT] if step.machine == "dom0" and step.text not in NOT_RUN]
    assert [step.text.split()[0] for step in steps] == [
        *("qvm-run", "qvm-run", "gpg", "rpm", "rpmkeys", "dnf")
    ]
    home, root = tmp_path / "dom0", tmp_path / "dom0/root"
    shutil.copy(next((here / "dist").glob("*dom0*.rpm")), home / "unsigned.rpm")
    for step in steps:
        if step.text.startswith("rpm --import"):
            assert (
                attempt(
                    "rpmkeys",
                    "-K",
                    "qubes-usb-proxy-dom0.rpm",
                    folder=home,
                    environment=environment,
                ).returncode
                != 0
            )
        printed = run("sh", "-ec", step.text, folder=home, **environment)
        assert not step.output or not step.difference(printed)
    assert (root / "usr/lib/python3.13/site-packages/usb_proxy/dom0/extension.py").exists()
    refused = attempt("dnf", "reinstall", "./unsigned.rpm", folder=home, environment=environment)
    assert refused.returncode != 0 and "not signed" in refused.stdout + refused.stderr


def test_what_packagers_type(dist: Path, keys: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    here = tmp_path / "tree"
    shutil.copytree(dist.parent, here, symlinks=True)
    shutil.rmtree(here / "dist/repo")
    roots: dict[str, Root] = {}

    def type_it(step: Step) -> str:
        if step.machine == "":
            # The packages have been made by that very command.
            command = "true" if step.text == "make packages" else step.text
            return run("sh", "-c", command, folder=here, GNUPGHOME=str(keys))
        if step.machine not in roots:
            roots[step.machine] = {
                "debian-template": lambda: debian_template(here / "dist/repo", tmp_path / "debian"),
                "template": lambda: template(here / "dist", tmp_path / "other"),
            }[step.machine]()
        # Of Debian's own lists there is a copy.
        text = step.text.replace("apt update", "apt update -o Dir::Etc::SourceList=/dev/null")
        folder = "/srv/repo" if step.machine == "debian-template" else "/srv"
        return roots[step.machine].run("sh", "-ec", f"cd {folder}; {text}")

    for step in ALL[DOCUMENT]:
        if step.text not in NOT_RUN and step.machine != "dom0" and step.kind == "console":
            printed = type_it(step)
            assert not step.output or not step.difference(printed)
    for root in roots.values():
        assert root.attempt("/usr/lib/qubes/usb-reset").stderr.endswith("[UP-223]\n")
    assert set(roots) == {"debian-template", "template"}
