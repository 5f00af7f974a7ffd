# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs: busybox, the modules that lead to the root file system, and a script.

What a second archive behind it has in the folder `lab` is copied to the root file system.
"""

import lzma
import stat
from pathlib import Path

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")

SCRIPT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
case "$(/bin/busybox cat /proc/cmdline)" in
    *lab.probe*) echo lab-probe-works; /bin/busybox poweroff -f ;;
esac
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod "/modules/$module"; done
while ! [ -b /dev/vda ]; do /bin/busybox sleep 0.05; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
/bin/busybox cp -a /lab/. /root
/bin/busybox cp /bin/busybox /root/usr/lib/lab
/bin/busybox mount -o move /dev /root/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /usr/lib/lab/init
"""


def build(tree: Path) -> bytes:
    """The archive for the kernel whose modules are in `tree`."""
    (folder,) = (tree / "usr/lib/modules").iterdir()
    files: dict[str, bytes] = {}
    for path in _load_order(folder):
        data = path.read_bytes()
        if path.suffix == ".xz":  # busybox cannot
            data = lzma.decompress(data)
        files[path.name.removesuffix(".xz")] = data
    members = [("bin", stat.S_IFDIR | 0o755, b""), ("modules", stat.S_IFDIR | 0o755, b"")]
    members += [(name, stat.S_IFDIR | 0o755, b"") for name in ("proc", "dev", "root")]
    members += [(f"modules/{name}", stat.S_IFREG | 0o644, data) for name, data in files.items()]
    members += [
        ("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes()),
        ("init", stat.S_IFREG | 0o755, SCRIPT.format(modules=" ".join(files)).encode()),
    ]
    return _cpio(members)


def archive(tree: Path) -> bytes:
    """The second archive, of all that is in `tree`; it is root's."""
    members = [("lab", stat.S_IFDIR | 0o755, b"")]
    for path in sorted(tree.rglob("*")):
        if path.is_symlink():
            data = str(path.readlink()).encode()
        else:
            data = path.read_bytes() if path.is_file() else b""
        members.append((f"lab/{path.relative_to(tree)}", path.lstat().st_mode, data))
    return _cpio(members)


def _load_order(folder: Path) -> list[Path]:
    """Files of the wanted modules, each after those that it needs (see modules.dep(5))."""
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    order: list[Path] = []
    for wanted in MODULES:
        for path, needed in needs.items():
            if Path(path).name.partition(".")[0] == wanted:
                # modules.dep lists the farthest need last
                order += [folder / each for each in (*reversed(needed), path)]
    return list(dict.fromkeys(order))


def _cpio(members: list[tuple[str, int, bytes]]) -> bytes:
    """An archive in the kernel's `newc` format, of (path, mode, contents)."""
    archive = bytearray()
    trailer = ("TRAILER!!!", 0, b"")
    for inode, (name, mode, data) in enumerate([*members, trailer], 1):
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields)
        archive += name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)
