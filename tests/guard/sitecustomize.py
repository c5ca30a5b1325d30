"""Put on PYTHONPATH, this makes every Python process refuse to leave the machine, and log that it tried.

Python runs a module of this name when it starts, so kernels, workers and their children have it too. Loopback and unix
sockets stay open: Jupyter talks to its kernels through them. `SRMIR_GUARD_LOG` names the file that takes the attempts.
"""

import ipaddress
import os
import socket
import sys


def _stays_here(host: object) -> bool:
    text = host.decode() if isinstance(host, bytes) else host
    if text in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(text.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(what: str, host: object) -> None:
    with open(os.environ["SRMIR_GUARD_LOG"], "a", encoding="utf8") as log:
        log.write(f"{what} {host} by {' '.join(sys.argv)[:200]}\n")
    raise OSError(f"blocked: {what} {host}")


def _watched(name: str, original):
    def method(self, *arguments):
        address = arguments[-1]
        if self.family != getattr(socket, "AF_UNIX", None) and not _stays_here(address[0]):
            _refuse(name, address[0])
        return original(self, *arguments)

    return method


def _resolve(host, *arguments, _original=socket.getaddrinfo, **options):
    if not _stays_here(host):
        _refuse("getaddrinfo", host)
    return _original(host, *arguments, **options)


if os.environ.get("SRMIR_GUARD_LOG"):
    for _name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, _name, _watched(_name, getattr(socket.socket, _name)))
    socket.getaddrinfo = _resolve
