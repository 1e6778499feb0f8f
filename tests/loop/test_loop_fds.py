"""Readiness of descriptors, loops made and closed by the thousand, and processes that fork."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator

import pytest
from support import LoopFactory, Reports, open_fds, run, script, tcp_pair, until


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


# ---------------------------------------------------------------------------------------------------------------------
# Watching


def test_a_reader_is_called_as_long_as_there_is_something_to_read(
    loop_factory: LoopFactory,
) -> None:
    """Level-triggered: what is not read is told again at the next turn."""

    async def main() -> None:
        got: list[bytes] = []
        with pair() as (near, far):
            running().add_reader(near, lambda: got.append(near.recv(1)))
            far.send(b"abc")
            await until(lambda: len(got) == 3)
            assert b"".join(got) == b"abc"
            assert running().remove_reader(near) is True
            assert running().remove_reader(near) is False
            far.send(b"d")
            await asyncio.sleep(0.01)
            assert len(got) == 3

    run(loop_factory, main)


def test_a_writer_is_called_when_there_is_room_again(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        calls: list[int] = []
        with pair() as (near, far):
            with contextlib.suppress(BlockingIOError):
                while True:
                    near.send(b"x" * 65536)
            running().add_writer(near, calls.append, 1)
            await asyncio.sleep(0.02)
            assert calls == []
            with contextlib.suppress(BlockingIOError):
                while True:
                    far.recv(1 << 20)
            await until(lambda: calls)
            assert running().remove_writer(near) is True
            assert running().remove_writer(near) is False

    run(loop_factory, main)


def test_reader_and_writer_of_one_descriptor_do_not_disturb_each_other(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        reads: list[bytes] = []
        writes: list[int] = []
        with pair() as (near, far):
            running().add_reader(near, lambda: reads.append(near.recv(10)))
            running().add_writer(near, writes.append, 1)
            await until(lambda: writes)
            assert running().remove_writer(near)
            far.send(b"still")
            await until(lambda: reads == [b"still"])
            running().add_writer(near, writes.append, 2)
            assert running().remove_reader(near)
            await until(lambda: 2 in writes)
            assert running().remove_writer(near)
            writes.clear()
            far.send(b"nobody")
            await asyncio.sleep(0.01)
            assert writes == [] and reads == [b"still"]

    run(loop_factory, main)


def test_a_second_reader_replaces_the_first(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        calls: list[str] = []
        with pair() as (near, far):
            running().add_reader(near, calls.append, "first")
            running().add_reader(near, lambda: calls.append(near.recv(1).decode()))
            far.send(b"2")
            await until(lambda: calls)
            await asyncio.sleep(0.005)
            assert calls == ["2"]
            running().remove_reader(near)

    run(loop_factory, main)


def test_descriptors_are_taken_as_numbers_or_objects_and_bad_ones_refused(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        calls: list[int] = []
        with pair() as (near, far):
            running().add_reader(near.fileno(), lambda: calls.append(len(near.recv(9))))
            far.send(b"123")
            await until(lambda: calls == [3])
            assert running().remove_reader(near)  # the same one, as an object
            for bad in ("text", None, object()):
                with pytest.raises(ValueError, match="Invalid file object: "):
                    running().add_reader(bad, print)  # type: ignore[arg-type]
            number = near.fileno()
        with pytest.raises(OSError) as caught:
            running().add_reader(number, print)
        assert caught.value.errno == errno.EBADF
        assert running().remove_reader(number) is False
        with pytest.raises(ValueError):
            running().add_reader(-1, print)
        with open(__file__) as file, pytest.raises(PermissionError):
            running().add_reader(file, print)  # epoll has no files
        calls.clear()

    run(loop_factory, main)


def test_a_descriptor_of_a_transport_is_not_to_be_watched_by_others(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with tcp_pair() as (near, _):
            transport, _ = await running().create_connection(asyncio.Protocol, sock=near)
            sock = transport.get_extra_info("socket")
            for watch in (
                lambda: running().add_reader(sock, print),
                lambda: running().add_writer(sock.fileno(), print),
                lambda: running().remove_reader(sock),
                lambda: running().remove_writer(sock),
            ):
                with pytest.raises(RuntimeError, match="File descriptor .* is used by transport "):
                    watch()
            near.setblocking(False)
            for wait in (
                running().sock_recv(near, 1),
                running().sock_recv_into(near, bytearray(1)),
                running().sock_recvfrom(near, 1),
            ):
                with pytest.raises(RuntimeError, match="File descriptor .* is used by transport "):
                    await wait
            transport.abort()
            await asyncio.sleep(0.001)

    run(loop_factory, main)


def test_a_hung_up_pipe_calls_its_reader_and_its_writer(loop_factory: LoopFactory) -> None:
    """epoll tells of a hang-up or an error as an event of its own: both sides must get to see it."""

    async def main() -> None:
        calls: list[str] = []
        near, far = os.pipe()
        os.close(far)
        running().add_reader(near, lambda: (calls.append("end"), running().remove_reader(near)))
        await until(lambda: calls == ["end"])
        os.close(near)
        near, far = os.pipe()
        os.close(near)
        running().add_writer(far, lambda: (calls.append("broken"), running().remove_writer(far)))
        await until(lambda: calls == ["end", "broken"])
        os.close(far)

    run(loop_factory, main)


def test_a_reader_taken_off_by_another_of_the_same_turn_is_not_called(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        calls: list[int] = []
        with pair() as (first, one), pair() as (second, two):

            def callback(here: socket.socket, other: socket.socket) -> None:
                calls.append(1)
                here.recv(10)
                running().remove_reader(here)
                running().remove_reader(other)

            one.send(b"x")
            two.send(b"x")
            running().add_reader(first, callback, first, second)
            running().add_reader(second, callback, second, first)
            await asyncio.sleep(0.02)
            assert calls == [1]

    run(loop_factory, main)


def test_a_reader_that_raises_is_reported_and_stays(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        reports, reads = Reports(running()), []

        def callback() -> None:
            reads.append(near.recv(1))
            raise ValueError("in a reader")

        with pair() as (near, far):
            running().add_reader(near, callback)
            far.send(b"ab")
            await until(lambda: reads == [b"a", b"b"])
            assert reports.errors == ["ValueError('in a reader')"] * 2
            running().remove_reader(near)

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Descriptors closed under the loop


def test_a_watched_descriptor_that_is_closed_and_used_anew_serves_its_new_owner(
    loop_factory: LoopFactory,
) -> None:
    """The kernel forgets a closed descriptor; what is registered for its number then is the new one."""

    async def main() -> None:
        calls: list[str] = []
        old, old_far = socket.socketpair()
        running().add_reader(old, calls.append, "old")
        number = old.fileno()
        old.close()
        with old_far:
            assert running().remove_reader(number) is True
        with pair() as (new, far):
            here = new
            if new.fileno() != number:
                os.dup2(new.fileno(), number)
                here = socket.socket(fileno=number)
            running().add_reader(here, lambda: calls.append(here.recv(9).decode()))
            far.send(b"new")
            await until(lambda: calls == ["new"])
            running().remove_reader(here)
            here.close()

    run(loop_factory, main)


def test_a_number_that_is_reused_without_remove_reader_can_be_watched_again(
    our_factory: LoopFactory,
) -> None:
    """A common mistake: close() before remove_reader(). The standard loop raises FileNotFoundError or watches nothing."""

    async def main() -> None:
        calls: list[bytes] = []
        for turn in range(3):
            near, far = socket.socketpair()
            running().add_reader(near, lambda here=near: calls.append(here.recv(9)))  # type: ignore[misc]
            far.send(b"%d" % turn)
            await until(lambda: len(calls) == turn + 1)
            near.close()
            far.close()
            await asyncio.sleep(0.001)
        assert calls == [b"0", b"1", b"2"]

    run(our_factory, main)


def test_a_transports_descriptor_closed_by_somebody_else_ends_that_transport_only(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        lost = running().create_future()

        class Protocol(asyncio.Protocol):
            def connection_lost(self, error: Exception | None) -> None:
                lost.set_result(error)

        near, far = socket.socketpair()
        transport, _ = await running().create_connection(Protocol, sock=near)
        number = near.fileno()
        os.close(number)
        transport.write(b"into nothing")
        error = await asyncio.wait_for(lost, 5)
        assert isinstance(error, OSError) and error.errno == errno.EBADF
        near.detach()
        far.close()
        assert await asyncio.wait_for(asyncio.to_thread(int, "5"), 5) == 5

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Loops by the thousand


def test_a_thousand_loops_made_and_closed_leave_no_descriptor(loop_factory: LoopFactory) -> None:
    before = open_fds()
    for number in range(1000):
        loop = loop_factory()
        if number % 3 == 0:
            loop.call_soon(loop.stop)
            loop.run_forever()
        if number % 7 == 0:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        # Nothing is collected: close() itself lets go, however long a closed loop is kept.
        assert len(open_fds()) == len(before) or number % 50, open_fds()
    assert open_fds() == before


def test_closing_gives_back_the_descriptors_while_the_loop_is_kept(
    loop_factory: LoopFactory,
) -> None:
    before = open_fds()
    loops = [loop_factory() for _ in range(20)]
    assert len(open_fds()) > len(before)
    for loop in loops:
        loop.close()
    assert open_fds() == before


def test_a_loop_that_cannot_have_descriptors_says_so_and_leaves_none(our_loop: str) -> None:
    ended = script(
        """
        import resource
        before = open_fds()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for room in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            held = []
            while True:
                try:
                    held.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    break
            for fd in held[:room]:
                os.close(fd)
            try:
                new_loop().close()
                print("made")
            except OSError as error:
                print(error.errno)
            import gc
            gc.collect()
            for fd in held[room:]:
                os.close(fd)
            assert open_fds() == before, open_fds()
        """,
        our_loop,
    )
    assert re.fullmatch("(24\n){2,6}(made\n){2,6}", ended.stdout) and ended.stderr == "", ended


def test_descriptors_of_a_loop_are_not_inherited_by_programs(loop_factory: LoopFactory) -> None:
    before = open_fds()
    loop = loop_factory()
    fds = open_fds().keys() - before.keys()
    assert fds and not any(os.get_inheritable(fd) for fd in fds)
    loop.close()


# ---------------------------------------------------------------------------------------------------------------------
# fork

FORK = """
    async def child():
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"from the child")
        assert await reader.readexactly(14) == b"from the child"
        writer.close()

    async def main():
        global address
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        await loop.run_in_executor(None, os.getpid)
        pid = os.fork()
        if pid == 0:
            {child}
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            await asyncio.sleep(0.01)
        for number in range(20):
            writer.write(b"%02d" % number)
            assert await asyncio.wait_for(reader.readexactly(2), 5) == b"%02d" % number
        assert await loop.run_in_executor(None, int, "7") == 7
        writer.close()
        server.close()
        print("parent unharmed", flush=True)

    run(new_loop, main)
"""


def fork(loop: str, action: str) -> None:
    lines = f"""try:
                assert asyncio._get_running_loop() is None
                {action}
                run(new_loop, child)
                print("child served", flush=True)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)"""
    ended = script(FORK.replace("{child}", lines), loop, PYTHONWARNINGS="ignore")
    assert (ended.stdout, ended.stderr) == ("child served\nparent unharmed\n", "")


def test_a_forked_child_has_a_loop_of_its_own_and_the_parents_is_unharmed(loop_name: str) -> None:
    fork(loop_name, "pass")


@pytest.mark.parametrize(
    "action",
    [
        "del loop, server, reader, writer; import gc; gc.collect()",
        "loop._thread_id = None; loop.close()",
    ],
    ids=["forgets", "closes"],
)
def test_a_forked_child_may_do_what_it_likes_with_the_loop_it_was_born_with(
    our_loop: str, action: str
) -> None:
    """It shares the parent's poll set: the standard loop's close takes the parent's own wake-up off it."""
    fork(our_loop, action)


def test_multiprocessing_with_fork_works_from_a_running_loop(loop_name: str) -> None:
    ended = script(
        """
        import multiprocessing

        async def double(number):
            await asyncio.sleep(0.001)
            return number * 2

        def work(number):
            return run(new_loop, lambda: double(number))

        async def main():
            loop = asyncio.get_running_loop()
            def pool():
                with multiprocessing.get_context("fork").Pool(2) as workers:
                    return workers.map(work, range(6))
            assert await loop.run_in_executor(None, pool) == [0, 2, 4, 6, 8, 10]
            print("fine")

        run(new_loop, main)
        """,
        loop_name,
    )
    assert ended.stdout == "fine\n", ended.stderr
