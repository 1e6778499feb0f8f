"""What loop_SUITE does to the descriptors of the node, and sees of its loops."""

from __future__ import annotations

import os
import resource
import tempfile
import threading

from erlang import _event_loop


def left() -> tuple[int, int, int]:
    """Loops, those that can be asked, and their threads."""
    threads = sum(one.name.startswith("py_event_loop ") for one in threading.enumerate())
    return len(_event_loop._alive), len(_event_loop._loops), threads


def kind() -> str:
    """The class of the loops."""
    loop = _event_loop._new_event_loop()
    loop.close()
    return type(loop).__name__


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def regular_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def duplicates(fd: int, count: int) -> list[int]:
    return [os.dup(fd) for _ in range(count)]


def replace(fd: int, by: int) -> None:
    """Another open file under the same number, without anybody being told."""
    os.close(fd)
    os.dup2(by, fd)


def write(fd: int, data: str) -> int:
    return os.write(fd, data.encode())


def read(fd: int, size: int) -> bytes:
    return os.read(fd, size)


def limit_descriptors(soft: int | None = None) -> int:
    """Sets how many there may be, by default what makes the next one fail, and returns how many there might."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft is None:
        soft = os.open("/dev/null", os.O_RDONLY)
        os.close(soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return before


def close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
