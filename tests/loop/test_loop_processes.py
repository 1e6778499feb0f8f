"""Programs that the loop starts, and pipes."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import pytest
from support import LoopFactory, Recorder, Reports, run, script, until


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# ---------------------------------------------------------------------------------------------------------------------
# Programs


def test_a_program_gets_input_and_its_output_errors_and_code_come_back(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", "cat; echo problem >&2; exit 7"), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert process.returncode is None and process.pid > 0
        out, err = await process.communicate(b"given")
        assert (out, err, process.returncode) == (b"given", b"problem\n", 7)
        assert await process.wait() == 7

    run(loop_factory, main)


def test_a_shell_line_runs_and_its_streams_can_be_joined_or_dropped(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell(
            "echo one; echo two >&2; echo $THREE",
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env={"THREE": "three"},
        )
        assert (await process.communicate())[0] == b"one\ntwo\nthree\n"
        process = await asyncio.create_subprocess_shell("pwd", stdout=PIPE, cwd="/")
        assert (await process.communicate())[0] == b"/\n"
        process = await asyncio.create_subprocess_shell("exit 300", stdout=DEVNULL)
        assert await process.wait() == 300 % 256

    run(loop_factory, main)


def test_megabytes_go_through_a_program_both_ways(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        payload = os.urandom(3_000_000)
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        out, _ = await asyncio.wait_for(process.communicate(payload), 20)
        assert out == payload and process.returncode == 0

    run(loop_factory, main)


def test_lines_can_be_exchanged_with_a_program_that_lives(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", "while read line; do echo got $line; done"), stdin=PIPE, stdout=PIPE
        )
        assert process.stdin and process.stdout
        for number in range(20):
            process.stdin.write(b"%d\n" % number)
            assert await process.stdout.readline() == b"got %d\n" % number
        process.stdin.close()
        assert await process.stdout.read() == b""
        assert await asyncio.wait_for(process.wait(), 5) == 0

    run(loop_factory, main)


@pytest.mark.parametrize("how", ["kill", "terminate", "send_signal"])
def test_a_program_can_be_ended_and_says_by_which_signal(
    loop_factory: LoopFactory, how: str
) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        waiting = [asyncio.ensure_future(process.wait()) for _ in range(3)]
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}.get(how, signal.SIGHUP)
        getattr(process, how)(*([number] if how == "send_signal" else []))
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [-number] * 3
        with pytest.raises(ProcessLookupError):
            getattr(process, how)(*([number] if how == "send_signal" else []))

    run(loop_factory, main)


def test_a_program_that_does_not_exist_is_an_error_of_the_call(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/no/such/program", stdin=PIPE, stdout=PIPE)
        with pytest.raises(PermissionError):
            await asyncio.create_subprocess_exec("/etc/passwd", stdout=PIPE)
        with pytest.raises(ValueError, match="shell must be False"):
            await running().subprocess_exec(asyncio.SubprocessProtocol, "ls", shell=True)
        with pytest.raises(ValueError, match="universal_newlines must be False"):
            await asyncio.create_subprocess_exec("ls", universal_newlines=True)

    run(loop_factory, main)


def test_input_that_nobody_reads_is_an_error_that_communicate_ignores(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("true", stdin=PIPE)
        assert process.stdin
        await process.communicate(b"x" * 1_000_000)
        assert process.returncode == 0
        process = await asyncio.create_subprocess_exec("true", stdin=PIPE)
        assert process.stdin
        await process.wait()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                process.stdin.write(b"x" * 100_000)
                await process.stdin.drain()
        process.stdin.close()
        await asyncio.sleep(0.001)

    run(loop_factory, main)


def test_many_programs_at_once_each_give_their_own_code(loop_factory: LoopFactory) -> None:
    async def one(number: int) -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f"echo {number}; exit {number}"), stdout=PIPE
        )
        out, _ = await process.communicate()
        return process.returncode, out

    async def main() -> None:
        results = await asyncio.gather(*(one(number) for number in range(20)))
        assert results == [(number, b"%d\n" % number) for number in range(20)]

    run(loop_factory, main)


def test_descriptors_can_be_passed_to_a_program(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = os.pipe()
        process = await asyncio.create_subprocess_exec(
            "cat", f"/dev/fd/{near}", pass_fds=[near], stdout=PIPE
        )
        os.close(near)
        os.write(far, b"through")
        os.close(far)
        assert await process.communicate() == (b"through", None)

    run(loop_factory, main)


def test_a_protocol_is_told_of_output_ends_and_exit_in_order(loop_factory: LoopFactory) -> None:
    class Tells(asyncio.SubprocessProtocol):
        def __init__(self) -> None:
            self.events: list[Any] = []
            self.over = running().create_future()

        def connection_made(self, transport: Any) -> None:
            self.events.append("made")

        def pipe_data_received(self, fd: int, data: bytes) -> None:
            self.events.append((fd, data))

        def pipe_connection_lost(self, fd: int, error: Exception | None) -> None:
            self.events.append((fd, "closed"))

        def process_exited(self) -> None:
            self.events.append("exited")

        def connection_lost(self, error: Exception | None) -> None:
            self.events.append("lost")
            self.over.set_result(None)

    async def main() -> None:
        transport, protocol = await running().subprocess_exec(
            Tells, "sh", "-c", "read x; echo out $x; echo err >&2; exit 3"
        )
        pipe = transport.get_pipe_transport(0)
        assert pipe and transport.get_pipe_transport(9) is None
        pipe.write(b"in\n")  # type: ignore[attr-defined]
        await asyncio.wait_for(protocol.over, 5)
        events = protocol.events
        assert events[0] == "made" and events[-1] == "lost" and "exited" in events
        assert (1, b"out in\n") in events and (2, b"err\n") in events
        assert {(0, "closed"), (1, "closed"), (2, "closed")} < set(events)
        assert transport.get_returncode() == 3
        transport.close()

    run(loop_factory, main)


def test_closing_a_transport_kills_its_program(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        transport, _ = await running().subprocess_exec(
            asyncio.SubprocessProtocol, "sleep", "60", stdin=None, stdout=None, stderr=None
        )
        pid = transport.get_pid()
        transport.close()

        def gone() -> bool:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            return False

        await until(gone)

    run(loop_factory, main)


def test_a_cancelled_communicate_leaves_a_program_that_can_be_killed(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60", stdout=PIPE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.communicate(), 0.02)
        process.kill()
        out, _ = await process.communicate()
        assert out == b"" and process.returncode == -signal.SIGKILL

    run(loop_factory, main)


def test_a_program_started_from_another_thread_than_the_main_one_is_waited_for(
    loop_factory: LoopFactory,
) -> None:
    results: list[Any] = []

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", "echo x; exit 5", stdout=PIPE)
        out, _ = await process.communicate()
        results.append((out, process.returncode))

    thread = threading.Thread(target=run, args=(loop_factory, main))
    thread.start()
    thread.join()
    assert results == [(b"x\n", 5)]


def test_a_loop_closed_over_a_program_leaves_the_next_loop_in_order(loop_name: str) -> None:
    ended = script(
        """
        async def begin():
            global process
            process = await asyncio.create_subprocess_exec("sleep", "60", stdout=-1)
            return process.pid
        loop = new_loop()
        pid = loop.run_until_complete(begin())
        process._transport.close()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()
        async def again():
            return await (await asyncio.create_subprocess_exec("true")).wait()
        print(run(new_loop, again))
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("gone")
        """,
        loop_name,
    )
    assert (ended.stdout, ended.stderr) == ("0\ngone\n", "")


if sys.version_info < (3, 12):

    @pytest.mark.parametrize("name", ["PidfdChildWatcher", "SafeChildWatcher", "FastChildWatcher"])
    def test_every_child_watcher_of_asyncio_works(loop_name: str, name: str) -> None:
        ended = script(
            f"""
            loop = new_loop()
            watcher = asyncio.{name}()
            watcher.attach_loop(loop)
            asyncio.get_event_loop_policy().set_child_watcher(watcher)
            async def main():
                processes = [
                    await asyncio.create_subprocess_exec("sh", "-c", f"exit {{number}}")
                    for number in range(4)
                ]
                return await asyncio.gather(*(process.wait() for process in processes))
            print(loop.run_until_complete(asyncio.wait_for(main(), 10)))
            watcher.close()
            loop.close()
            """,
            loop_name,
        )
        assert (ended.stdout, ended.stderr) == ("[0, 1, 2, 3]\n", "")


# ---------------------------------------------------------------------------------------------------------------------
# Pipes


async def pipe_ends() -> tuple[Any, Recorder, Any, Any]:
    """A pipe of the kernel's with a transport at each end."""
    near, far = os.pipe()
    read_transport, reader = await running().connect_read_pipe(Recorder, open(near, "rb", 0))
    write_transport, writer = await running().connect_write_pipe(Recorder, open(far, "wb", 0))
    return read_transport, reader, write_transport, writer


def test_what_is_written_into_a_pipe_comes_out_and_its_end_ends(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        read_transport, reader, write_transport, writer = await pipe_ends()
        payload = os.urandom(2_000_000)
        write_transport.write(payload)
        assert writer.events == ["made", "pause"]
        write_transport.write(b"more")
        write_transport.write_eof()
        await asyncio.wait_for(reader.lost, 10)
        assert reader.received == payload + b"more"
        assert reader.events[-2:] == ["eof", "lost"] and reader.error is None
        await asyncio.wait_for(writer.lost, 5)
        assert writer.events == ["made", "pause", "resume", "lost"]
        assert isinstance(read_transport, asyncio.ReadTransport)
        assert isinstance(write_transport, asyncio.WriteTransport)

    run(loop_factory, main)


def test_a_writer_notices_that_its_reader_went(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = os.pipe()
        transport, protocol = await running().connect_write_pipe(Recorder, open(far, "wb", 0))
        await asyncio.sleep(0.005)
        assert protocol.events == ["made"]
        os.close(near)
        await asyncio.wait_for(protocol.lost, 5)
        assert protocol.events == ["made", "lost"]

    run(loop_factory, main)


def test_a_writer_with_full_buffers_whose_reader_goes_is_told_broken_pipe(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        near, far = os.pipe()
        transport, protocol = await running().connect_write_pipe(Recorder, open(far, "wb", 0))
        transport.write(b"x" * 500_000)
        assert transport.get_write_buffer_size() > 0
        os.close(near)
        await asyncio.wait_for(protocol.lost, 5)
        assert isinstance(protocol.error, (BrokenPipeError, type(None)))
        for _ in range(10):
            transport.write(b"late")

    run(loop_factory, main)


def test_a_reader_that_pauses_gets_the_rest_when_it_goes_on(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        read_transport, reader, write_transport, writer = await pipe_ends()
        read_transport.pause_reading()
        write_transport.write(b"kept")
        await asyncio.sleep(0.01)
        assert reader.received == b""
        read_transport.resume_reading()
        await until(lambda: reader.received == b"kept")
        write_transport.abort()
        read_transport.close()
        await writer.lost
        await reader.lost

    run(loop_factory, main)


def test_a_socket_and_a_terminal_are_pipes_too_and_a_file_is_not(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            transport, protocol = await running().connect_read_pipe(Recorder, near)
            far.send(b"from a socket")
            await until(lambda: protocol.received == b"from a socket")
            transport.close()
            await protocol.lost
        master, slave = pty.openpty()
        transport, protocol = await running().connect_read_pipe(Recorder, open(slave, "rb", 0))
        os.write(master, b"typed\n")
        await until(lambda: protocol.received == b"typed\n")
        transport.close()
        await protocol.lost
        os.close(master)
        with open(__file__, "rb") as file:
            with pytest.raises(ValueError, match="Pipe transport is .*for pipes.sockets"):
                await running().connect_read_pipe(Recorder, file)

    run(loop_factory, main)


def test_a_pipe_protocol_that_raises_is_reported(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        reports = Reports(running())

        class Faulty(Recorder):
            def data_received(self, data: bytes) -> None:
                raise ValueError("in a pipe")

        near, far = os.pipe()
        transport, protocol = await running().connect_read_pipe(Faulty, open(near, "rb", 0))
        os.write(far, b"x")
        await until(lambda: reports.messages)
        assert reports.errors == ["ValueError('in a pipe')"]
        transport.close()
        await protocol.lost
        os.close(far)

    run(loop_factory, main)


def test_streams_can_be_laid_over_standard_pipes(loop_name: str) -> None:
    ended = script(
        """
        async def main():
            loop = asyncio.get_running_loop()
            near, far = os.pipe()
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(near, "rb"))
            transport, protocol = await loop.connect_write_pipe(
                asyncio.streams.FlowControlMixin, os.fdopen(far, "wb"))
            writer = asyncio.StreamWriter(transport, protocol, None, loop)
            for number in range(1000):
                writer.write(b"line %d\\n" % number)
                await writer.drain()
                assert await reader.readline() == b"line %d\\n" % number
            writer.close()
            assert await reader.read() == b""
            print("fine")
        run(new_loop, main)
        """,
        loop_name,
    )
    assert (ended.stdout, ended.stderr) == ("fine\n", "")
