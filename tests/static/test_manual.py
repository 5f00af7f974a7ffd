# SPDX-License-Identifier: GPL-2.0-or-later
"""What the manual pages and the completions say, compared with the programs."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_tool import SCHEMA
from usb_proxy import errors, journal
from usb_proxy.commands.qubes_usb_proxy import COMMANDS
from usb_proxy.tool import findings, help

TOP = Path(__file__).parents[2]
SOURCE = (TOP / "man/qubes-usb-proxy.8").read_text()


def plain(source: str) -> str:
    """Text of mdoc(7) without its macros, in one line."""
    words = []
    for line in source.splitlines():
        if not line.startswith('.\\"'):
            words += re.sub(r"^\.[A-Z][a-z]\b( [A-Z][a-z]\b)*", "", line).split()
    text = " ".join(words).replace("Fl Fl ", "--")
    return re.sub(r" ([.,:;)])", r"\1", text.replace("Op ", "").replace("\\&", ""))


MANUAL = plain(SOURCE)


@pytest.mark.parametrize(
    "text", [*help.COMMANDS.values(), *help.OPTIONS.values(), *help.EXITS.values()]
)
def test_the_manual_has_each_sentence_of_the_help(text: str) -> None:
    assert text in MANUAL


def test_the_manual_has_each_command_option_and_exit_code() -> None:
    synopsis = SOURCE.partition(".Sh SYNOPSIS\n")[2].partition(".Sh ")[0]
    lines = [
        "qubes-usb-proxy " + re.sub(r"\.(Cm|Ar|Op)? ?(Ar )?", "", part.replace("\n", " ")).strip()
        for part in synopsis.replace("Fl Fl ", "--").split(".Nm\n")[1:]
    ]
    lines = [
        re.sub(r" (--\w+)", r" [\1]", line).replace("help COMMAND", "help [COMMAND]")
        for line in lines
    ]
    assert lines == list(help.SYNOPSIS.values())
    assert re.findall(r"^\.It Fl Fl (\w+)$", SOURCE, re.MULTILINE) == [
        option.removeprefix("--") for option in help.OPTIONS
    ]
    assert exit_codes(SOURCE) == [*help.EXITS]


def exit_codes(source: str) -> list[int]:
    """Those that a page lists."""
    exits = source.partition(".Sh EXIT STATUS\n")[2].partition(".El")[0]
    return [int(code) for code in re.findall(r"^\.It (\d)$", exits, re.MULTILINE)]


CODES = {kind.__name__: kind.code for kind in errors.UsbProxyError.__subclasses__()}
NEVER = {
    "usb-reset": {
        errors.ExitCode.STOPPED: "it never waits where a signal could stop it",
    },
    "usb-detach-all": {
        errors.ExitCode.NO_DEVICE: "a device that has gone needs no detach",
        errors.ExitCode.IN_USE: "it detaches whatever is in use",
        errors.ExitCode.NOT_ATTACHED: "with nothing attached it is done",
        errors.ExitCode.PEER: "it asks nothing of another qube",
    },
    "qubes-usb-proxy": {
        errors.ExitCode.NO_DEVICE: "a device that has gone is not attached",
        errors.ExitCode.IN_USE: "it detaches whatever is in use",
        errors.ExitCode.PEER: "it asks nothing of another qube",
    },
}
"""Exit codes that modules of a program have, but not the program, and why."""


def modules(path: Path) -> set[Path]:
    """Those of the product that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    paths = {TOP / f"{name.replace('.', '/')}.py" for name in names if name.startswith("usb_proxy")}
    return {path for path in paths if path.exists()}


def raised(program: str) -> set[int]:
    """The exit codes of all errors in the modules of a program."""
    todo = [TOP / f"usb_proxy/commands/{program.replace('-', '_')}.py"]
    todo += (TOP / "usb_proxy/tool").glob("*.py") if program == "qubes-usb-proxy" else ()
    known: set[Path] = set()
    while todo:
        path = todo.pop()
        todo += modules(path) - known
        known.add(path)
    texts = [path.read_text() for path in known]
    return {code for name, code in CODES.items() if any(f'{name}("UP-' in text for text in texts)}


@pytest.mark.parametrize("program", NEVER)
def test_a_manual_lists_each_exit_code(program: str) -> None:
    listed = set(exit_codes((TOP / f"man/{program}.8").read_text()))
    own = {errors.ExitCode.OK, errors.ExitCode.WARNING}
    assert listed - own == {errors.ExitCode.INTERNAL, *raised(program)} - NEVER[program].keys()
    assert NEVER[program].keys() <= raised(program)


def test_the_manual_describes_the_json() -> None:
    section = SOURCE.partition(".Sh JSON\n")[2].partition(".Sh ")[0]
    quoted = set(re.findall(r"^\.(?:It )?Ql (.+?)(?: [,.])?$", section, re.MULTILINE))
    for name, schema in SCHEMA.items():
        assert name in quoted
        for member, values in schema[0].items() if isinstance(schema, list) else ():
            assert member in quoted
            assert not isinstance(values, set) or values <= quoted
    assert {*findings.LEVELS, "check", "text", "repair", "level", "findings"} <= quoted


def test_the_manual_describes_the_journal() -> None:
    source = (TOP / "usb_proxy/journal.py").read_text()
    for constant in re.findall(r'^[A-Z_]+ = "([^/].*)"$', source, re.MULTILINE):
        assert constant in MANUAL
    for name in re.findall(r'"(USB_PROXY_[A-Z]+)"', source) + [
        f"USB_PROXY_{name}" for name in ("PORT", "SECONDS", "REASON")
    ]:
        assert f".It Ql {name}=\n" in SOURCE
    assert journal.ATTACHED != journal.DETACHED


# Completion, asked of the shells themselves.

LOCKS = ("export-1-1.4", "import-my-usb-2-1", "import-sys-usb-0x12ab.0x00cd")
ATTACHED = {"1-1.4", "my-usb:2-1", "sys-usb:0x12ab.0x00cd"}
BASH = """
. /usr/share/bash-completion/bash_completion; . {file}
COMP_LINE=$1 COMP_POINT=${{#1}}; read -ra COMP_WORDS <<< "$1"
case $1 in *' ') COMP_WORDS+=('');; esac
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _qubes_usb_proxy; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# What the completion system of zsh would be told, one word in each line.
ZSH = """
words=(${(z)1}); [[ $1 = *' ' ]] && words+=(''); CURRENT=${#words}
compadd() { [[ $1 = -- ]] && shift; print -l -- $@ }
_arguments() { print -l -- ${@%%\\[*} }
_describe() { print -l -- ${${(P)2}%%:*} }
. %s
"""


@pytest.fixture
def completion(tmp_path: Path) -> Path:
    """The folder of completions, which look for locks below it."""
    locks = tmp_path / "locks"
    locks.mkdir()
    for name in LOCKS:
        (locks / f"{name}.lock").touch()
        (locks / f"{name}.notice").symlink_to("x")
    for path in (TOP / "completion").iterdir():
        text = path.read_text().replace("/run/qubes-usb-proxy", str(locks))
        (tmp_path / path.name).write_text(text)
    return tmp_path


def choices(shell: str, folder: Path, line: str) -> set[str]:
    """What a shell would offer at the end of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "bash":
        if not Path("/usr/share/bash-completion/bash_completion").exists():
            pytest.skip("bash-completion is not installed")
        command = ["bash", "-c", BASH.format(file=folder / "bash"), "bash", line]
    elif shell == "fish":
        command = ["fish", "--no-config", "-c", f"source {folder}/fish; complete -C '{line}'"]
    else:
        command = ["zsh", "-f", "-c", ZSH % (folder / "zsh"), "zsh", line]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL
    )
    if shell == "fish":
        return {each.partition("\t")[0] for each in done.stdout.splitlines()}
    return set(done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_completion(completion: Path, shell: str) -> None:
    def offered(words: str, typed: str = "") -> set[str]:
        found = choices(shell, completion, f"qubes-usb-proxy {words}{typed}")
        # zsh itself leaves out what does not begin as typed.
        return {each for each in found if each.startswith(typed)} if shell == "zsh" else found

    assert offered("") - {"--help"} == {*COMMANDS, "help"}
    assert offered("", "st") == {"status"}
    for name in ("status", "doctor"):
        assert offered(f"{name} ", "--") == COMMANDS[name][0] | {"--help"}
    assert offered("detach ") - {"--help"} == ATTACHED
    assert offered("detach ", "1") == {"1-1.4"}
    assert offered("help ") >= {*COMMANDS}
