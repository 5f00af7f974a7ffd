# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m tests.bench.inside.alike TREE QUESTION...`: do the stand-ins answer as the real ones?

Each question is a line for a shell of the frontend. Asked of both, the exit code and what is said
on stdout must be the same; of stderr only whether there is any. Prints a JSON object: each
question, and how the answers differ, "" if they do not.
"""

import json
import sys
from pathlib import Path

from . import machine
from .platform import REFUSED_TARGET, TREE, Platform
from .qubes import BACKEND, CALL_SECONDS, FRONTEND, Qubes
from .real import CONFIGURATIONS, SERVICES, service

ANSWERS = {
    "like.Ok": "#!/bin/sh\nexit 0\n",
    "like.Code": "#!/bin/sh\nexit 77\n",
    "like.Dies": "#!/bin/sh\nkill -9 $$\n",
    "like.Broken": "#!/nowhere\n",
    "like.Closed": "#!/bin/sh\n",
    "like.Shell": '#!/bin/sh\neval "$(cat)"\n',
    "like.Environment": "#!/bin/sh\nenv | grep -E '^(QREXEC|HOME|USER|LOGNAME|SHELL|PATH)' | "
    "grep -v AGENT_PID | sort; pwd; id\n",
    "like.Files": "#!/bin/sh\nfor fd in /proc/self/fd/[0-2]; do readlink $fd | tr -d '0-9'; done; "
    "echo $#; set -- /proc/$$/fd/*; echo $#\n",
    "like.Root": "#!/bin/sh\nid -un\n",
    "like.Configured": "#!/bin/sh\nexit 0\n",
    "like.Says": "#!/bin/sh\necho out; echo err >&2\n",
    "like.Echo": "#!/bin/sh\nexec cat\n",
    "like.Deaf": "#!/bin/sh\nexec <&-\nsleep 0.3\necho bye\n",
    "like.Agent": "#!/bin/sh\nkill -9 $QREXEC_AGENT_PID\nsleep 0.2\necho late\n",
    "like.Both": "#!/bin/sh\nkill -USR1 $QREXEC_AGENT_PID\nsleep 0.2\necho one >&0\nread x <&0\n"
    "echo got $x >&2\n",
    "like.Noisy": "#!/bin/sh\nhead -c 300000 /dev/zero >&2\n",
    "like.Leaves": "#!/bin/sh\n(sleep 1; echo late) &\n",
}
RULES = {
    "like.Agent": "force-user='root'\n",
    "like.Both": "force-user='root'\n",
    "like.Root": "force-user='root'\n",
    "like.Configured": "force-user=oops\nnonsense\n",
}


def call(name: str, program: str = "/bin/cat", target: str = BACKEND) -> str:
    """A line that calls a service, with a program that prints what comes on stderr."""
    return f"qrexec-client-vm {target} {name} {program}"


QUESTIONS = {
    "ok": call("like.Ok", "/bin/true"),
    "program fails": call("like.Ok", "/bin/false"),
    "both fail": call("like.Code", "/bin/false"),
    "program is killed": call("like.Ok", "/bin/sh -c 'kill -9 $$'"),
    "no such program": call("like.Ok", "/nowhere"),
    "no program": call("like.Code", ""),
    "service fails, with a program": call("like.Code", "/bin/true"),
    "service dies": call("like.Dies", ""),
    "not installed": call("like.Nothing", ""),
    "not executable": call("like.Closed", ""),
    "without its interpreter": call("like.Broken", ""),
    "broken configuration": call("like.Configured", ""),
    "refused": call("like.Ok", "/bin/true", REFUSED_TARGET),
    "not running": call("like.Ok", "/bin/true", "halted"),
    "long target": call("like.Ok", "/bin/true", "x" * 40),
    "long service": call("like." + "x" * 80, "/bin/true"),
    "service of 64": call("like.Ok+" + "x" * 56, "/bin/true"),
    "no arguments": "qrexec-client-vm",
    "environment": call("like.Environment", ""),
    "environment, argument": call("like.Environment+a+b", ""),
    "files": call("like.Files", ""),
    "files, argument": call("like.Files+arg", ""),
    "user": call("like.Root", ""),
    "output": call("like.Says", ""),
    "holds stdout": call("like.Leaves", ""),
    "both ways": call(
        "like.Echo", "/bin/sh -c 'head -c 30000 /dev/zero; exec >&-; wc -c >&2' 2>&1"
    ),
    "service does not listen": call(
        "like.Deaf", "/bin/sh -c 'sleep 0.6; head -c 200000 /dev/zero; echo $? >&2; cat >&2' 2>&1"
    ),
    "much on stderr": call("like.Noisy", "") + " 2>&1 >/dev/null | wc -c",
    "program does not listen": call("like.Echo", "/bin/sh -c 'exec <&-; echo x'") + "; echo $?",
    "agent killed": call("like.Agent", "/bin/cat") + "; echo $?",
    "agent killed, program fails": call("like.Agent", "/bin/sh -c 'cat; exit 3'") + "; echo $?",
    "client killed": call("like.Echo", "/bin/sh -c 'kill -9 $PPID; sleep 0.1; echo x'")
    + "; echo $?",
    "one socket": call(
        "like.Both",
        "/bin/sh -c 'kill -USR1 $QREXEC_AGENT_PID; read x; sleep 0.2; echo $x back >&0; cat' 2>&1",
    ),
    "program's files": call(
        "like.Ok",
        "/bin/sh -c 'for fd in 0 1 2; do readlink /proc/$$/fd/$fd | tr -d 0-9; done >&2; "
        "env | sed s/=.*// | grep -v VCHAN | sort >&2' 2>&1",
    ),
    "database": "qubesdb-write /a/b 1 /a/c 2 && qubesdb-read /a/b && qubesdb-list /a/; "
    "qubesdb-list -f /a/; qubesdb-read -r /a/c",
    "database, missing": "qubesdb-read /a/none; echo $?; qubesdb-rm /a/none; echo $?; "
    "qubesdb-list /none/; echo $?",
    "database, removed": "qubesdb-write /a/d/e 1; qubesdb-rm /a/d/; qubesdb-read /a/d/e; echo $?",
    "database, invalid": "qubesdb-write nothing 1; echo $?; qubesdb-write /a/x; echo $?; "
    "qubesdb-write '/a b' 1; echo $?; qubesdb-write /a/% 1; echo $?",
    "database, long": "qubesdb-write /a/long $(printf '%4000s' x | tr ' ' y); echo $?; "
    "qubesdb-read /a/long | wc -c; qubesdb-write /a/long $(printf %3000s x | tr ' ' y); echo $?; "
    "qubesdb-read /a/long | wc -c",
    "database, watch": "qubesdb-watch /a/w & sleep 0.3; qubesdb-write /a/v 1 /a/w 1; wait $!; "
    "echo $?; qubesdb-watch /a/u/ & sleep 0.3; qubesdb-write /a/u/x 1; wait $!; echo $?",
    "database, lines": "qubesdb-write /a/l 'a\nb'; qubesdb-read /a/l; qubesdb-write /a/e ''; "
    "qubesdb-read /a/e; echo $?",
}


def ask(qubes: Qubes, question: str) -> tuple[int, str, bool]:
    """The exit code, stdout, and whether there was anything on stderr."""
    done = qubes.start(FRONTEND, "like.Shell", question).wait(CALL_SECONDS)
    return done.code, done.stdout.decode(errors="replace"), bool(done.stderr)


def main(arguments: list[str]) -> int:
    """Ask both."""
    assert TREE.exists()
    machine.load_modules()
    for folder in (SERVICES, CONFIGURATIONS):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in ANSWERS.items():
        service(name, text, 0o644 if name == "like.Closed" else 0o755)
    for name, text in RULES.items():
        (CONFIGURATIONS / name).write_text(text)
    wanted = {k: v for k, v in QUESTIONS.items() if not arguments[2:] or k in arguments[2:]}
    answers: list[dict[str, tuple[int, str, bool]]] = []
    for kind in (Qubes, Platform):
        qubes = kind(Path(arguments[1]))
        answers.append({})
        for name, question in wanted.items():
            machine.ask(f"say {kind.__name__}: {name}")
            answers[-1][name] = ask(qubes, question)
        qubes.close()
    stand_in, real = answers
    json.dump(
        {
            name: "" if stand_in[name] == real[name] else f"{stand_in[name]}, really {real[name]}"
            for name in wanted
        },
        sys.stdout,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
