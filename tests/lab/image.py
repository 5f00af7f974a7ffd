# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests' root image, in two cached stages: Debian with a kernel, then the package in it.

The programs of the lab itself are in neither: a guest copies them from its initramfs.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import initrd
from .errors import LabError

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "udev",
    "kmod",
    "python3",
    "procps",
    "util-linux",
    "iproute2",
    "hostname",
    "strace",
    "usbutils",
    "alsa-utils",
    "inotify-tools",
    "dosfstools",
    "e2fsprogs",
    "usbguard",
    "cryptsetup-bin",
    "sudo",
)
# Packages of the platform that ours may depend on: empty ones, for whoever needs them.
STUBS = ("qubes-core-agent", "qubes-core-agent-qrexec", "qubes-core-qrexec", "qubesdb-vm")
PACKAGE = "qubes-usb-proxy"
KEPT_IMAGES = 4
TOOLS = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "DEBIAN_FRONTEND": "noninteractive",
}

GUEST = "usr/lib/lab"
COMMANDS = {
    "usr/bin/qrexec-client-vm": f"/{GUEST}/launch",
    "usr/lib/qubes/qrexec-client-vm": f"/{GUEST}/launch",
    f"{GUEST}/agent": "launch",
    **{
        f"usr/bin/qubesdb-{verb}": f"/{GUEST}/qubesdb"
        for verb in ("read", "write", "rm", "list", "watch")
    },
}
SERVICES = ("etc/qubes-rpc", "etc/qubes/rpc-config", "usr/local/etc/qubes-rpc")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """What a guest is booted from."""

    kernel: Path
    initrd: Path
    disk: Path


def cache_folder() -> Path:
    """Where images are kept, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "qubes-usb-proxy-lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def image(debs: Path | None, suite: str, progress: Progress) -> Image:
    """Return the image with the package from the folder `debs`, or without if that is None.

    `progress` gets a line for each step that takes long. Raises LabError.
    """
    if os.geteuid() != 0:
        raise LabError("the lab has to unpack a root file system: run it as root or with sudo")
    cache = cache_folder()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = _base(cache, suite, progress)
        disk = _disk(cache, base, debs, progress)
        return Image(base / "vmlinuz", _initrd(cache, base), disk)


def run(*command: str | Path, **options: str) -> str:
    """Run a program of the host; returns its output, raises LabError with it."""
    done = subprocess.run(
        command,
        env=TOOLS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=options.get("cwd"),
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise LabError(f"{Path(command[0]).name} failed with {done.returncode}:\n{tail}")
    return done.stdout


@contextlib.contextmanager
def step(progress: Progress, text: str) -> Iterator[None]:
    """Say how long something took."""
    start = time.monotonic()
    yield
    progress(f"lab: {text} ({time.monotonic() - start:.0f} s)")


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """A folder beside the results, so that they can be renamed into place."""
    folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=cache))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _mirrors(suite: str) -> list[str]:
    """The host's mirrors as lines for `suite`; none means mmdebstrap's own."""
    listing = run(
        "apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"
    )
    lines = []
    for label, uri in sorted({tuple(line.split()[:2]) for line in listing.splitlines()}):
        if label == "Debian":
            lines += [f"deb {uri} {suite} main", f"deb {uri} {suite}-updates main"]
        elif label == "Debian-Security":
            lines.append(f"deb {uri} {suite}-security main")
    return lines


def _base(cache: Path, suite: str, progress: Progress) -> Path:
    sources = [HERE / name for name in ("base-hook.sh", "initrd.py", "image.py")]
    key = _digest(suite.encode(), repr(PACKAGES).encode(), *(f.read_bytes() for f in sources))
    base = cache / f"base-{suite}-{key}"
    if base.exists():
        return base
    progress(f"lab: building the base image of Debian {suite}, once; this takes a minute or two")
    with step(progress, "base image built"), scratch(cache) as work:
        root = work / "root"
        run(
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            # As for tests.matrix.roots: a mirror may be behind.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
            f"--customize-hook={HERE / 'base-hook.sh'}",
            suite,
            root,
            *_mirrors(suite),
        )
        # In the folder of its modules since Debian 14.
        (kernel,) = [*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
        kernel.rename(work / "vmlinuz")
        (work / "initrd").write_bytes(initrd.build(root))
        for old in cache.glob(f"base-{suite}-*"):
            shutil.rmtree(old)
        work.rename(base)
        work.mkdir()  # for the scratch folder's own removal
    return base


def _disk(cache: Path, base: Path, debs: Path | None, progress: Progress) -> Path:
    packages = sorted(debs.glob("*.deb")) if debs else []
    if debs and not packages:
        raise LabError(f"no .deb in {debs}: build the package first")
    key = _digest(base.name.encode(), *(path.read_bytes() for path in packages))
    disk = cache / f"disk-{key}.ext4"
    if disk.exists():
        os.utime(disk)
        return disk
    with step(progress, "guest image built"), scratch(cache) as work:
        root = work / "root"
        run("cp", "-a", "--reflink=auto", base / "root", root)
        if debs:
            _install_package(root, debs)
        file = work / "disk"
        run("truncate", "-s", "1500M", file)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, file)
        file.rename(disk)
    _keep_latest(cache, "disk-*.ext4")
    return disk


def _keep_latest(cache: Path, pattern: str) -> None:
    for old in sorted(cache.glob(pattern), key=lambda path: -path.stat().st_mtime)[KEPT_IMAGES:]:
        old.unlink()


def _initrd(cache: Path, base: Path) -> Path:
    """That of the base with the lab's own part of a guest behind it."""
    guest = sorted(path for path in (HERE / "guest").iterdir() if path.is_file())
    files = (f"{path.name} {path.stat().st_mode}\n".encode() + path.read_bytes() for path in guest)
    file = cache / f"initrd-{_digest(base.name.encode(), *files)}"
    if file.exists():
        os.utime(file)
        return file
    root = base / "root"
    with scratch(cache) as work, scratch(root) as tree:
        _install_guest(guest, tree)
        # By the guest's Python, and unchecked: the archive keeps no times to compare.
        compileall = ("python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
        run("chroot", root, *compileall, "-s", f"/{tree.name}", "-p", "/", f"/{tree.name}")
        fresh = work / "initrd"
        fresh.write_bytes((base / "initrd").read_bytes() + initrd.archive(tree))
        fresh.rename(file)
    _keep_latest(cache, "initrd-*")
    return file


def _install_guest(guest: Sequence[Path], tree: Path) -> None:
    """Copy the lab's own part of a guest, as it lies there, to a folder."""
    for folder in (f"{GUEST}/guest", "usr/lib/udev/rules.d", *SERVICES):
        (tree / folder).mkdir(parents=True)
    for path in guest:
        if path.suffix == ".py":
            shutil.copy(path, tree / GUEST / "guest")
        elif path.suffix == ".rules":
            shutil.copy(path, tree / "usr/lib/udev/rules.d")
        else:
            shutil.copy(path, tree / GUEST)
    for name, target in COMMANDS.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(target)


def _install_package(root: Path, debs: Path) -> None:
    """Install the package by the users' command, from the repository that we make of `debs`."""
    repository = root / "var/lib/lab-repository"
    stubs = repository / "stubs"
    stubs.mkdir(parents=True)
    for name in STUBS:
        _stub(stubs, name)
    (stubs / "Packages").write_text(run("apt-ftparchive", "packages", ".", cwd=str(stubs)))
    run(
        "make",
        "-C",
        HERE.parents[1],
        "apt-repo",
        f"DIST={debs.resolve()}",
        f"REPO={repository}",
        f"GNUPG={repository}/gnupg",
        "URL=file:/var/lib/lab-repository",
    )
    shutil.copy(repository / "qubes-usb-proxy.asc", root / "etc/apt/keyrings")
    with (repository / "qubes-usb-proxy.list").open("a") as sources:
        sources.write("deb [trusted=yes] file:/var/lib/lab-repository/stubs ./\n")
    options = (
        "-q",
        "-o",
        "Dir::Etc::SourceList=/var/lib/lab-repository/qubes-usb-proxy.list",
        "-o",
        "Dir::Etc::SourceParts=-",
        "-o",
        "APT::Sandbox::User=root",
    )
    run("chroot", root, "apt-get", *options, "update")
    run("chroot", root, "apt-get", *options, "install", "-y", "--no-install-recommends", PACKAGE)
    shutil.rmtree(repository)


def _stub(folder: Path, name: str) -> None:
    control = folder / name / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: 4.3.0\nArchitecture: all\n"
        "Maintainer: The lab <lab@localhost>\nDescription: stand-in of the lab\n"
    )
    run("dpkg-deb", "--build", "--root-owner-group", "-Znone", folder / name, folder)
    shutil.rmtree(folder / name)
