# SPDX-License-Identifier: GPL-2.0-or-later
"""Running things: on this machine, and in throw-away Debian roots that are cached."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.lab.image import _mirrors

TOP = Path(__file__).parents[2]
KEEP = "libpolkit-gobject-1-0 python3 kmod make dbus pkexec polkitd sudo"
"""What the root `full` has besides the clean one."""
FETCHED = f"{KEEP} python3-hypothesis python3-pytest"
"""What can be installed without a network, too."""
USERS = "groupadd -r qubes && useradd -m -G qubes user && useradd -m stranger"
SYSTEM = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": str(Path.home()),
    "DEBIAN_FRONTEND": "noninteractive",
}


def need(*commands: str) -> None:
    """Skip the test on a machine without one of these commands."""
    for command in commands:
        if shutil.which(command, path=SYSTEM["PATH"]) is None:
            pytest.skip(f"{command} is not installed; tests/setup.sh has it")


def need_root() -> None:
    """Skip the test unless it may unpack a root file system."""
    if os.geteuid() != 0:
        pytest.skip("only root can install packages into a folder")
    need("mmdebstrap")


def run(*command: str | Path, folder: Path = TOP, **environment: str) -> str:
    """Run a program; its output, or a failed test that shows it."""
    done = attempt(*command, folder=folder, environment=environment)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def attempt(
    *command: str | Path, folder: Path = TOP, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program with nothing on standard input and the environment of a clean system."""
    return subprocess.run(
        command,
        cwd=folder,
        env=SYSTEM | dict(environment or {}),
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


class Root:
    """A Debian root file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def attempt(
        self, *command: str | Path, user: str = "root", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it; what is mounted and started for that ends with it."""
        script = (
            f"mount -t proc proc {self.folder}/proc; mount --rbind /dev {self.folder}/dev;"
            f"mount -t tmpfs -o mode=755 run {self.folder}/run; cd /; chroot {self.folder} "
            f'setpriv --reuid={user} --regid={user} --init-groups "$@"; exit $?'
        )
        return attempt(
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
            *command,
            folder=self.folder,
            environment=environment,
        )

    def run(self, *command: str | Path, user: str = "root", **environment: str) -> str:
        """Run a program in it that has to succeed; gives its output."""
        done = self.attempt(*command, user=user, **environment)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def paths(self) -> set[str]:
        """All there is but what package managers and logs note."""
        own = (
            "var/lib/",
            "var/cache/",
            "var/log/",
            "run/",
            "proc/",
            "dev/",
            "tmp/",
            tempfile.gettempdir()[1:],  # dnf puts the host's folders of its own there
            "root/",
            "usr/share/doc/",
            "etc/ld.so.cache",
            "etc/dnf",
        )
        found = (str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))
        ours = {path for path in found if not path.startswith(own)}
        return ours | {
            str(path.relative_to(self.folder)) for path in self.folder.glob("usr/share/doc/qubes-*")
        }


def cached_root(name: str) -> Path:
    """The tree of a root of Debian 12: `clean`, or `full` with what programs need; or `trixie`."""
    need_root()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base) / "qubes-usb-proxy-packages"
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    tree = cache / f"{name}-{key}"
    with (cache / f"lock-{name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            for old in cache.glob(f"{name}-*"):
                shutil.rmtree(old)
            _make_root(name, tree.with_name(f"new-{name}"))
            tree.with_name(f"new-{name}").rename(tree)
    return tree


def _make_root(name: str, tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)
    if name == "full":
        run("cp", "-a", cached_root("clean"), tree)
        Root(tree).run("apt-get", "-qq", "install", "-y", "--no-install-recommends", *KEEP.split())
    elif name == "trixie":
        run("mmdebstrap", "--quiet", "--variant=apt", "--include=udev", name, tree, *_mirrors(name))
    else:
        run(
            "mmdebstrap",
            "--quiet",
            "--variant=apt",
            "--skip=cleanup/apt,essential/unlink",
            f"--customize-hook=chroot $1 apt-get -qq install -dy --no-install-recommends {FETCHED}",
            f"--customize-hook=chroot $1 sh -c '{USERS}'",
            "bookworm",
            tree,
            *_mirrors("bookworm"),
        )
        (tree / "etc/hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename}\n")


def copy_of(name: str, folder: Path) -> Root:
    """A root of one's own, below `folder`."""
    root = folder / "root"
    folder.chmod(0o755)
    run("cp", "-a", cached_root(name), root)
    return Root(root)
