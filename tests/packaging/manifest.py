# SPDX-License-Identifier: GPL-2.0-or-later
"""What a package or a folder holds: path, type, mode, owner, link target and hash."""

import hashlib
import io
import os
import re
import stat
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One path: `kind` is d, f or l; `owner` in numbers; `content` is a target or a hash."""

    kind: str
    mode: int
    owner: str
    content: str


Manifest = dict[str, Entry]

# (formats, paths, why): the only differences there may be to what `make install-...` writes.
ALLOWED = (
    (
        "rpm dom0-rpm",
        r"/etc|/etc/qubes/policy\.d|/usr|/usr/bin"
        r"|/usr/(lib|share)(/(doc|man|man/man.))?|/usr/lib/python3|/usr/lib/python3/dist-packages",
        "folders that other packages own",
    ),
    ("dom0-rpm", r"/etc/qubes", "a folder that other packages own"),
    (
        "deb dom0-deb rpm dom0-rpm arch",
        r".*/__pycache__(/.*)?",
        "packages make byte code, for the Python that is there, when they are installed",
    ),
    ("deb", r"/usr/share/python3(/.*)?", "and when Python is upgraded"),
    ("arch", r"/usr/share/libalpm(/.*)?", "the same for pacman"),
    ("deb", r"/usr/share/doc/qubes-usb-proxy/(changelog\.gz|copyright)", "Debian's documentation"),
    ("dom0-deb", r"/usr/share(/doc(/qubes-usb-proxy-dom0(/.*)?)?)?", "Debian's documentation"),
    ("deb", r"/usr/share/lintian(/.*)?", "Debian's linter"),
    ("deb", r"/etc/sudoers\.d", "0755 in Debian, 0750 elsewhere"),
    (
        "rpm arch",
        r"/usr/share/zsh/(site-functions|vendor-completions)(/.*)?",
        "Debian's zsh looks elsewhere",
    ),
    ("rpm dom0-rpm arch", r"/usr/share/licenses(/.*)?", "Debian has all licences already"),
)


def of_folder(folder: Path) -> Manifest:
    """What is below a folder."""
    manifest = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        kind = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}[stat.S_IFMT(state.st_mode)]
        content = ""
        if kind == "f":
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif kind == "l":
            content = str(path.readlink())
        # Whoever installs without being root installs for whoever packs.
        owner = "0:0" if state.st_uid == os.geteuid() else f"{state.st_uid}:{state.st_gid}"
        manifest[f"/{path.relative_to(folder)}"] = Entry(
            kind, stat.S_IMODE(state.st_mode), owner, content
        )
    return manifest


def of_package(package: Path) -> Manifest:
    """What is in a .deb, .rpm or .pkg.tar.zst."""
    if package.suffix == ".rpm":
        return _of_rpm(package)
    if package.suffix == ".deb":
        return _of_tar(_output("dpkg-deb", "--fsys-tarfile", str(package)))
    return _of_tar(_output("zstd", "-qdc", str(package)))


def _output(*command: str) -> bytes:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def _of_tar(archive: bytes) -> Manifest:
    manifest = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            path = os.path.normpath(f"/{member.name}")
            if path == "/" or re.fullmatch(r"/\.[A-Z]+", path):
                continue  # the root, and makepkg's own files
            content, kind = member.linkname, "l" if member.issym() else "d"
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                content, kind = hashlib.sha256(file.read()).hexdigest(), "f"
            manifest[path] = Entry(kind, member.mode, f"{member.uid}:{member.gid}", content)
    return manifest


def _of_rpm(package: Path) -> Manifest:
    fields = (
        "%{FILENAMES}\t%{FILEMODES}\t%{FILEUSERNAME}:%{FILEGROUPNAME}\t"
        "%{FILELINKTOS}\t%{FILEDIGESTS}"
    )
    manifest = {}
    for line in _output("rpm", "-qp", "--qf", f"[{fields}\n]", str(package)).decode().splitlines():
        path, text, owner, target, digest = line.split("\t")
        mode = int(text) & 0xFFFF
        kind = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}[stat.S_IFMT(mode)]
        owner = owner.replace("root", "0")
        manifest[path] = Entry(kind, stat.S_IMODE(mode), owner, target or digest)
    return manifest


def differences(package: Manifest, installed: Manifest) -> dict[str, tuple[object, object]]:
    """Path to what each has, where they differ."""
    return {
        path: (package.get(path), installed.get(path))
        for path in sorted(package.keys() | installed.keys())
        if package.get(path) != installed.get(path)
    }


def is_allowed(form: str, path: str) -> bool:
    """Whether a package of this format may differ here."""
    return any(form in forms.split() and re.fullmatch(paths, path) for forms, paths, _ in ALLOWED)
