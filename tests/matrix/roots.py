# SPDX-License-Identifier: GPL-2.0-or-later
"""Roots of Debian's suites, made once and kept outside the sources, named by what is in them."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.image import _mirrors
from tests.packaging.machine import TOP, Root, attempt, need_root, run

BUILDERS = ("bookworm", "trixie")
"""The suites in which the packages are built, and installed."""
NEWEST = "forky"
"""The one with Python 3.14, in which the program is installed from the tarball."""
DEPENDENCIES = "kmod libpolkit-gobject-1-0 pkexec python3"
TESTERS = "python3-hypothesis python3-pytest"
FULL = f"{DEPENDENCIES} {TESTERS} dbus make pacman-package-manager polkitd rpm sudo"
LINTERS = "lintian rpmlint"
GUESTS = ("qemu-system-x86", "qemu-utils")
"""What a check needs for the lab alone."""
USERS = "groupadd -r qubes && useradd -m -G qubes user"


def suites(*known: str) -> list[str]:
    """Those of these suites that are to be tested: the one in SUITE, or all."""
    wanted = os.environ.get("SUITE") or " ".join((*BUILDERS, NEWEST))
    unknown = set(wanted.split()) - {*BUILDERS, NEWEST}
    if unknown:
        raise ValueError(f"SUITE is none of {', '.join((*BUILDERS, NEWEST))}: {wanted}")
    return [suite for suite in known if suite in wanted.split()]


def tools(variable: str = "PACKAGE_TOOLS") -> list[str]:
    """What a variable of the Makefile lists."""
    return run("make", "--silent", "--eval", f"show: ; @echo $({variable})", "show").split()


@dataclass(frozen=True)
class Kind:
    """What is in a root: `packages`, and, not installed, what they are to be tested with."""

    packages: tuple[str, ...]
    beside: tuple[str, ...] = ()


def kind(name: str) -> Kind:
    """`build` has the tools that build and lint, `check` all those of `make check-packages`.

    `full` has what programs need, `clean` nothing.
    """
    return {
        "check": lambda: Kind(
            (
                *(each for each in tools("CHECK_TOOLS") if each not in GUESTS),
                *TESTERS.split(),
                "passwd",
            )
        ),
        "build": lambda: Kind((*tools(), *LINTERS.split(), "passwd")),
        "clean": lambda: Kind(("passwd",), tuple(f"{DEPENDENCIES} {TESTERS}".split())),
        "full": lambda: Kind((*FULL.split(), "passwd")),
    }[name]()


def cache_folder() -> Path:
    """Beside the lab's images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "qubes-usb-proxy-matrix"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(name: str, suite: str, what: Kind | None = None) -> Path:
    """The tree of a root that nobody changes; made when there is none with the same packages."""
    need_root()
    command = _command(suite, what or kind(name))
    key = hashlib.sha256(repr(command).encode()).hexdigest()[:12]
    cache = cache_folder()
    tree = cache / f"{name}-{suite}-{key}"
    with (cache / f"lock-{name}-{suite}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            for old in cache.glob(f"{name}-{suite}-*"):
                shutil.rmtree(old)
            fresh = cache / f"new-{name}-{suite}"
            unmount_below(fresh)
            shutil.rmtree(fresh, ignore_errors=True)
            run(*command, fresh, *_mirrors(suite))
            (fresh / "etc/hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename}\n")
            fresh.rename(tree)
    return tree


def unmount_below(folder: Path) -> None:
    """What is made of a root may have been killed, and this machine's /dev/shm be mounted there."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            run("umount", "--lazy", mount)


def _command(suite: str, what: Kind) -> list[str]:
    download = "chroot $1 apt-get -qq install -dy --no-install-recommends"
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=apt",
        f"--include={','.join(what.packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        # A mirror may be behind: that of a suite which is no release yet then counts as expired.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        "--skip=cleanup/apt,essential/unlink",
        *([f"--customize-hook={download} {' '.join(what.beside)}"] if what.beside else []),
        f"--customize-hook=chroot $1 sh -c '{USERS}'",
        suite,
    ]


@contextmanager
def copy_of(name: str, suite: str, folder: Path) -> Iterator[Root]:
    """A root of one's own, below `folder`; what differs from the cached one is in memory."""
    tree = cached(name, suite)
    layers, root = folder / "layers", folder / "root"
    for each in (layers, root):
        each.mkdir(parents=True)
    folder.chmod(0o755)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "layers", layers)
    try:
        for each in (layers / "own", layers / "work"):
            each.mkdir(mode=0o755)
        options = f"lowerdir={tree},upperdir={layers}/own,workdir={layers}/work"
        run("mount", "-t", "overlay", "-o", options, "root", root)
        # Locks of an overlay are of no file that /proc/locks could name.
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmp", root / "tmp")
        try:
            yield Root(root)
        finally:
            run("umount", "--recursive", root)
    finally:
        run("umount", layers)


class Workshop:
    """A cached root that cannot be written, with a folder of one's own at /srv."""

    def __init__(self, tree: Path, folder: Path, **beside: Path) -> None:
        """`beside` are other folders that are seen at /mnt/NAME."""
        self.tree, self.folder, self.beside = tree, folder, beside
        folder.mkdir(parents=True, exist_ok=True)

    def attempt(
        self, script: str, *arguments: str, user: str = "root", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of sh there, in /srv."""
        tree = self.tree
        mounts = [
            "set -e",
            f"mount --bind {tree} {tree}",
            f"mount -t tmpfs -o mode=755 mnt {tree}/mnt",
            *(f"mkdir {tree}/mnt/{name}" for name in self.beside),
            *(f"mount --bind {path} {tree}/mnt/{name}" for name, path in self.beside.items()),
            f"mount -o remount,ro,bind {tree}",
            f"mount -t proc proc {tree}/proc",
            f"mount --rbind /dev {tree}/dev",
            f"mount --rbind /sys {tree}/sys",
            *(
                f"mount -t tmpfs -o mode=1777 {name} {tree}/{name}"
                for name in ("run", "tmp", "var/tmp")
            ),
            f'mount --bind "$1" {tree}/srv',
            "shift",
            f'exec chroot {tree} setpriv --reuid={user} --regid={user} --init-groups "$@"',
        ]
        return attempt(
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", "\n".join(mounts), "sh", self.folder),
            *("sh", "-ec", f"cd /srv; {script}", "sh", *arguments),
            folder=TOP,
            environment=environment,
        )

    def run(self, script: str, *arguments: str, user: str = "root", **environment: str) -> str:
        """Run a script that has to succeed; gives its output."""
        done = self.attempt(script, *arguments, user=user, **environment)
        said = f"{done.stdout[-9000:]}{done.stderr[-3000:]}"
        assert done.returncode == 0, f"{script}: {done.returncode}\n{said}"
        return done.stdout
