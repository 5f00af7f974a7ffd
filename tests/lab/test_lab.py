# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's own tests: that its stand-ins do what the platform does. Without our package."""

import hashlib
import os
import queue
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import Call, CommandFailed, Guest, Lab, LabError
from .image import cache_folder

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"),
    reason="needs root, and what setup.sh installs",
)
RPC = "/etc/qubes-rpc"
BIG = 20 << 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(None, progress=print) as running:
        yield running


def service(guest: Guest, name: str, script: str, folder: str = RPC) -> None:
    interpreter = "python3" if "import " in script else "sh"
    guest.write(f"{folder}/{name}", f"#!/usr/bin/{interpreter}\n{script}\n", 0o755)


def start_client(lab: Lab, name: str, program: str = "", stdin: bytes = b"") -> Call:
    """Call a backend's service from the frontend, with a program in Python."""
    command = f"qrexec-client-vm sys-usb {name}"
    if program:
        path = f"/tmp/program-{name}"
        lab.frontend.write(path, f"#!/usr/bin/python3\n{program}\n", 0o755)
        command += f" {path}"
    return lab.frontend.start_command(command, stdin=stdin)


def test_lookup_order(lab: Lab) -> None:
    backend = lab.backend
    for folder, name in (
        (RPC, "t.Order"),
        (RPC, "t.Order+a"),
        (f"/usr/local{RPC}", "t.Order"),
        (f"/usr/local{RPC}", "t.Order+a"),
    ):
        service(backend, name, f'echo "{folder}/{name}" "$#"', folder)
        assert lab.call(backend, "t.Order+a").stdout.decode() == f"{folder}/{name} 1\n"
    assert lab.call(backend, "t.Order").stdout.decode() == f"/usr/local{RPC}/t.Order 0\n"


def test_environment_and_user(lab: Lab) -> None:
    service(lab.backend, "t.Env", 'id -un; echo "parent=$PPID"; env; echo "$@"')
    with lab.allowed("t.Env", "x", lab.frontend, lab.backend):
        call = "FOO=1 qrexec-client-vm sys-usb t.Env+x"
        lines = lab.frontend.run(call).text.split("\n")
        said = dict(line.split("=", 1) for line in lines[1:-1])
        assert lines[0] == "user"
        assert lines[-1] == "x"
        assert "FOO" not in said
        assert said["QREXEC_AGENT_PID"] == said["parent"]
        assert said["QREXEC_REMOTE_DOMAIN"] == "work"
        assert said["QREXEC_SERVICE_FULL_NAME"] == "t.Env+x"
        assert said["QREXEC_SERVICE_ARGUMENT"] == "x"
        assert said["PATH"]
        lab.backend.write("/etc/qubes/rpc-config/t.Env", "force-user='root'\n")
        assert lab.frontend.run(call).text.startswith("root\n")


def test_call_from_dom0(lab: Lab) -> None:
    service(lab.frontend, "t.Dom0", "cat; id -un >&2; exit 7")
    done = lab.call(lab.frontend, "t.Dom0", b"\0in\xff")
    assert (done.code, done.stdout, done.stderr) == (7, b"\0in\xff", b"root\n")
    assert lab.call(lab.frontend, "t.Dom0", user="user").stderr == b"user\n"
    assert lab.call(lab.frontend, "t.Missing").code == 127
    service(lab.frontend, "t.Slow", "exec sleep 60")
    with pytest.raises(LabError, match="no end after"):
        lab.call(lab.frontend, "t.Slow", timeout=1)


def test_two_sockets_and_a_pipe(lab: Lab) -> None:
    script = (
        "import os, socket, stat\n"
        "for fd in 0, 1:\n"
        "    s = socket.socket(fileno=fd)\n"
        "    print(s.family == socket.AF_UNIX, s.type == socket.SOCK_STREAM, flush=True)\n"
        "    s.detach()\n"
        "print(os.fstat(0).st_ino != os.fstat(1).st_ino, stat.S_ISFIFO(os.fstat(2).st_mode))"
    )
    service(lab.backend, "t.Kind", script)
    assert lab.call(lab.backend, "t.Kind").text == "True True\n" * 2 + "True True"


def test_single_socket(lab: Lab) -> None:
    script = (
        'printf before >&0; sleep 0.3; kill -USR1 "$QREXEC_AGENT_PID"; read -r line; '
        'kill -USR1 "$QREXEC_AGENT_PID"; echo " $line" >&0'
    )
    service(lab.backend, "t.Single", script)
    assert lab.call(lab.backend, "t.Single", b"ping\n").stdout == b"before ping\n"


HALF_CLOSE_SERVICE = """import os, signal, socket
os.kill(int(os.environ["QREXEC_AGENT_PID"]), signal.SIGUSR1)
s = socket.socket(fileno=0)
s.sendall(b"hello")
s.shutdown(socket.SHUT_WR)
data = b""
while chunk := s.recv(100):
    data += chunk
open("/tmp/half", "wb").write(data)"""
HALF_CLOSE_PROGRAM = """import os, signal, socket
os.kill(int(os.environ["QREXEC_AGENT_PID"]), signal.SIGUSR1)
s = socket.socket(fileno=0)
data = b""
while chunk := s.recv(100):
    data += chunk
s.sendall(b"got " + data)
s.shutdown(socket.SHUT_WR)
os.write(int(os.environ["SAVED_FD_1"]), b"done")"""


def test_half_closes(lab: Lab) -> None:
    service(lab.backend, "t.Half", HALF_CLOSE_SERVICE)
    with lab.allowed("t.Half", "", lab.frontend, lab.backend, user="root"):
        done = start_client(lab, "t.Half", HALF_CLOSE_PROGRAM).wait(20)
    assert (done.code, done.stdout) == (0, b"done")
    assert lab.backend.read("/tmp/half") == b"got hello"


def test_stderr_holds_the_call(lab: Lab) -> None:
    service(lab.backend, "t.Hold", "echo why >&2; sleep 3 </dev/null >/dev/null & exit 3")
    start = time.monotonic()
    done = lab.call(lab.backend, "t.Hold")
    assert (done.code, done.stderr) == (3, b"why\n")
    assert time.monotonic() - start > 2.5
    assert "why" in lab.backend.console()
    service(lab.backend, "t.Hold", "sleep 30 </dev/null >/dev/null 2>&1 & exit 3")
    assert lab.call(lab.backend, "t.Hold", timeout=10).code == 3


def test_client_program(lab: Lab) -> None:
    service(lab.backend, "t.Fail", "echo sorry >&2; exit 9")
    program = (
        "import os, sys\n"
        "assert int(os.environ['QREXEC_AGENT_PID']) == os.getppid()\n"
        "os.write(int(os.environ['SAVED_FD_1']), os.read(7, 10))\n"
        "sys.exit(5)"
    )
    with lab.allowed("t.Fail", "", lab.frontend, lab.backend):
        start_client(lab, "t.Fail", program).wait(20)
        done = lab.frontend.run(
            "echo inherited >/tmp/f; qrexec-client-vm sys-usb t.Fail /tmp/program-t.Fail 7</tmp/f",
            check=False,
        )
        assert (done.code, done.text, done.stderr) == (9, "inherited", b"sorry\n")
        assert lab.frontend.run("qrexec-client-vm sys-usb t.Fail", check=False).code == 9
        closed = "qrexec-client-vm sys-usb t.Fail /bin/true 2>&-"
        assert lab.frontend.run(closed, check=False).code == 9


def test_failures_to_connect(lab: Lab) -> None:
    run = lab.frontend.run
    mark = "/tmp/was-started"
    assert run(f"qrexec-client-vm sys-usb t.No /bin/touch {mark}", check=False).code == 126
    with pytest.raises(CommandFailed):
        run(f"test -e {mark}")
    with lab.allowed("t.No", "*", lab.frontend, lab.backend):
        assert run("qrexec-client-vm sys-usb t.No+arg", check=False).code == 127
        assert run(f"qrexec-client-vm sys-usb t.No+{'x' * 59}", check=False).code == 127
        assert run(f"qrexec-client-vm {'x' * 64} t.No", check=False).code == 126
        assert run("qrexec-client-vm other t.No", check=False).code == 126
    assert lab.backend.run("qrexec-client-vm work t.No", check=False).code == 126


BOTH_WAYS = """import hashlib, os, random, signal, socket, sys, threading
os.kill(int(os.environ["QREXEC_AGENT_PID"]), signal.SIGUSR1)
s = socket.socket(fileno=0)
data = random.Random(sys.argv[0]).randbytes({size})
def send():
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
thread = threading.Thread(target=send)
thread.start()
received = hashlib.sha256()
while chunk := s.recv(65536):
    received.update(chunk)
thread.join()
sent = hashlib.sha256(data)
print(sent.hexdigest(), received.hexdigest(), file=open("/tmp/sums", "w"))"""


def test_transfer(lab: Lab) -> None:
    script = BOTH_WAYS.format(size=BIG)
    service(lab.backend, "t.Bulk", script)
    with lab.allowed("t.Bulk", "", lab.frontend, lab.backend, user="root"):
        start = time.monotonic()
        assert start_client(lab, "t.Bulk", script).wait(90).code == 0
    print(f"20 MiB both ways at once: {time.monotonic() - start:.1f} s")
    sent, received = lab.backend.read("/tmp/sums").split()
    assert lab.frontend.read("/tmp/sums").split() == [received, sent]


def test_big_stdin_and_stdout_of_dom0(lab: Lab) -> None:
    data = os.urandom(2 << 20)
    done = lab.frontend.run("tee /dev/stderr", stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.stderr == data


def test_flow_control(lab: Lab) -> None:
    service(lab.backend, "t.Deaf", "while ! [ -e /tmp/listen ]; do sleep 0.1; done; exec wc -c")
    program = (
        "import os, select, socket\n"
        "os.set_blocking(1, False)\n"
        "count = 0\n"
        "p = select.poll(); p.register(1, select.POLLOUT)\n"
        "while p.poll(3000): count += os.write(1, bytes(4096))\n"
        "open('/tmp/written', 'w').write(str(count))\n"
        "os.write(int(os.environ['SAVED_FD_1']), b'stuck\\n')\n"
        "socket.socket(fileno=1).shutdown(socket.SHUT_WR)\n"
        "os.write(int(os.environ['SAVED_FD_1']), os.read(0, 100))"
    )
    with lab.allowed("t.Deaf", "", lab.frontend, lab.backend):
        call = start_client(lab, "t.Deaf", program)
        lab.frontend.wait_for("test -s /tmp/written")
        written = int(lab.frontend.read("/tmp/written"))
        assert 1 << 18 <= written < 2 << 20
        assert lab.backend.run("echo alive").text == "alive"  # others are not held up
        lab.backend.run("touch /tmp/listen")
        assert call.wait(20).stdout == b"stuck\n%d\n" % written


def test_qubesdb(lab: Lab) -> None:
    run = lab.backend.run
    run("qubesdb-write /t/a 'x  y' /t/b '' /t/sub/c 1 /tt 2")
    assert run("qubesdb-read /t/a /t/b").stdout == b"x  y\n\n"
    assert run("qubesdb-list /t/").text.split() == ["a", "b", "sub/c"]
    assert run("qubesdb-list -f /t/s").text == "/t/sub/c"
    assert lab.qubesdb_list(lab.backend, "/t/") == {"/t/a": b"x  y", "/t/b": b"", "/t/sub/c": b"1"}
    run("qubesdb-rm /t/a /t/sub/")
    assert set(lab.qubesdb_list(lab.backend, "/t")) == {"/t/b", "/tt"}
    for wrong in ("qubesdb-read /t/a", "qubesdb-write /t/a", "qubesdb-read"):
        done = run(wrong, check=False)
        assert done.code != 0
        assert done.stderr
    run("touch /run/lab-qubesdb.off")
    assert run("qubesdb-write /t/a 1", check=False).code != 0
    run("rm /run/lab-qubesdb.off; qubesdb-rm /t/ /tt")


def test_qubesdb_watches(lab: Lab) -> None:
    changes: queue.Queue[str] = queue.Queue()
    lab.watch(lab.backend, changes.put)
    watcher = lab.backend.start_command("qubesdb-watch /w")
    lab.backend.wait_for("pidof inotifywait")
    time.sleep(0.3)
    lab.backend.run("qubesdb-write /other 1 /w ''; qubesdb-rm /other /w")
    assert watcher.wait(10).stdout == b"/w\n"
    assert [changes.get(timeout=5) for _ in range(4)] == ["/other", "/w", "/other", "/w"]


def test_storage(lab: Lab) -> None:
    backend = lab.backend
    for bus, name, version in (("xhci.0", "2-1", b"3"), ("ehci.0", "3-1", b"2")):
        path = backend.plug_storage("disk", 8 << 20, bus=bus)
        backend.wait_for("test -b /dev/sda")
        backend.run("printf written | dd of=/dev/sda conv=fsync,sync status=none")
        assert path.read_bytes()[:7] == b"written"
        key = f"/qubes-usb-devices/{name}"
        backend.wait_for(f"qubesdb-read {key}/interfaces")
        published = lab.qubesdb_list(backend, f"{key}/")
        assert published == {
            f"{key}/desc": b"46f4:0001 QEMU QEMU\\x20USB\\x20HARDDRIVE disk",
            f"{key}/usb-ver": version,
            f"{key}/interfaces": b":080650:",
        }
        backend.unplug("disk")
        backend.wait_for(f"! test -e /sys/bus/usb/devices/{name} && ! qubesdb-read {key}/desc")


def test_keyboard_behind_a_hub(lab: Lab) -> None:
    backend = lab.backend
    backend.plug_hub("hub", port="3")
    backend.wait_for("test -e /sys/bus/usb/devices/1-3")
    backend.plug_keyboard("keyboard", port="3.2")
    backend.wait_for("test -c /dev/input/event0 && qubesdb-read /qubes-usb-devices/1-3_2/desc")
    assert "/qubes-usb-devices/1-3/desc" not in lab.qubesdb_list(backend)
    reader = backend.start_command("dd if=/dev/input/event0 bs=24 count=3 | od -An -v -tu2")
    backend.wait_for("pidof dd")
    backend.send_key("a")
    events = reader.wait(10).text.split()
    assert "30" in events  # KEY_A
    backend.unplug("keyboard")
    backend.unplug("hub")
    backend.wait_for("! test -e /sys/bus/usb/devices/1-3")


def test_audio(lab: Lab, tmp_path: Path) -> None:
    backend, wav = lab.backend, tmp_path / "heard.wav"
    samples = bytes(range(256)) * 750  # one second of 48 kHz stereo
    backend.plug_audio("card", wav)
    backend.wait_for("test -c /dev/snd/pcmC0D0p")
    backend.run("udevadm settle; amixer -q -c 0 sset 'Audio Output Volume Control' 256")
    backend.run("aplay -q -D hw:0 -t raw -f S16_LE -c 2 -r 48000 -", stdin=samples)
    backend.unplug("card")
    assert samples[4096:20480] in wav.read_bytes()


def test_freeze(lab: Lab) -> None:
    lab.backend.freeze()
    command = lab.backend.start_command("echo thawed")
    with pytest.raises(LabError, match="no end"):
        lab.backend.run("true", timeout=2)
    assert not command.finished
    lab.backend.thaw()
    assert command.wait(10).stdout == b"thawed\n"


def test_kill_and_restart(lab: Lab) -> None:
    service(lab.backend, "t.Long", "sleep 1000")
    with lab.allowed("t.Long", "", lab.frontend, lab.backend):
        call = start_client(lab, "t.Long", "import sys, time\nsys.stdin.read()\nsys.exit(4)")
        lab.backend.wait_for("pidof sleep")
        udev_began = lab.backend.run("stat -c %z /run/udev/control").text
        lab.backend.kill()
        assert call.wait(20).code == 255  # it saw the end of file, and ended
        assert lab.frontend.run("qrexec-client-vm sys-usb t.Long", check=False).code == 126
    with pytest.raises(LabError):
        lab.backend.run("true")
    lab.backend.restart()
    assert lab.backend.run("ls /sys/bus/usb/devices/ | grep -c ^usb").text == "3"
    is_restored = lab.backend.run("stat -c %z /run/udev/control").text == udev_began
    assert is_restored or "yes" in [path.read_text() for path in cache_folder().glob("kvm-*")]
    assert lab.backend.run("hostname").text == "sys-usb"
    assert abs(int(lab.backend.run("date +%s").text) - time.time()) < 5
    assert lab.backend.run("ls /etc/qubes-rpc").text == "", "it has the old disk"
