# SPDX-License-Identifier: GPL-2.0-or-later
"""Installed by the users' commands: programs start, and removal leaves nothing."""

import os
import re
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from .machine import Root, attempt, copy_of, need, run

PRIVATE = "usr/lib/qubes/usb-proxy"
PATHS_OF_4_3 = [
    "/etc/qubes-rpc/qubes.USB",
    "/etc/qubes-rpc/qubes.USBAttach",
    "/etc/qubes-rpc/qubes.USBDetach",
    "/etc/qubes/rpc-config/qubes.USB",
    "/usr/lib/qubes/usb-detach-all",
    "/usr/lib/qubes/usb-export",
    "/usr/lib/qubes/usb-import",
    "/usr/lib/qubes/usb-reset",
    "/usr/lib/udev/rules.d/80-qubes-usb-reset.rules",
]
FOLDERS_OF_THE_PLATFORM = [
    *("/etc/qubes", "/etc/qubes/policy.d", "/usr/share/licenses"),
    *("/usr/lib/python3.13", "/usr/lib/python3.13/site-packages"),  # python3-libs has these
]
CONFIGURATION = [path for path in PATHS_OF_4_3 if path.startswith("/etc")]
LINK = "etc/qubes/suspend-pre.d/usb-detach-all.sh"
# Without arguments, qrexec and devices: the exit code of each program.
PROGRAMS = {
    "/usr/lib/qubes/usb-export": 2,
    "/usr/lib/qubes/usb-import": 2,
    "/usr/lib/qubes/usb-reset": 2,
    "/usr/lib/qubes/usb-detach-all": 0,
    f"/{LINK}": 0,
    "/etc/qubes-rpc/qubes.USB": 2,
    "/etc/qubes-rpc/qubes.USBAttach": 2,
    "/etc/qubes-rpc/qubes.USBDetach": 2,
    "/usr/bin/qubes-usb-proxy": 2,
}


def check_installed(root: Root) -> None:
    """Programs start and say one sentence, byte code is used, snippets are in order."""
    for program, code in PROGRAMS.items():
        done = root.attempt(program)
        assert done.returncode == code, (program, done)
        assert len(done.stderr.splitlines()) == (1 if code else 0), (program, done)
        assert not re.search("Traceback|internal error|not found", done.stderr)
    told = root.attempt("/usr/bin/python3", "-ISv", f"/{PRIVATE}/launch", "usb-reset").stderr
    loaded = re.findall(rf"code object from '?/{PRIVATE}/(\S+?)'?$", told, re.MULTILINE)
    assert len(loaded) > 5
    assert [name for name in loaded if not name.endswith(".pyc")] == []
    assert "# wrote" not in told
    for source in (root.folder / PRIVATE).rglob("*.py"):
        code_file = source.parent / f"__pycache__/{source.stem}.cpython-311.pyc"
        stamp = int.from_bytes(code_file.read_bytes()[8:12], "little")
        assert stamp == int(source.stat().st_mtime), source
    if (root.folder / "usr/sbin/visudo").exists():
        root.run("visudo", "-c")
    for page in (root.folder / "usr/share/doc/qubes-usb-proxy").rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text()):
            assert (page.parent / link).exists(), (page, link)


HOSTILE = """
import os
os.mkdir("/tmp/was-here")
"""


def check_environment(root: Root, programs: Mapping[str, int] = PROGRAMS) -> None:
    """No program loads what its caller's environment or folder offers."""
    bait = root.folder / "tmp/bait"
    (bait / "usb_proxy").mkdir(parents=True, exist_ok=True)
    for name in ("usb_proxy/__init__.py", "sitecustomize.py", "posix.py", "errno.py"):
        (bait / name).write_text(HOSTILE)
    for program, code in programs.items():
        done = root.attempt(
            "env",
            "-C",
            "/tmp/bait",
            *program.split(),
            PYTHONPATH="/tmp/bait",
            PYTHONSTARTUP="/tmp/bait/sitecustomize.py",
            PYTHONHOME="/tmp/bait",
            PYTHONUSERBASE="/tmp/bait",
            PYTHONINSPECT="1",
        )
        assert done.returncode == code, (program, done)
    assert not (root.folder / "tmp/was-here").exists()


ANOTHER_PYTHON = """
import pkgutil, sys
sys.implementation.cache_tag = "cpython-399"
sys.path.insert(0, sys.argv[1])
import usb_proxy
for module in pkgutil.walk_packages(usb_proxy.__path__, "usb_proxy."):
    if "dom0" not in module.name:
        __import__(module.name)
"""


def use_another_python(root: Root, folder: str = f"/{PRIVATE}") -> None:
    """As root, so that it leaves byte code."""
    root.run("/usr/bin/python3", "-c", ANOTHER_PYTHON, folder)
    assert list((root.folder / folder[1:]).rglob("*.cpython-399.pyc"))
    for code in (root.folder / "usr/lib").glob("python3*/**/*.cpython-399.pyc"):
        if not str(code).startswith(f"{root.folder}{folder}"):
            code.unlink()  # that Python's own


def change_configuration(root: Root) -> dict[Path, str]:
    """As an administrator does, in every file below /etc of the package."""
    changed = {}
    for name in (*CONFIGURATION, "/etc/sudoers.d/qubes-usb-proxy"):
        path = root.folder / name[1:]
        path.write_text(path.read_text() + "# an administrator's own\n")
        changed[path] = path.read_text()
    return changed


def check_kept(changed: dict[Path, str]) -> None:
    assert {path: path.read_text() for path in changed} == changed


def check_removed(root: Root, before: set[str]) -> None:
    after = root.paths()
    assert after - before == set()
    assert before - after == set()


def stub_deb(folder: Path, name: str, version: str) -> Path:
    """A package of the platform, or today's with stubs at its paths."""
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Test <t@localhost>\n"
        "Description: stub\n"
    )
    if name == "qubes-usb-proxy":
        stub_files(tree)
        (tree / "DEBIAN/conffiles").write_text(
            "".join(f"{path}\n" for path in PATHS_OF_4_3 if path.startswith("/etc"))
        )
    run("dpkg-deb", "--build", "--root-owner-group", tree, folder)
    return folder / f"{name}_{version}_all.deb"


def rebuilt(tree: Path, folder: Path, format_: str) -> Path:
    """A later package, whose files below /etc are others."""
    shutil.copytree(tree, folder, ignore=shutil.ignore_patterns("build", "dist"))
    for name in ("qubes.USB", "qubes.USBAttach", "qubes.USBDetach", "qubes.USB.config"):
        with (folder / "qubes-rpc" / name).open("a") as file:
            file.write("# later\n")
    with (folder / "sudoers/qubes-usb-proxy").open("a") as file:
        file.write("# later\n")
    (folder / "version").write_text("4.4.1\n")
    changelog = folder / "debian/changelog"
    changelog.write_text(changelog.read_text().replace("(4.4.0)", "(4.4.1)", 1))
    run("make", format_, folder=folder)
    patterns = {"deb": "*.deb", "rpm": "qubes-usb-proxy-4*.rpm", "arch": "*.zst"}
    (package,) = (folder / "dist").glob(patterns[format_])
    return package


def stub_files(tree: Path) -> None:
    for path in PATHS_OF_4_3:
        file = tree / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("stub of 4.3.6\n")
        file.chmod(0o755)
        os.utime(file, (1700000000, 1700000000))
    (tree / LINK).parent.mkdir(parents=True)
    (tree / LINK).symlink_to("/usr/lib/qubes/usb-detach-all")


def add_repository(root: Root, dist: Path) -> None:
    """What the README tells a user of apt: the key, the list, and an update."""
    repository = root.folder / "srv/repo"
    shutil.copytree(dist / "repo", repository)
    shutil.copy(repository / "qubes-usb-proxy.asc", root.folder / "etc/apt/keyrings")
    line = (repository / "qubes-usb-proxy.list").read_text()
    sources = root.folder / "etc/apt/sources.list.d/qubes-usb-proxy.list"
    sources.write_text(line.replace(f"file://{dist}/repo", "file:///srv/repo"))
    root.run("apt-get", "-q", "update", "-o", "Dir::Etc::SourceList=/dev/null", "--no-list-cleanup")


def test_apt_install_into_a_clean_debian(dist: Path, tmp_path: Path) -> None:
    root = copy_of("clean", tmp_path)
    add_repository(root, dist)
    said = root.run("apt-get", "install", "-y", "--no-install-recommends", "qubes-usb-proxy")
    assert "cannot be authenticated" not in said
    check_installed(root)
    check_environment(root)
    for name in ("qubes-core-dom0", "hwdata"):
        root.run("dpkg", "-i", f"/srv/{stub_deb(root.folder / 'srv', name, '4.3.35').name}")
    root.run("apt-get", "install", "-y", "qubes-usb-proxy-dom0")
    check_dom0(root)
    root.run("apt-get", "purge", "-y", "qubes-usb-proxy-dom0")
    assert not list(root.folder.glob("usr/lib/python3/dist-packages/*usb*proxy*"))
    check_installed(root)


ENTRY_POINTS = """
from importlib.metadata import entry_points
for group in ("qubes.ext", "qubes.devices"):
    for point in entry_points(group=group):
        print(group, point.name, point.value)
import usb_proxy.errors, usb_proxy.idents, usb_proxy.dom0
print(usb_proxy.dom0.__file__)
"""


def check_dom0(root: Root) -> None:
    """The extension is found by its entry points, its code by Python; the tool starts."""
    place = "/usr/lib/python3.13/site-packages"
    lines = root.run("python3", "-c", ENTRY_POINTS, PYTHONPATH=place).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["qubes.ext", "qubes.devices"]
    assert lines[1].split()[1] == "usb"
    assert lines[2].startswith("/usr/lib/python3")
    also = root.folder / "usr/lib/python3/dist-packages/as-in-fedora.pth"
    also.write_text(f"{place}\n")
    told = root.run("qvm-usb-doctor", "--help")
    assert told.startswith("usage: qvm-usb-doctor")
    check_environment(root, {"qvm-usb-doctor --help": 0})
    also.unlink()


def test_apt_refuses_a_changed_repository(dist: Path, tmp_path: Path) -> None:
    root = copy_of("clean", tmp_path)
    add_repository(root, dist)
    packages = root.folder / "srv/repo/apt/Packages"
    packages.write_text(packages.read_text().replace("Version: 4", "Version: 5"))
    for kept in (root.folder / "var/lib/apt/lists").glob("*srv_repo*"):
        kept.unlink()
    done = root.attempt(
        "apt-get", "update", "-o", "Dir::Etc::SourceList=/dev/null", "--no-list-cleanup"
    )
    assert "Hash Sum mismatch" in done.stderr or "unexpected size" in done.stderr


def test_apt_upgrade_remove_purge(
    dist: Path, tree: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    root = copy_of("full", tmp_path)
    old = stub_deb(tmp_path, "qubes-usb-proxy", "4.3.6")
    add_repository(root, dist)
    shutil.copy(old, root.folder / "srv")
    before = root.paths()
    root.run("dpkg", "-i", f"/srv/{old.name}")
    config = root.folder / "etc/qubes/rpc-config/qubes.USB"
    changed = root.folder / "etc/qubes-rpc/qubes.USBDetach"
    changed.write_text(f"#!/bin/sh\n# a user's own\nexec /{PRIVATE}/launch usb-detach\n")
    root.run(
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        "-o",
        "Dpkg::Options::=--force-confold",
        "qubes-usb-proxy",
    )
    assert config.read_text() == "force-user='root'\n", "an untouched file is upgraded"
    assert "a user's own" in changed.read_text(), "a user's file stays"
    check_installed(root)
    sudoers = root.folder / "etc/sudoers.d/qubes-usb-proxy"
    root.run("dpkg", "-i", "--force-downgrade", "--force-confnew", f"/srv/{old.name}")
    assert not sudoers.exists(), "an older package knows nothing of it"
    shutil.copy(packages["deb"], root.folder / "tmp")
    root.run("dpkg", "-i", f"/tmp/{packages['deb'].name}")
    assert sudoers.exists()
    changed_by = change_configuration(root)
    later = rebuilt(tree, tmp_path / "later", "deb")
    shutil.copy(later, root.folder / "tmp")
    use_another_python(root)
    root.run("dpkg", "-i", "--force-confold", f"/tmp/{later.name}")
    check_kept(changed_by)
    use_another_python(root)
    root.run("apt-get", "remove", "-y", "qubes-usb-proxy")
    left = root.paths() - before
    assert {path for path in left if not path.startswith("etc/")} == set()
    for service in ("qubes.USB", "qubes.USBAttach"):
        done = root.attempt(f"/etc/qubes-rpc/{service}", "2-1")
        assert (done.returncode, done.stdout) == (7, ""), done
        assert done.stderr.endswith("install it again [UP-780]\n")
    root.run("apt-get", "purge", "-y", "qubes-usb-proxy")
    check_removed(root, before)


SPEC = """
Name: {name}
Version: 4.3.6
Release: 1
Summary: stub
License: none
BuildArch: noarch
{provides}
%description
stub
%files
{files}
"""


OLD_PATH = "usr/lib/qubes-usb-proxy"
"""Where the first 4.4.0 had its modules."""


def old_modules(tree: Path) -> list[str]:
    """Files at the old path, with their byte code; the folders, too."""
    modules = tree / OLD_PATH / "usb_proxy"
    (modules / "__pycache__").mkdir(parents=True)
    for name in ("launch", "usb_proxy/errors.py", "usb_proxy/__pycache__/errors.cpython-311.pyc"):
        (tree / OLD_PATH / name).write_text("old\n")
    return [f"/{OLD_PATH}"]


def use_old_modules(root: Root) -> None:
    """Byte code of another Python, which no package knows."""
    folder = root.folder / OLD_PATH / "usb_proxy/__pycache__"
    folder.mkdir(exist_ok=True)
    (folder / "errors.cpython-399.pyc").write_text("old\n")


def stub_rpm(folder: Path, name: str, tree: Path, files: list[str], provides: str = "") -> None:
    spec = folder / f"{name}.spec"
    spec.write_text(SPEC.format(name=name, provides=provides, files="\n".join(files)))
    run(
        "rpmbuild",
        "-bb",
        "--nodeps",
        "--quiet",
        f"--define=_topdir {folder}",
        "--buildroot",
        tree,
        spec,
    )


def stub_python(stubs: Path) -> None:
    """Another one, as python3-libs of Fedora has it."""
    library = stubs / "python/usr/lib64/python3.99"
    library.mkdir(parents=True)
    (library / "os.py").write_text("")
    files = ["/usr/lib64/python3.99"]
    stub_rpm(stubs, "another-python", stubs / "python", files, "AutoReq: no")


def test_dnf(dist: Path, tree: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    """Beside Debian's own files, which are what the stubs claim to provide."""
    need("dnf", "createrepo_c", "rpmbuild")
    root = copy_of("full", tmp_path)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for folder in FOLDERS_OF_THE_PLATFORM:
        (stubs / f"platform{folder}").mkdir(parents=True, exist_ok=True)
    stub_rpm(
        stubs,
        "platform",
        stubs / "platform",
        [f"%dir {x}" for x in FOLDERS_OF_THE_PLATFORM],
        "Provides: /bin/sh /usr/bin/python3 kmod hwdata qubes-core-dom0 = 4.3.35 python3 = 3.13 "
        "python(abi) = 3.13",
    )
    stub_files(stubs / "tree")
    files = [*PATHS_OF_4_3, f"/{LINK}", *old_modules(stubs / "tree")]
    stub_rpm(stubs, "qubes-usb-proxy", stubs / "tree", files)
    stub_python(stubs)
    run("createrepo_c", "--quiet", stubs / "RPMS")
    shutil.copytree(dist / "repo", tmp_path / "repo")
    file = tmp_path / "repo/qubes-usb-proxy.repo"
    file.write_text(file.read_text().replace(str(dist), str(tmp_path)))
    (tmp_path / "repo/stubs.repo").write_text(
        textwrap.dedent(f"""
        [stubs]
        name=stubs
        baseurl=file://{stubs}/RPMS
        gpgcheck=0
    """)
    )

    def dnf(*command: str) -> None:
        said = run(
            "dnf",
            "-y",
            f"--installroot={root.folder}",
            "--releasever=1",
            f"--setopt=reposdir={tmp_path}/repo",
            f"--setopt=cachedir={tmp_path}/cache",
            "--setopt=install_weak_deps=False",
            *command,
        )
        assert not re.search("(?<!Running )scriptlet|warning|error", said, re.IGNORECASE), said

    before = root.paths()
    dnf("install", "platform", "qubes-usb-proxy-4.3.6")
    use_old_modules(root)
    dnf("upgrade", "qubes-usb-proxy")
    assert not (root.folder / OLD_PATH).exists()
    assert "4.4" in run("rpm", f"--root={root.folder}", "-q", "qubes-usb-proxy")
    check_installed(root)
    check_environment(root)
    run("rpm", f"--root={root.folder}", "-V", "--nodeps", "qubes-usb-proxy")
    for code in (root.folder / PRIVATE).rglob("*.pyc"):
        code.unlink()
    dnf("install", "another-python")
    check_installed(root)
    use_another_python(root)
    changed = change_configuration(root)
    later = rebuilt(tree, tmp_path / "later", "rpm")
    run("rpm", f"--root={root.folder}", "-U", "--nodeps", later)
    check_kept(changed)
    assert not list((root.folder / PRIVATE).rglob("*.cpython-399.pyc"))
    run("rpm", f"--root={root.folder}", "-U", "--nodeps", "--oldpackage", packages["rpm"])
    for name in changed:
        shutil.copy(name.with_name(f"{name.name}.rpmnew"), name)
        name.with_name(f"{name.name}.rpmnew").unlink()
    use_another_python(root)
    dnf("install", "qubes-usb-proxy-dom0")
    check_dom0(root)
    check_dom0_byte_code(root, tree, packages["dom0-rpm"], tmp_path / "dom0")
    use_another_python(root, "/usr/lib/python3.13/site-packages")
    names = ["qubes-usb-proxy", "qubes-usb-proxy-dom0", "another-python", "platform"]
    dnf("remove", *names)
    for keys in tmp_path.glob("cache/*/pubring"):
        run("gpgconf", "--homedir", keys, "--kill", "gpg-agent")  # dnf leaves it running
    check_removed(root, before)


DOCTOR = """
import sys
sys.path.insert(0, sys.argv[1])
from usb_proxy.dom0 import doctor
print(doctor.VERSION)
"""


def check_dom0_byte_code(root: Root, tree: Path, ours: Path, folder: Path) -> None:
    """It is of what is installed: a rebuild with the same times, and 4.3, which brings none."""
    place = "/usr/lib/python3.13/site-packages"
    shutil.copytree(tree, folder, ignore=shutil.ignore_patterns("build", "dist"))
    doctor = folder / "usb_proxy/dom0/doctor.py"
    doctor.write_text(doctor.read_text().replace("\nVERSION = 1\n", "\nVERSION = 7\n"))
    run("make", "rpm", folder=folder)
    (rebuild,) = (folder / "dist").glob("qubes-usb-proxy-dom0-4*.rpm")
    stub_rpm(folder, "qubes-usb-proxy-dom0", folder / "none", [])
    (old,) = (folder / "RPMS/noarch").iterdir()
    update = ["rpm", f"--root={root.folder}", "-U", "--nodeps", "--force"]
    for package, version in ((rebuild, "7"), (ours, "1")):
        run(*update, package)
        assert root.run("python3", "-c", DOCTOR, place) == f"{version}\n"
    use_another_python(root, place)
    run(*update, old)
    assert list((root.folder / place[1:]).iterdir()) == []
    run(*update, ours)


def test_pacman(tree: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    need("pacman")
    root = copy_of("full", tmp_path)
    config = tmp_path / "pacman.conf"
    config.write_text(
        f"[options]\nDBPath = {tmp_path}\nArchitecture = x86_64\n"
        "SigLevel = Never\nLogFile = /dev/null\n"
    )
    for folder in ("local", "sync", "old"):
        (tmp_path / folder).mkdir()
    stub_files(tmp_path / "old")
    old_modules(tmp_path / "old")
    (tmp_path / "old/etc/qubes/rpc-config/qubes.USB").write_text("force-user='root'\n")
    (tmp_path / "old/.PKGINFO").write_text(
        "pkgname = qubes-usb-proxy\npkgver = 4.3.6-1\narch = any\nsize = 1\nbuilddate = 1\n"
    )
    old = tmp_path / "old.pkg.tar.gz"
    run(
        "bsdtar",
        "-czf",
        old,
        "--uid=0",
        "--gid=0",
        ".PKGINFO",
        "etc",
        "usr",
        folder=tmp_path / "old",
    )
    options = ["--config", str(config), "--root", str(root.folder), "--noconfirm"]
    before = root.paths()
    run("pacman", *options, "-Udd", old)
    use_old_modules(root)
    service = root.folder / "etc/qubes-rpc/qubes.USBDetach"
    service.write_text("an administrator's own\n")
    said = run("pacman", *options, "-Udd", packages["arch"])
    assert "differ" not in said.replace("/etc/sudoers.d/", ""), said
    assert not list((root.folder / "etc").rglob("*.pacnew"))
    (saved,) = (root.folder / "etc").rglob("*.pacsave")
    assert (saved.stem, saved.read_text()) == (service.name, "an administrator's own\n")
    saved.unlink()
    assert not (root.folder / OLD_PATH).exists()
    check_installed(root)
    check_environment(root)
    use_another_python(root)
    changed = change_configuration(root)
    later = rebuilt(tree, tmp_path / "later", "arch")
    run("pacman", *options, "-Udd", later)
    check_kept(changed)
    assert not list((root.folder / PRIVATE).rglob("*.cpython-399.pyc"))
    shutil.rmtree(root.folder / PRIVATE / "usb_proxy/__pycache__")
    root.run("/usr/share/libalpm/scripts/qubes-usb-proxy")
    check_kept(changed)
    for path in changed:
        shutil.move(path.with_name(f"{path.name}.pacnew"), path)
    use_another_python(root)
    run("pacman", *options, "-Rdd", "qubes-usb-proxy")
    check_removed(root, before)
    run("pacman", *options, "-Udd", later)
    use_another_python(root)
    run("pacman", *options, "-Udd", old)
    assert not (root.folder / PRIVATE).exists(), "a downgrade leaves nothing of it"


def test_from_the_tarball(dist: Path, tmp_path: Path) -> None:
    """`sudo make install-vm`, twice, also where a umask is strict."""
    root = copy_of("full", tmp_path)
    (tarball,) = dist.glob("*.tar.gz")
    run("tar", "-C", root.folder / "srv", "-xf", tarball)
    before = root.paths()
    make = "umask 077; cd /srv/*/ && make --silent"
    for _ in range(2):
        root.run("sh", "-c", f"{make} install-vm")
        check_installed(root)
    check_environment(root)
    ours = root.paths()
    changed = change_configuration(root)
    root.run("sh", "-c", f"{make} install-vm")
    assert not [path for path, text in changed.items() if path.read_text() == text]
    assert root.paths() == ours, "no copy is kept"
    use_another_python(root)
    assert attempt("find", root.folder / PRIVATE, "-not", "-perm", "-044").stdout == ""
    root.run("sh", "-c", f"{make} uninstall-vm")
    check_removed(root, before)


@pytest.mark.parametrize("form", ["deb", "dom0-deb"])
@pytest.mark.parametrize("first", ["tarball", "package"])
def test_purge_takes_what_make_left(
    dist: Path, packages: dict[str, Path], form: str, first: str, tmp_path: Path
) -> None:
    """Where both installed, in either order."""
    root = copy_of("full", tmp_path)
    (tarball,) = dist.glob("*.tar.gz")
    run("tar", "-C", root.folder / "srv", "-xf", tarball)
    shutil.copy(packages[form], root.folder / "srv")
    before = root.paths()
    side = "dom0" if form == "dom0-deb" else "vm"
    ways = [
        f"make --silent -C /srv/*/ install-{side}",
        f"dpkg -i --force-depends /srv/{packages[form].name}",
    ]
    for way in ways if first == "tarball" else ways[::-1]:
        root.run("sh", "-c", way)
    root.run("dpkg", "--purge", packages[form].name.partition("_")[0])
    check_removed(root, before)
