"""Unix sockets: bound so that nobody meets one half made, and taken away at the end."""

from __future__ import annotations

import errno
import os
import socket
import stat

#: Connections that the kernel keeps until they are let in.
BACKLOG = 1024


def bind(path: str, mode: int) -> socket.socket:
    """A socket that listens at `path`, with the permissions `mode`.

    It is made under another name and moved into its place, so it listens and has its permissions from the first moment
    on. One that a dead gate left behind is replaced. OSError where somebody listens there, or where what is there is
    no socket: it is left alone.
    """
    making = f"{path}.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            os.unlink(making)  # of a gate that had our number and died in the middle
        except FileNotFoundError:
            pass
        sock.bind(making)
        os.chmod(making, mode)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        _look(path)
        os.rename(making, path)
    except OSError as error:
        sock.close()
        if os.path.lexists(making):
            os.unlink(making)
        why = error.strerror or str(error)
        raise OSError(
            error.errno, f"error while attempting to bind on unix:{path}: {why[:1].lower()}{why[1:]}"
        ) from None
    return sock


def _look(path: str) -> None:
    """Whether `path` may be taken."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise OSError(errno.EEXIST, "what is there is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # nobody holds it any more
        except TimeoutError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def remove(path: str, inode: int) -> None:
    """Take the socket away, unless another has taken its place. `inode` is of the one that was bound."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except OSError:
        pass  # it is gone, or its folder is


def inode(path: str) -> int:
    return os.lstat(path).st_ino
