"""A network namespace with nothing but the loopback, so that no client reaches anybody else.

The program is started again inside it. Where the system forbids namespaces it says so
and ends with status 77, which .ci/clients takes for "could not be run here".
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys

INSIDE = "MAINSTAY_CLIENTS_NETNS"
CANNOT = 77


def enter() -> None:
    """Returns inside the namespace, with the loopback up; outside it never returns."""
    if os.environ.get(INSIDE):
        loopback_up()
        return
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = ["unshare", *as_root, "--net", "--"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode != 0:
        print("skipped: this system gives no network namespaces (unshare --net)")
        sys.exit(CANNOT)
    os.environ[INSIDE] = "1"
    os.execvp("unshare", [*unshare, sys.executable, *sys.argv])


def loopback_up() -> None:
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, get_flags, request))[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags | up))
