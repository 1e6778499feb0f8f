"""Python code as processes: GenServer, Process, spawn, and what they do to each other."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import erlang
from erlang import Atom, ErlangError, Exit, GenServer, Pid, Process, _backend
from erlang.testing import FakePeer


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    with FakePeer({"echo": lambda value: value}) as peer:
        yield peer


def end_of(peer: FakePeer, pid: Pid) -> Any:
    """The exit reason of a process that is about to end, or noproc."""
    watcher = peer.process()
    watcher.monitor(pid)
    return watcher.receive()[4]


class Stack(GenServer):
    def init(self, *items: Any) -> None:
        self.items = list(items)

    def handle_call(self, request: Any, sender: Any) -> Any:
        if request == "pop":
            return self.items.pop()
        if request == "self":
            return erlang.self(), threading.current_thread() is threading.main_thread()
        raise Exit(("unknown", request))

    def handle_cast(self, request: Any) -> None:
        self.items.append(request)


class AsyncStack(GenServer):
    async def init(self, *items: Any) -> None:
        await asyncio.sleep(0)
        self.items = list(items)

    async def handle_call(self, request: Any, sender: Any) -> Any:
        await asyncio.sleep(0)
        if request == "self":
            return erlang.self(), False
        return self.items.pop()

    async def handle_cast(self, request: Any) -> None:
        await asyncio.sleep(0)
        self.items.append(request)


# --- GenServer: its callbacks ---------------------------------------------------------------------------


@pytest.mark.parametrize("server", [Stack, AsyncStack])
def test_a_server_answers_in_the_order_it_was_asked(
    peer: FakePeer, server: type[GenServer]
) -> None:
    pid = server.start(1)
    for item in range(20):
        erlang.cast(pid, item)
    assert [erlang.gen_call(pid, "pop") for _ in range(21)] == [*range(19, -1, -1), 1]
    assert erlang.gen_call(pid, "self") == (pid, False)


def test_synchronous_callbacks_of_one_server_never_overlap_nor_hold_up_others(
    peer: FakePeer,
) -> None:
    release = threading.Event()

    class Slow(GenServer):
        def handle_call(self, request: Any, sender: Any) -> bool:
            return release.wait(5)

    async def ask() -> list[Any]:
        slow = asyncio.create_task(erlang.async_gen_call(Slow.start(), 1))
        await asyncio.sleep(0)
        quick = await erlang.async_gen_call(Stack.start("x"), "pop")
        assert not slow.done()
        release.set()
        return [quick, await slow]

    assert erlang.run(ask()) == ["x", True]


def test_a_callback_that_raises_ends_the_server_and_tells_the_caller_why(peer: FakePeer) -> None:
    class Failing(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            raise KeyError("k")

    pid = Failing.start()
    watcher = peer.process()
    watcher.monitor(pid)
    with pytest.raises(ErlangError) as caught:
        erlang.gen_call(pid, 1)
    assert caught.value.kind == Atom("exit")
    word, name, message, trace = caught.value.reason
    assert (type(word), word, name, message) == (Atom, "python", "KeyError", "'k'")
    assert "handle_call" in trace
    assert watcher.receive()[4] == caught.value.reason


def test_an_exception_of_a_module_is_told_with_it(peer: FakePeer) -> None:
    class Failing(GenServer):
        async def handle_call(self, request: Any, sender: Any) -> Any:
            raise ErlangError("error", "badarg")

    with pytest.raises(ErlangError) as caught:
        peer.call(Failing.start(), 1)
    assert caught.value.reason[1:3] == ("erlang.exceptions.ErlangError", "error: 'badarg'")


def test_an_exception_without_a_text_ends_the_server_too(peer: FakePeer) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    class Failing(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            raise Mute

    with pytest.raises(ErlangError) as caught:
        peer.call(Failing.start(), 1)
    assert caught.value.reason[2].startswith("<")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), erlang.Cancelled()])
def test_what_is_no_exception_ends_the_server_like_one(
    peer: FakePeer, error: BaseException
) -> None:
    class Failing(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            raise error

    with pytest.raises(ErlangError) as caught:
        peer.call(Failing.start(), 1)
    assert type(error).__name__ in caught.value.reason[2]


def test_a_callback_that_waited_for_something_cancelled_ends_the_server(peer: FakePeer) -> None:
    class Cancelling(GenServer):
        ended: list[Any] = []

        async def handle_call(self, request: Any, sender: Any) -> Any:
            task = asyncio.create_task(asyncio.sleep(60))
            task.cancel()
            await task

        def terminate(self, reason: Any) -> None:
            self.ended.append(reason)

    with pytest.raises(ErlangError) as caught:
        peer.call(Cancelling.start(), 1)
    assert caught.value.reason[1] == "asyncio.exceptions.CancelledError"
    assert Cancelling.ended == [caught.value.reason]


def test_a_reply_that_has_no_term_ends_the_server(peer: FakePeer) -> None:
    class Wrong(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            return [object()]

    with pytest.raises(ErlangError) as caught:
        peer.call(Wrong.start(), 1)
    assert caught.value.reason[2] == "reply[0]: cannot encode 'object' object"


def test_an_exit_reason_that_has_no_term_becomes_its_text(peer: FakePeer) -> None:
    class Wrong(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            raise Exit({1j: 2})

    with pytest.raises(ErlangError) as caught:
        peer.call(Wrong.start(), 1)
    assert caught.value.reason == "{1j: 2}"


@pytest.mark.parametrize("send", [FakePeer.call, FakePeer.cast])
def test_a_request_the_server_does_not_know_ends_it(peer: FakePeer, send: Any) -> None:
    pid = GenServer.start()
    watcher = peer.process()
    watcher.monitor(pid)
    try:
        send(peer, pid, "what")
    except ErlangError:
        pass
    assert watcher.receive()[4][1] == "NotImplementedError"


def test_a_message_the_server_does_not_know_is_ignored(peer: FakePeer) -> None:
    pid = Stack.start("x")
    for message in (1, (), ("$gen_call",), ("$gen_call", 1, 2), ("EXIT", None, 1), {"a": 1}, "m"):
        peer.send(pid, message)
    assert peer.call(pid, "pop") == "x"


def test_a_server_may_answer_later(peer: FakePeer) -> None:
    class Later(GenServer):
        def init(self) -> None:
            self.waiting: list[Any] = []

        def handle_call(self, request: Any, sender: Any) -> Any:
            self.waiting.append((sender, request))
            return erlang.NO_REPLY

        def handle_cast(self, request: Any) -> None:
            for sender, asked in reversed(self.waiting):
                erlang.reply(sender, (request, asked))

    async def ask() -> list[Any]:
        pid = Later.start()
        asked = [asyncio.create_task(erlang.async_gen_call(pid, i)) for i in range(2)]
        await asyncio.sleep(0)
        erlang.cast(pid, "now")
        return await asyncio.gather(*asked)

    assert erlang.run(ask()) == [("now", 0), ("now", 1)]
    assert repr(erlang.NO_REPLY) == "erlang.NO_REPLY"


def test_a_reply_that_comes_too_late_is_dropped(peer: FakePeer) -> None:
    senders: list[Any] = []

    class Late(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            senders.append(sender)
            return erlang.NO_REPLY if request == "keep" else request

    pid = Late.start()

    async def ask() -> Any:
        async with Process() as own:
            with pytest.raises(TimeoutError):
                await erlang.async_gen_call(pid, "keep", timeout=0.01)
            erlang.reply(senders[0], "late")
            assert await erlang.async_gen_call(pid, "next") == "next"
            erlang.reply(senders[0], "twice")
            with pytest.raises(TimeoutError):
                await own.receive(timeout=0)

    erlang.run(ask())


def test_a_tag_that_is_a_plain_reference_is_answered_as_a_message(peer: FakePeer) -> None:
    pid = Stack.start("x")
    asker = peer.process()
    ref = erlang.make_ref()
    peer.send(pid, (Atom("$gen_call"), (asker.pid, ref), "pop"))
    assert asker.receive() == (ref, "x")


def test_only_a_call_is_served_for_its_caller(peer: FakePeer) -> None:
    seen: list[Any] = []

    class Server(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            assert _backend.native.served() == sender[0]
            return seen

        def handle_cast(self, request: Any) -> None:
            seen.append(_backend.native.served())

        async def handle_info(self, message: Any) -> None:
            seen.append(_backend.native.served())

    pid = Server.start()
    peer.call(pid, 1)
    peer.cast(pid, 1)
    peer.send(pid, 1)
    assert peer.call(pid, 1) == [None, None]


def test_a_server_asks_the_peer_from_its_callbacks(peer: FakePeer) -> None:
    class Asking(GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            return erlang.call("echo", request)

    class AsyncAsking(GenServer):
        async def handle_call(self, request: Any, sender: Any) -> Any:
            return await asyncio.gather(*(erlang.async_call("echo", one) for one in request))

    assert peer.call(Asking.start(), [1, 2]) == [1, 2]
    assert peer.call(AsyncAsking.start(), [1, 2]) == [1, 2]


# --- GenServer: its beginning and its end ---------------------------------------------------------------


def test_start_raises_what_init_raises_and_starts_nothing(peer: FakePeer) -> None:
    class Failing(GenServer):
        def init(self) -> None:
            raise KeyError("init")

    class AsyncFailing(GenServer):
        async def init(self) -> None:
            raise KeyError("init")

    for server in (Failing, AsyncFailing):
        with pytest.raises(KeyError, match="init"):
            server.start(name="failing")
    assert erlang.whereis("failing") is None
    assert erlang.stats()["processes"] == 0


def test_a_name_is_taken_once_and_free_again_after_the_end(peer: FakePeer) -> None:
    pid = Stack.start("x", name="stack")
    assert erlang.gen_call("stack", "pop") == "x"
    for start in (Stack.start, lambda name: erlang.spawn(print, name=name)):
        with pytest.raises(ValueError, match="'stack' is taken"):
            start(name="stack")
    peer.exit(pid, "stop")
    assert Stack.start(name="stack") != pid


def test_an_asynchronous_init_needs_start_async_on_the_loop(peer: FakePeer) -> None:
    async def on_loop() -> Any:
        with pytest.raises(RuntimeError, match="await start_async"):
            AsyncStack.start(1)
        one = await AsyncStack.start_async(1)
        two = await Stack.start_async(2)
        three = Stack.start(3)
        return [await erlang.async_gen_call(pid, "pop") for pid in (one, two, three)]

    assert erlang.run(on_loop()) == [1, 2, 3]


def test_terminate_is_called_when_a_server_ends_by_itself(peer: FakePeer) -> None:
    told: list[Any] = []

    class Ending(GenServer):
        def handle_cast(self, request: Any) -> None:
            raise Exit(request)

        def terminate(self, reason: Any) -> None:
            told.append((reason, erlang.self() == self.pid))

    pid = Ending.start()
    watcher = peer.process()
    watcher.monitor(pid)
    peer.cast(pid, ("done", 1))
    assert watcher.receive()[4] == ("done", 1)
    assert told == [(("done", 1), True)]


def test_a_terminate_that_raises_changes_the_reason(peer: FakePeer) -> None:
    class Ending(GenServer):
        def handle_cast(self, request: Any) -> None:
            raise Exit

        async def terminate(self, reason: Any) -> None:
            raise KeyError(reason)

    pid = Ending.start()
    watcher = peer.process()
    watcher.monitor(pid)
    peer.cast(pid, 1)
    assert watcher.receive()[4][1] == "KeyError"


def test_gen_server_stop_ends_a_server_and_is_answered(peer: FakePeer) -> None:
    told: list[Any] = []

    class Stopping(GenServer):
        def terminate(self, reason: Any) -> None:
            told.append(reason)

    pid = Stopping.start()
    asker = peer.process()
    asker.monitor(pid)
    ref = erlang.make_ref()
    peer.send(pid, (Atom("system"), (asker.pid, ref), (Atom("terminate"), Atom("shutdown"))))
    assert asker.receive() == (ref, "ok")
    assert asker.receive()[4] == "shutdown"
    assert told == ["shutdown"]


def test_an_exit_signal_ends_a_server_that_is_busy_and_who_waits_for_it_hears(
    peer: FakePeer,
) -> None:
    busy, terminated = threading.Event(), threading.Event()

    class Busy(GenServer):
        async def handle_call(self, request: Any, sender: Any) -> Any:
            busy.set()
            await asyncio.Event().wait()

        def terminate(self, reason: Any) -> None:
            terminated.set()

    pid = Busy.start()

    async def ask() -> Any:
        question = asyncio.create_task(erlang.async_gen_call(pid, 1, None))
        assert await asyncio.to_thread(busy.wait, 5)
        erlang.exit(pid, ("because", 1))
        await question

    with pytest.raises(ErlangError) as caught:
        asyncio.run(ask())
    assert (caught.value.kind, caught.value.reason) == ("exit", ("because", 1))
    assert not terminated.is_set()


def test_a_normal_exit_signal_from_another_is_ignored(peer: FakePeer) -> None:
    pid = Stack.start("x")
    erlang.exit(pid, Atom("normal"))
    assert peer.call(pid, "pop") == "x"


def test_a_server_that_traps_exits_is_told_of_them_but_not_spared_a_kill(peer: FakePeer) -> None:
    class Trapping(GenServer):
        trap_exit = True

        def init(self) -> None:
            self.seen: list[Any] = []

        def handle_info(self, message: Any) -> None:
            self.seen.append(message)

        def handle_call(self, request: Any, sender: Any) -> Any:
            return self.seen

    pid = Trapping.start()
    other = peer.process()
    other.link(pid)
    other.exit("gone")
    peer.exit(pid, "stop")
    first, second = peer.call(pid, 1)
    assert first == ("EXIT", other.pid, "gone")
    assert (type(second[0]), second[2]) == (Atom, "stop")
    watcher = peer.process()
    watcher.monitor(pid)
    peer.exit(pid, Atom("kill"))
    assert watcher.receive()[4] == "killed"


def test_a_trapping_server_terminates_with_the_parent_that_started_it(peer: FakePeer) -> None:
    told: list[Any] = []

    class Child(GenServer):
        trap_exit = True

        def terminate(self, reason: Any) -> None:
            told.append(reason)

    supervisor = peer.process()
    with peer.serving(supervisor):
        pid = Child.start_link(name="child")
    watcher = peer.process()
    watcher.monitor(pid)
    supervisor.exit("shutdown")
    assert watcher.receive()[4] == "shutdown"
    assert told == ["shutdown"]


def test_start_link_links_to_the_process_it_is_called_in(peer: FakePeer) -> None:
    children: list[Pid] = []

    class Parent(GenServer):
        async def handle_call(self, request: Any, sender: Any) -> Any:
            child = await Stack.start_async(link=True) if request else Stack.start_link()
            children.append(child)
            return child

    for request in (True, False):
        parent = Parent.start()
        child = peer.call(parent, request)
        watcher = peer.process()
        watcher.monitor(child)
        peer.exit(parent, ("down", 1))
        assert watcher.receive()[4] == ("down", 1)


def test_start_link_needs_a_process_that_asks(peer: FakePeer) -> None:
    started: list[Any] = []

    class Child(GenServer):
        def init(self) -> None:
            started.append(self)

    with pytest.raises(RuntimeError, match="needs a process to link to"):
        Child.start_link()
    with pytest.raises(RuntimeError, match="needs a process to link to"):
        erlang.run(Child.start_async(link=True))
    assert started == []


def test_a_server_whose_parent_is_gone_already_ends(peer: FakePeer) -> None:
    supervisor = peer.process()
    supervisor.exit()
    with peer.serving(supervisor):
        pid = Stack.start_link()
    assert end_of(peer, pid) == "noproc"


def test_servers_need_a_node() -> None:
    for need in (Stack.start, lambda: erlang.spawn(print), erlang.self):
        with pytest.raises(RuntimeError, match="not run inside a node"):
            need()


# --- Process --------------------------------------------------------------------------------------------


def test_receive_takes_the_first_that_matches_and_keeps_the_others_in_order(
    peer: FakePeer,
) -> None:
    async def user() -> None:
        async with Process() as own:
            for message in (1, ("a", 1), "x", ("b", 2), ("a", 2), ("a", 2, 3), [("a", 4)], None):
                erlang.send(own.pid, message)
            assert await own.receive(("b", ...)) == ("b", 2)
            assert await own.receive(("a", 2)) == ("a", 2)
            assert await own.receive(lambda message: message == "x") == "x"
            assert await own.receive((..., ..., ...)) == ("a", 2, 3)
            assert [await own.receive() for _ in range(4)] == [1, ("a", 1), [("a", 4)], None]
            with pytest.raises(TimeoutError):
                await own.receive(timeout=0)

    erlang.run(user())


def test_receive_waits_for_what_matches_past_what_does_not(peer: FakePeer) -> None:
    async def user() -> Any:
        async with Process("user") as own:
            waiting = asyncio.create_task(own.receive(("answer", ...), timeout=5))
            for message in (1, 2, ("answer", 3), 4):
                await asyncio.sleep(0)
                erlang.send("user", message)
            return await waiting, [await own.receive() for _ in range(3)]

    assert erlang.run(user()) == (("answer", 3), [1, 2, 4])


def test_receive_gives_up_after_its_timeout_and_loses_nothing(peer: FakePeer) -> None:
    async def user() -> None:
        async with Process() as own:
            erlang.send(own.pid, "other")
            with pytest.raises(TimeoutError):
                await own.receive(lambda message: message == "wanted", timeout=0.01)
            with pytest.raises(TimeoutError):
                await own.receive(("wanted",), timeout=0)
            assert await own.receive(timeout=0) == "other"

    erlang.run(user())


def test_a_predicate_that_raises_leaves_the_message(peer: FakePeer) -> None:
    async def user() -> None:
        async with Process() as own:
            erlang.send(own.pid, "text")
            with pytest.raises(TypeError):
                await own.receive(lambda message: message + 1)
            assert await own.receive() == "text"

    erlang.run(user())


def test_two_coroutines_receive_from_one_process(peer: FakePeer) -> None:
    async def user() -> list[Any]:
        async with Process() as own:
            one = asyncio.create_task(own.receive(lambda message: message in (1, 2)))
            other = asyncio.create_task(own.receive(lambda message: message == "x"))
            for message in ("a", "b", 1):
                erlang.send(own.pid, message)
            assert await one == 1
            erlang.send(own.pid, "x")
            return [await asyncio.wait_for(other, 5), await own.receive(), await own.receive()]

    assert erlang.run(user()) == ["x", "a", "b"]


def test_a_message_is_not_missed_when_another_coroutine_takes_one_before_it(
    peer: FakePeer,
) -> None:
    async def user() -> Any:
        async with Process() as own:
            own._deliver(["a", "b"])
            waiting = asyncio.create_task(own.receive(lambda message: message == "x"))
            await asyncio.sleep(0)
            own._deliver([])
            assert [await own.receive(), await own.receive()] == ["a", "b"]
            own._deliver(["x"])
            return await asyncio.wait_for(waiting, 1)

    assert erlang.run(user()) == "x"


@pytest.mark.parametrize("steps", range(6))
def test_a_cancellation_is_not_lost_when_a_message_comes_with_it(
    peer: FakePeer, steps: int
) -> None:
    async def user() -> bool:
        async def receiver() -> None:
            async with Process() as own:
                mailbox.append(own)
                await own.receive(timeout=60)
                await asyncio.Event().wait()

        mailbox: list[Process] = []
        task = asyncio.create_task(receiver())
        await asyncio.sleep(0)
        mailbox[0]._deliver([1])
        for _ in range(steps):
            await asyncio.sleep(0)
        mailbox[0]._stop("killed")
        await asyncio.wait([task], timeout=1)
        return task.cancelled()

    assert erlang.run(user())


def test_a_process_lives_on_the_nodes_own_loop(peer: FakePeer) -> None:
    async def user() -> None:
        async with Process():
            pass

    with pytest.raises(RuntimeError, match="the node's own loop"):
        asyncio.run(user())


def test_a_process_has_its_pid_between_its_beginning_and_its_end(peer: FakePeer) -> None:
    async def user() -> None:
        process = Process("user")
        with pytest.raises(RuntimeError, match="not been entered"):
            process.pid
        outside = erlang.self()
        async with process:
            assert erlang.self() == process.pid == erlang.whereis("user") != outside
        assert erlang.whereis("user") is None
        assert erlang.self() == outside

    erlang.run(user())


def test_a_process_whose_name_is_taken_does_not_begin(peer: FakePeer) -> None:
    Stack.start(name="stack")

    async def user() -> None:
        with pytest.raises(ValueError, match="taken"):
            async with Process("stack"):
                pass
        with pytest.raises(RuntimeError, match="needs a process"):
            erlang.link(erlang.self())

    erlang.run(user())


def test_the_end_of_a_process_tells_how_its_body_ended(peer: FakePeer) -> None:
    watcher = peer.process()

    async def body(error: Exception | None) -> None:
        async with Process() as own:
            watcher.monitor(own.pid)
            if error is not None:
                raise error

    erlang.run(body(None))
    for error in (KeyError("k"), Exit("bye")):
        with pytest.raises(type(error)):
            erlang.run(body(error))
    reasons = [watcher.receive()[4] for _ in range(3)]
    assert (reasons[0], reasons[1][1], reasons[2]) == ("normal", "KeyError", "bye")


def test_an_exit_signal_cancels_the_task_of_a_process(peer: FakePeer) -> None:
    async def user() -> None:
        async with Process() as own:
            peer.exit(own.pid, "stop")
            await own.receive(timeout=5)

    async def started() -> Any:
        task = asyncio.create_task(user())
        await asyncio.wait([task], timeout=5)
        return task.cancelled()

    assert erlang.run(started())


# --- monitors, links, exits -----------------------------------------------------------------------------


def test_processes_watch_each_other(peer: FakePeer) -> None:
    async def user() -> None:
        async with Process() as own:
            pid = Stack.start(name="stack")
            by_pid, by_name = own.monitor(pid), erlang.monitor("stack")
            unwanted = own.monitor(pid)
            own.demonitor(unwanted)
            peer.exit(pid, "stop")
            downs = [await own.receive(timeout=5) for _ in range(2)]
            assert downs == [
                ("DOWN", by_pid, "process", pid, "stop"),
                ("DOWN", by_name, "process", ("stack", "py@fake"), "stop"),
            ]
            gone = erlang.monitor(pid)
            assert (await own.receive(timeout=5))[1:] == (gone, "process", pid, "noproc")

    erlang.run(user())


def test_demonitor_takes_away_a_down_that_has_arrived_if_it_is_to(peer: FakePeer) -> None:
    async def user() -> list[Any]:
        async with Process() as own:
            refs = [erlang.monitor("nobody") for _ in range(2)]
            for message in (1, {"a": 1}, None, "DOWN", (), ("DOWN", refs[0])):
                erlang.send(own.pid, message)
            erlang.send(own.pid, "last")
            await own.receive(lambda message: message == "last", timeout=5)
            erlang.demonitor(refs[0], flush=True)
            erlang.demonitor(refs[1])
            left = [await own.receive(timeout=0) for _ in range(7)]
            assert left[0][1] == refs[1]
            return left[1:]

    assert erlang.run(user())[:-1] == [1, {"a": 1}, None, "DOWN", ()]


def test_linked_processes_end_together_unless_the_end_is_normal(peer: FakePeer) -> None:
    async def user() -> None:
        async with Process(trap_exit=True) as own:
            one, two, three = (Stack.start() for _ in range(3))
            for pid in (one, two, three):
                own.link(pid)
            own.unlink(two)
            watcher = peer.process()
            for left, right in ((one, two), (two, three)):
                _backend.native.link(left, right)
            peer.exit(one, "crash")
            exits = [await own.receive(timeout=5) for _ in range(2)]
            assert sorted(exits) == sorted([("EXIT", one, "crash"), ("EXIT", three, "crash")])
            watcher.monitor(two)
            assert watcher.receive()[4] == "noproc"
            erlang.link(two)
            assert await own.receive(timeout=5) == ("EXIT", two, "noproc")
            erlang.link(own.pid)

    erlang.run(user())


def test_the_normal_end_of_a_linked_process_is_told_only_to_who_traps(peer: FakePeer) -> None:
    async def user() -> None:
        async with Process() as plain:
            pid = erlang.spawn(lambda: None, link=True)
            ref = plain.monitor(pid)
            await plain.receive(("DOWN", ref, ..., ..., ...), timeout=5)
        async with Process(trap_exit=True) as trapping:
            pid = erlang.spawn(lambda: None, link=True)
            assert await trapping.receive(timeout=5) == ("EXIT", pid, "normal")

    erlang.run(user())


def test_exit_has_both_of_erlangs_forms() -> None:
    with pytest.raises(Exit) as caught:
        erlang.exit("reason")
    assert caught.value.reason == "reason"
    with pytest.raises(Exit) as caught:
        erlang.exit()
    assert caught.value.reason == "normal"


@pytest.mark.parametrize(
    "need",
    [
        lambda pid: erlang.monitor(pid),
        lambda pid: erlang.demonitor(erlang.make_ref()),
        lambda pid: erlang.link(pid),
        lambda pid: erlang.unlink(pid),
        lambda pid: erlang.monitor_nodes(),
        lambda pid: erlang.spawn(print, link=True),
        lambda pid: erlang.run(erlang.receive()),
    ],
)
def test_what_is_done_as_a_process_needs_one(peer: FakePeer, need: Any) -> None:
    with pytest.raises(RuntimeError, match="needs a (process|mailbox)"):
        need(erlang.self())


def test_who_watches_the_nodes_no_longer_is_not_told(peer: FakePeer) -> None:
    async def user() -> Any:
        async with Process() as own:
            erlang.monitor_nodes()
            erlang.monitor_nodes()
            peer.connect()
            peer.disconnect()
            peer.disconnect()
            erlang.monitor_nodes(False)
            peer.connect()
            assert await own.receive(timeout=5) == ("nodedown", "beam@fake")
            with pytest.raises(TimeoutError):
                await own.receive(timeout=0)

    erlang.run(user())


# --- spawn ----------------------------------------------------------------------------------------------


def test_a_spawned_coroutine_has_a_mailbox_and_a_name(peer: FakePeer) -> None:
    asker = peer.process()

    async def echo(prefix: str, *, suffix: str) -> None:
        message = await erlang.receive(("say", ...), timeout=5)
        erlang.send(asker.pid, (erlang.self(), prefix + message[1] + suffix))

    pid = erlang.spawn(echo, "<", suffix=">", name="echo")
    peer.send("echo", "noise")
    peer.send("echo", ("say", "hi"))
    assert asker.receive() == (pid, "<hi>")


def test_a_spawned_function_runs_in_a_thread_of_its_own(peer: FakePeer) -> None:
    asker = peer.process()

    def work() -> None:
        assert erlang.call("echo", 1) == 1
        erlang.send(asker.pid, (erlang.self(), threading.current_thread().name))

    pid = erlang.spawn(work)
    sender, name = asker.receive()
    assert sender == pid
    assert name == f"erlang.spawn {pid}"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("error", [KeyError("k"), Exit(("bye", 1)), None])
def test_the_exit_reason_of_what_was_spawned_is_how_it_ended(
    peer: FakePeer, asynchronous: bool, error: Exception | None
) -> None:
    go = threading.Event()

    def work() -> None:
        go.wait(5)
        if error is not None:
            raise error

    async def coroutine() -> None:
        await asyncio.to_thread(work)

    pid = erlang.spawn(coroutine if asynchronous else work)
    watcher = peer.process()
    watcher.monitor(pid)
    go.set()
    reason = watcher.receive()[4]
    expected = {KeyError: "python", Exit: ("bye", 1), type(None): "normal"}[type(error)]
    assert expected in (reason, reason[0])


def test_an_exit_signal_cancels_a_spawned_coroutine(peer: FakePeer) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    pid = erlang.spawn(work)
    assert begun.wait(5)
    erlang.exit(pid, "stop")
    assert ended.wait(5)
    assert end_of(peer, pid) == "noproc"


def test_what_is_ended_before_it_begins_never_does(peer: FakePeer) -> None:
    ran: list[str] = []

    async def coroutine() -> None:
        ran.append("coroutine")

    async def user() -> None:
        for function in (coroutine, lambda: ran.append("function")):
            erlang.exit(erlang.spawn(function), "stop")
        erlang.exit(Stack.start(), "stop")

    erlang.run(user())
    assert peer.call(Stack.start("x"), "pop") == "x"
    assert ran == []
    assert erlang.stats()["processes"] == 1


def test_a_spawned_process_is_linked_before_it_runs(peer: FakePeer) -> None:
    """Started from a thread, it may have ended before the thread goes on."""

    class Parent(GenServer):
        trap_exit = True

        def init(self) -> None:
            self.exits: list[Any] = []

        def handle_call(self, request: Any, sender: Any) -> Any:
            if request == "exits":
                return self.exits
            erlang.spawn(erlang.exit, ("own", 1), link=True)
            return None

        def handle_info(self, message: Any) -> None:
            self.exits.append(message[2])

    spawn_process = _backend.native.spawn_process
    over = threading.Event()

    def slow(*arguments: Any) -> Pid:
        pid: Pid = spawn_process(*arguments)
        watcher = peer.process()
        watcher.monitor(pid)
        watcher.receive()
        over.set()
        return pid

    pid = Parent.start()
    _backend.native.spawn_process = slow
    peer.call(pid, "spawn")
    assert over.is_set()
    assert peer.call(pid, "exits") == [("own", 1)]


def test_a_function_spawned_by_a_process_does_not_have_its_mailbox(peer: FakePeer) -> None:
    asker = peer.process()

    def work() -> None:
        with pytest.raises(RuntimeError, match="needs a mailbox"):
            asyncio.run(erlang.receive(timeout=0))
        erlang.send(asker.pid, "done")

    async def user() -> None:
        async with Process():
            erlang.spawn(work)

    erlang.run(user())
    assert asker.receive() == "done"


def test_a_crash_is_logged_and_an_exit_is_not(
    peer: FakePeer, caplog: pytest.LogCaptureFixture
) -> None:
    def crash() -> None:
        raise KeyError("k")

    with caplog.at_level(logging.DEBUG, logger="erlang"):
        for function in (crash, erlang.exit):
            watcher = peer.process()
            watcher.monitor(erlang.spawn(function))
            watcher.receive()
        pid = Stack.start()
        watcher.monitor(pid)
        peer.cast(pid, 1)
        with pytest.raises(ErlangError):
            peer.call(pid, "unknown")
    assert [record.getMessage() for record in caplog.records] == ["a spawned process raised"]
