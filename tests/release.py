# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program can do of the checklist in CONTRIBUTING.md: `make release-check`."""

import filecmp
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[1]
LEFT = {
    3: "run `make check` on Debian 12 and 13",
    4: "run `make check-real`",
    5: "run `make check-faults`, `make check-phones` and `make soak`",
    9: "install and upgrade in two templates and in dom0, and attach",
    10: "publish",
}
"""What is left to whoever releases."""


def tell(top: Path, *command: str) -> tuple[int, str]:
    """Run a program in a folder; gives its exit code and what it said."""
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def version_of(top: Path) -> str:
    """The version to be released."""
    return (top / "version").read_text().strip()


def check_changelog(top: Path) -> Iterator[str]:
    """1: the version and the changelog's first entry."""
    entry = (top / "debian/changelog").read_text().partition("\n -- ")
    first, _, lines = entry[0].partition("\n")
    if not first.startswith(f"qubes-usb-proxy ({version_of(top)}) "):
        yield f"`version` says {version_of(top)}, debian/changelog: {first}"
    if "UNRELEASED" in first or not re.search(r"^  \* \w", lines, re.MULTILINE):
        yield "the first entry of debian/changelog is not released, or empty"


def check_tree(top: Path) -> Iterator[str]:
    """2: generated pages are new, and git knows all."""
    code, said = tell(top, "make", "--silent", "errors")
    if code:
        yield f"make errors: {said}"
    code, said = tell(top, "git", "status", "--porcelain")
    if code or said:
        yield f"uncommitted, or unknown to git:\n{said}"


def check_tag(top: Path) -> Iterator[str]:
    """6: a signed tag of this commit."""
    tag = f"v{version_of(top)}"
    marked = tell(top, "git", "rev-parse", "--verify", "--quiet", f"{tag}^{{commit}}")
    if marked != tell(top, "git", "rev-parse", "HEAD"):
        yield f"the tag {tag} does not mark this commit"
    else:
        code, said = tell(top, "git", "verify-tag", tag)
        if code:
            yield f"git verify-tag {tag}: {said}"


def check_packages(top: Path) -> Iterator[str]:
    """7: two builds of what is committed, in different folders; dist/repo has what they give."""
    with tempfile.TemporaryDirectory() as name:
        places = [Path(name) / each for each in ("one", "another one")]
        for place in places:
            for command in (
                ["git", "clone", "--quiet", str(top), str(place)],
                ["make", "-C", str(place), "packages"],
            ):
                code, said = tell(top, *command)
                if code:
                    yield f"{command[0]}: {said[-2000:]}"
                    return
        built = [{path.name for path in (place / "dist").iterdir()} for place in places]
        (one, another) = (place / "dist" for place in places)
        equal, _, _ = filecmp.cmpfiles(one, another, built[0] | built[1], shallow=False)
        if different := (built[0] | built[1]) - set(equal):
            yield f"two builds differ: {', '.join(sorted(different))}"
        yield from check_same(top, one)


def check_same(top: Path, built: Path) -> Iterator[str]:
    """Each package in dist/repo is one of `built`; an rpm but for its signature."""
    query = ("rpm", "-qp", "--nosignature", "--qf", "%{SHA256HEADER}")
    repo = top / "dist/repo"
    for package in sorted([*repo.glob("apt/*.deb"), *repo.glob("dnf/*.rpm")]):
        ours = built / package.name
        if ours.suffix == ".rpm":
            same = ours.exists() and tell(top, *query, str(package)) == tell(top, *query, str(ours))
        else:
            same = ours.exists() and filecmp.cmp(package, ours, shallow=False)
        if not same:
            yield f"dist/repo has another {package.name}"


def check_signatures(top: Path) -> Iterator[str]:
    """8: all signatures of dist/repo, by the one key that is in it: the releaser's own."""
    repo = top / "dist/repo"
    if not (repo / "qubes-usb-proxy.asc").exists():
        yield "there is no dist/repo; run `make repo`"
        return
    with tempfile.TemporaryDirectory() as home:
        os.environ["GNUPGHOME"] = home
        key = str(repo / "qubes-usb-proxy.asc")
        commands = [["gpg", "--batch", "--import", key], ["rpm", "--dbpath", home, "--import", key]]
        repomd = str(repo / "dnf/repodata/repomd.xml")
        commands += [
            ["gpg", "--batch", "--verify", str(repo / "apt/InRelease")],
            ["gpg", "--batch", "--verify", f"{repomd}.asc", repomd],
        ]
        commands += [
            ["rpmkeys", "--dbpath", home, "--define", "_pkgverify_level all", "-K", str(package)]
            for package in sorted(repo.glob("dnf/*.rpm"))
        ]
        for command in commands:
            code, said = tell(top, *command)
            if code:
                yield f"{' '.join(command)}: {said}"
        if "throw-away" in tell(top, "gpg", "--batch", "--show-keys", key)[1]:
            yield "the key is a throw-away one; run `make repo` with KEY"
        tell(top, "gpgconf", "--kill", "gpg-agent")


CHECKS = {
    1: check_changelog,
    2: check_tree,
    6: check_tag,
    7: check_packages,
    8: check_signatures,
}


def main(top: Path) -> int:
    """Say of each line of the checklist whether it is done; 1 if one is not."""
    failed = False
    for number in range(1, 11):
        if number in LEFT:
            print(f"{number:2} yours: {LEFT[number]}", flush=True)
            continue
        found = list(CHECKS[number](top))
        failed |= bool(found)
        print(f"{number:2} {'NO: ' + '; '.join(found) if found else 'done'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(TOP))
