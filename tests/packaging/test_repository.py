# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that tell apt and dnf where a repository is, whatever its address looks like."""

import os
from configparser import ConfigParser
from pathlib import Path

from .machine import attempt, run


def test_an_address_that_a_shell_would_split(tree: Path, dist: Path, tmp_path: Path) -> None:
    """apt reads words, so a space is %20; nothing else is changed, and no command is run.

    Whatever the packager's umask is, the users' programs can read all of it.
    """
    address = "https://example.org/it's a; touch there #\"`x`/%7Eme&you"
    make = ["make", "repo", f"URL={address}", f"REPO={tmp_path}/re po", f"DIST={dist}"]
    make.append(f"GNUPG={tmp_path}/k ey")
    run("sh", "-c", 'umask 077; exec "$@"', "make", *make, folder=tree)
    assert attempt("find", tmp_path / "re po", "-not", "-perm", "-044").stdout == ""
    written = address.replace(" ", "%20")
    line = (tmp_path / "re po/qubes-usb-proxy.list").read_text()
    key = "/etc/apt/keyrings/qubes-usb-proxy.asc"
    assert line == f"deb [signed-by={key}] {written}/apt ./\n"
    repo = ConfigParser(interpolation=None)
    repo.read(tmp_path / "re po/qubes-usb-proxy.repo")
    assert dict(repo["qubes-usb-proxy"]) == {
        "name": "qubes-usb-proxy",
        "baseurl": f"{written}/dnf",
        "gpgcheck": "1",
        "repo_gpgcheck": "1",
        "gpgkey": f"{written}/qubes-usb-proxy.asc",
    }
    assert not (tree / "there").exists()


def test_a_key_that_was_made_in_part_is_made_anew(tree: Path, dist: Path, tmp_path: Path) -> None:
    """It would be taken for one that is there."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gpg").write_text("#!/bin/sh\nexit 2\n")
    (programs / "gpg").chmod(0o755)
    make = ["make", "apt-repo", f"REPO={tmp_path}/repo", f"DIST={dist}", f"GNUPG={tmp_path}/keys"]
    path = f"PATH={programs}:{os.environ['PATH']}"
    assert attempt("env", path, *make, folder=tree).returncode
    assert not (tmp_path / "keys").exists()
    (tmp_path / "keys").write_text("of somebody")
    assert attempt(*make, folder=tree).returncode
    assert (tmp_path / "keys").read_text() == "of somebody"
    (tmp_path / "keys").unlink()
    run(*make, folder=tree)
    assert (tmp_path / "repo/apt/InRelease").stat().st_size
