"""The guard that the smoke series runs under: it stops what would leave the machine, in child processes too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

GUARD = Path(__file__).parent / "guard"
RAISE_LOOPBACK = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1)); "  # SIOCSIFFLAGS, IFF_UP
    "os.execv(sys.argv[1], sys.argv[1:])"
)
TRY_TO_LEAVE = """
import socket
for host in ("192.0.2.1", "2001:db8::1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as s:
            s.settimeout(2)
            try:
                s.connect((host, 80))
            except OSError as error:
                print(error)
"""
TALK_TO_ITSELF = """
import socket
server = socket.create_server(("localhost", 0))
with socket.create_connection(server.getsockname()) as client:
    a, b = socket.socketpair()
    a.sendall(b"1")
    print("heard", b.recv(1))
"""


def offline_environment(folder: Path) -> dict[str, str]:
    """Variables for a process that may not leave this machine, whose attempts land in `folder/attempts.txt`.

    Its home and its caches are empty folders, so that nothing comes from an earlier download either.
    """
    names = ("HF_TOKEN", "SRMIR_DATA", "JUPYTER_PATH", "JUPYTER_DATA_DIR")
    kept = {key: value for key, value in os.environ.items() if key not in names}
    own = {
        "PYTHONPATH": str(GUARD),
        "SRMIR_GUARD_LOG": str(folder / "attempts.txt"),
        "HOME": str(folder / "home"),
        "HF_HOME": str(folder / "home" / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    (folder / "home").mkdir(exist_ok=True)
    return kept | own


def without_network() -> list[str]:
    """A command prefix for a network namespace that holds nothing but loopback; empty where the kernel forbids it.

    It stops what a Python patch cannot see, such as a compiled library with sockets of its own.
    """
    prefix = [shutil.which("unshare") or "", "-rn", sys.executable, "-c", RAISE_LOOPBACK]
    try:
        works = subprocess.run([*prefix, sys.executable, "-c", TALK_TO_ITSELF], capture_output=True).returncode == 0
    except OSError:
        return []
    return prefix if works else []


def attempts(folder: Path) -> list[str]:
    """What was tried and refused, one line each."""
    log = folder / "attempts.txt"
    return log.read_text().splitlines() if log.exists() else []


def run_python(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=offline_environment(folder), capture_output=True, text=True, check=True)
    return done.stdout


def test_guard_blocks_and_logs_every_way_out(tmp_path):
    assert run_python(TRY_TO_LEAVE, tmp_path).count("blocked: connect") == 4
    assert len(attempts(tmp_path)) == 4
    run_python("import urllib.request as u\ntry:\n    u.urlopen('http://example.org')\nexcept OSError: pass", tmp_path)
    assert attempts(tmp_path)[-1].startswith("getaddrinfo example.org by ")


def test_guard_reaches_children_and_lets_loopback_through(tmp_path):
    assert run_python(TALK_TO_ITSELF, tmp_path) == "heard b'1'\n" and attempts(tmp_path) == []
    child = (
        f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {TRY_TO_LEAVE!r}], text=True))"
    )
    assert "blocked: connect 192.0.2.1" in run_python(child, tmp_path)


def test_namespace_has_loopback_only(tmp_path):
    prefix = without_network()
    if prefix:  # not every kernel lets a user make one; the guard above works everywhere
        done = subprocess.run([*prefix, sys.executable, "-c", TRY_TO_LEAVE], capture_output=True, text=True, check=True)
        assert done.stdout.count("unreachable") == 4


def test_plain_socket_calls_are_watched_with_their_flags(tmp_path):
    send = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    send += "try:\n    s.sendto(b'x', 0, ('192.0.2.1', 9))\nexcept OSError as e:\n    print(e)"
    assert run_python(send, tmp_path) == "blocked: sendto 192.0.2.1\n"
