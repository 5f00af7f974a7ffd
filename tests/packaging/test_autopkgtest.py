# SPDX-License-Identifier: GPL-2.0-or-later
"""debian/tests, run by Debian's own tool against the installed package."""

from pathlib import Path

from .machine import attempt, copy_of, need


def test_autopkgtest(dist: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    need("autopkgtest")
    root = copy_of("clean", tmp_path)
    (source,) = dist.glob("*.dsc")
    mounts = f"mount -t proc proc {root.folder}/proc; mount --rbind /dev {root.folder}/dev"
    done = attempt(
        "unshare",
        "--mount",
        "sh",
        "-ec",
        f'{mounts}; exec "$@"',
        "sh",
        "autopkgtest",
        "--no-built-binaries",
        packages["deb"],
        source,
        "--",
        "chroot",
        root.folder,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
