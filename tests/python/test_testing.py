"""erlang.testing: the peer that tests of users' code talk to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import erlang
from erlang import Atom, ErlangError, NoConnection, Pid, UnknownFunction
from erlang.testing import FakePeer, FakeProcess


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    with FakePeer({"add": lambda a, b: a + b, "echo": lambda value: value}) as peer:
        yield peer


class Echo(erlang.GenServer):
    def handle_call(self, request: Any, sender: Any) -> Any:
        if request == "die":
            raise erlang.Exit(("done", 1))
        return request


# --- from its beginning to its end ----------------------------------------------------------------------


def test_leaving_leaves_no_thread_and_no_node_behind() -> None:
    before = set(threading.enumerate())
    with FakePeer({"add": lambda a, b: a + b}) as peer:
        peer.process("p", lambda request: request)
        Echo.start(name="echo")
        assert erlang.gen_call(("p", peer.name), 1) == 1
        assert erlang.call("add", 1, 2) == 3
    assert set(threading.enumerate()) == before
    assert erlang.node() is None
    with pytest.raises(RuntimeError, match="not run inside a node"):
        erlang.call("add", 1, 2)


def test_it_is_entered_asynchronously_too() -> None:
    async def user() -> Any:
        async with FakePeer({"add": lambda a, b: a + b}):
            return await erlang.async_call("add", 1, 2)

    assert asyncio.run(user()) == 3
    assert erlang.node() is None


def test_a_test_that_fails_inside_still_leaves_it() -> None:
    with pytest.raises(ZeroDivisionError):
        with FakePeer():
            raise ZeroDivisionError
    assert erlang.node() is None


def test_there_is_one_at_a_time(peer: FakePeer) -> None:
    with pytest.raises(RuntimeError, match="there is a FakePeer already"):
        FakePeer().__enter__()
    assert erlang.call("add", 1, 2) == 3


def test_it_is_entered_once() -> None:
    peer = FakePeer()
    with peer:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        peer.__enter__()


def test_what_needs_a_node_says_that_it_has_not_been_entered() -> None:
    with pytest.raises(RuntimeError, match="not been entered"):
        FakePeer().process("p")


def test_the_two_nodes_have_different_names() -> None:
    with pytest.raises(ValueError, match="same name"):
        FakePeer(name="a@b", node="a@b")


def test_a_function_that_does_not_return_is_told_by_name() -> None:
    release = threading.Event()
    peer = FakePeer({"stuck": release.wait})
    peer.patience = 0.05
    with pytest.raises(RuntimeError, match="still running .*job of py@fake"):
        with peer:
            with pytest.raises(TimeoutError):
                erlang.call("stuck", timeout=0.01)
    release.set()
    assert erlang.node() is None


def test_who_waits_when_it_is_left_hears_that_nobody_is_there() -> None:
    asked = threading.Event()

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        with FakePeer({"never": never}):
            waiting = pool.submit(erlang.call, "never")
            assert asked.wait(5)
        with pytest.raises(NoConnection):
            waiting.result(5)


def test_the_nodes_have_the_names_they_were_given() -> None:
    with FakePeer(name="shop@beam", node="py1@host") as peer:
        assert erlang.node() == "py1@host"
        assert erlang.nodes() == ["shop@beam"] == [peer.name]
        assert type(erlang.nodes()[0]) is Atom
        assert erlang.self().node == "py1@host"
        assert peer.process().pid.node == "shop@beam"


# --- terms ----------------------------------------------------------------------------------------------


def test_terms_change_on_their_way_as_between_nodes(peer: FakePeer) -> None:
    given: list[Any] = []
    peer.register("keep", given.append)
    value = {"list": [1, (2, Atom("x"))], "set": {1}, "bytes": b"\xff", "none": Atom("undefined")}
    assert erlang.call("echo", value) == value | {"none": None, "set": [1]}
    assert erlang.call("keep", (1, "a", b"a")) is None
    assert given == [(1, "a", "a")]
    assert erlang.call("echo", Atom("ok")).__class__ is Atom
    assert peer.calls[-2:] == [("keep", ((1, "a", "a"),)), ("echo", ("ok",))]


def test_what_arrives_is_another_object(peer: FakePeer) -> None:
    value = [1]
    assert erlang.call("echo", value) == value
    assert erlang.call("echo", value) is not value


@pytest.mark.parametrize(
    ("ask", "path"),
    [
        (lambda: erlang.call("echo", [object()]), r"arguments\[0\]\[0\]: "),
        (lambda: erlang.call("echo", 1, object()), r"arguments\[1\]: "),
        (lambda: erlang.gen_call(("p", "beam@fake"), {"a": object()}), "request"),
        (lambda: erlang.erpc("beam@fake", "m", "f", [object()]), r"arguments\[0\]: "),
        (lambda: erlang.send(("p", "beam@fake"), (1, object())), r"message\[1\]: "),
        (lambda: erlang.call("wrong"), "result: "),
    ],
)
def test_what_has_no_term_is_refused_with_its_path(peer: FakePeer, ask: Any, path: str) -> None:
    peer.register("wrong", object)
    peer.process("p")
    with pytest.raises(TypeError, match=f"^{path}.*cannot encode 'object' object"):
        ask()


def test_what_is_too_deep_is_a_value_error(peer: FakePeer) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"^arguments\[0\]"):
        erlang.call("echo", deep)


# --- functions ------------------------------------------------------------------------------------------


def test_functions_come_and_go(peer: FakePeer) -> None:
    peer.register("twice", lambda value: 2 * value)
    assert erlang.call("twice", 2) == 4
    peer.register("twice", lambda value: (value, value))
    assert erlang.call("twice", 2) == (2, 2)
    peer.unregister("twice")
    peer.unregister("twice")
    with pytest.raises(UnknownFunction) as caught:
        erlang.call("twice", 2)
    assert (caught.value.kind, caught.value.reason) == (Atom("error"), Atom("undef"))


def test_a_function_fails_with_the_class_and_reason_it_raises(peer: FakePeer) -> None:
    def fail() -> None:
        raise ErlangError("throw", ("no", [1]), [("m", "f", 1, [])])

    peer.register("fail", fail)
    with pytest.raises(ErlangError) as caught:
        erlang.call("fail")
    assert type(caught.value) is ErlangError
    assert type(caught.value.kind) is Atom
    assert str(caught.value) == "throw: ('no', [1]) in m:f/1"


@pytest.mark.parametrize("error", [NoConnection(), UnknownFunction("error", "undef")])
def test_a_function_may_fail_as_the_way_to_it_would(peer: FakePeer, error: ErlangError) -> None:
    def fail() -> None:
        raise error

    peer.register("fail", fail)
    with pytest.raises(type(error)):
        erlang.call("fail")


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(1), ErlangError("exit", object())])
def test_any_other_exception_is_an_error_that_tells_type_and_message(
    peer: FakePeer, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    peer.register("fail", fail)
    with pytest.raises(ErlangError) as caught:
        erlang.call("fail")
    assert caught.value.kind == "error"
    word, name, message, trace = caught.value.reason
    expected = "TypeError" if isinstance(error, ErlangError) else type(error).__name__
    assert (word, name) == ("python", expected)
    assert message in trace


def test_a_function_called_with_other_arguments_fails_at_the_caller(peer: FakePeer) -> None:
    with pytest.raises(ErlangError) as caught:
        erlang.call("add", 1)
    assert caught.value.reason[1] == "TypeError"


def test_coroutine_functions_serve_threads_and_coroutines(peer: FakePeer) -> None:
    async def slowly(value: int) -> int:
        await asyncio.sleep(0)
        return value

    peer.register("slowly", slowly)
    assert erlang.call("slowly", 1) == 1
    assert asyncio.run(erlang.async_call("slowly", 2)) == 2


def test_a_coroutine_function_is_stopped_when_nobody_waits(peer: FakePeer) -> None:
    stopped = threading.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    peer.register("slow", slow)
    with pytest.raises(TimeoutError):
        erlang.call("slow", timeout=0.05)
    assert stopped.wait(5)


def test_erpc_reaches_functions_of_modules(peer: FakePeer) -> None:
    peer.module("lists", sum=sum, reverse=lambda values: values[::-1])
    assert erlang.erpc(peer.name, "lists", "sum", [[1, 2, 3]]) == 6
    assert asyncio.run(erlang.async_erpc("beam@fake", "lists", "reverse", ([1, 2],))) == [2, 1]
    assert peer.calls == [("lists:sum", ([1, 2, 3],)), ("lists:reverse", ([1, 2],))]
    with pytest.raises(ErlangError) as caught:
        erlang.erpc(peer.name, "lists", "nope")
    assert (type(caught.value), caught.value.reason) == (ErlangError, "undef")


def test_many_threads_each_get_their_own_answers(peer: FakePeer) -> None:
    def user(number: int) -> list[int]:
        return [erlang.call("add", number, i) for i in range(50)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(user, range(8)))
    assert answers == [[number + i for i in range(50)] for number in range(8)]
    assert len(peer.calls) == 400


# --- the connection -------------------------------------------------------------------------------------


def test_without_a_connection_everything_fails_at_once_until_it_is_back(peer: FakePeer) -> None:
    process = peer.process("p", lambda request: request)
    pid = Echo.start()
    peer.disconnect()
    peer.disconnect()
    assert erlang.nodes() == []
    for ask in (
        lambda: erlang.call("add", 1, 2),
        lambda: erlang.gen_call(process.pid, 1),
        lambda: erlang.erpc(peer.name, "m", "f"),
        lambda: erlang.send(("p", peer.name), 1),
        lambda: asyncio.run(erlang.async_call("add", 1, 2)),
        lambda: peer.call(pid, 1),
        lambda: peer.cast(pid, 1),
        lambda: peer.send(pid, 1),
    ):
        with pytest.raises(NoConnection):
            ask()  # type: ignore[no-untyped-call]
    erlang.cast(("p", peer.name), 1)
    peer.connect()
    assert erlang.nodes() == [peer.name]
    assert erlang.call("add", 1, 2) == 3
    assert peer.call(pid, 1) == 1
    assert process.casts == []


def test_who_waits_hears_at_once_that_the_connection_is_lost(peer: FakePeer) -> None:
    asked = threading.Barrier(4)

    def never() -> None:
        asked.wait(5)
        asked.wait(5)

    peer.register("never", never)
    peer.module("m", never=never)
    process = peer.process(handler=lambda request: never())

    async def coroutine() -> None:
        await erlang.async_call("never", timeout=None)

    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(asyncio.run, coroutine()),
            pool.submit(erlang.erpc, peer.name, "m", "never"),
            pool.submit(erlang.gen_call, process.pid, 1, None),
        ]
        asked.wait(5)
        peer.disconnect()
        for one in waiting:
            with pytest.raises(NoConnection):
                one.result(5)
    asked.wait(5)


def test_monitors_links_and_watchers_hear_of_the_connection(peer: FakePeer) -> None:
    remote = peer.process("p")
    remote.trap_exit = True

    async def process() -> list[Any]:
        async with erlang.Process(trap_exit=True) as own:
            erlang.monitor_nodes()
            ref = own.monitor(("p", peer.name))
            own.link(remote.pid)
            peer.disconnect()
            peer.connect()
            heard = [await own.receive(timeout=5) for _ in range(4)]
            late = own.monitor(remote.pid)
            peer.disconnect()
            await own.receive(("DOWN", late, ..., ..., ...), timeout=5)
            gone = own.monitor(remote.pid)
            heard.append((await own.receive(("DOWN", gone, ..., ..., ...), timeout=5))[4])
            assert heard[1] == ("DOWN", ref, "process", ("p", peer.name), "noconnection")
            assert heard[2] == ("EXIT", remote.pid, "noconnection")
            return heard

    heard = erlang.run(process())
    assert heard[0] == ("nodedown", "beam@fake")
    assert heard[3:] == [("nodeup", "beam@fake"), "noconnection"]
    assert remote.receive()[2] == "noconnection"


# --- processes of the peer ------------------------------------------------------------------------------


def test_a_process_answers_one_request_after_the_other(peer: FakePeer) -> None:
    asked, overlap, release = threading.Event(), threading.Event(), threading.Event()

    def handler(request: int) -> int:
        if asked.is_set():
            overlap.set()
        asked.set()
        assert release.wait(5)
        return request + 1

    process = peer.process("counter", handler)

    async def users() -> list[int]:
        waiting = [asyncio.create_task(erlang.async_gen_call(process.pid, i)) for i in range(20)]
        assert await asyncio.to_thread(asked.wait, 5)
        assert process.calls == list(range(20))
        assert not overlap.wait(0.05)
        release.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(users()) == list(range(1, 21))


def test_a_process_keeps_what_it_is_sent(peer: FakePeer) -> None:
    process = peer.process("p")
    erlang.send(process.pid, ("hello", 1))
    erlang.cast(("p", peer.name), "go")
    asyncio.run(erlang.async_send(process.pid, 2))
    asyncio.run(erlang.async_cast(process.pid, 3))
    erlang.send(("nobody", peer.name), 4)
    assert process.received == [("hello", 1), 2]
    assert process.casts == ["go", 3]
    assert process.receive(lambda message: message == 2) == 2
    assert process.receive(("hello", ...)) == ("hello", 1)
    assert process.received == [("hello", 1), 2]
    with pytest.raises(TimeoutError, match="has not received it"):
        process.receive(timeout=0)


def test_a_process_without_a_handler_does_not_answer(peer: FakePeer) -> None:
    process = peer.process()
    with pytest.raises(TimeoutError):
        erlang.gen_call(process.pid, 1, timeout=0.01)
    assert process.calls == [1]


def test_a_handler_may_leave_a_request_unanswered(peer: FakePeer) -> None:
    process = peer.process(handler=lambda request: erlang.NO_REPLY if request == 1 else request)
    with pytest.raises(TimeoutError):
        erlang.gen_call(process.pid, 1, timeout=0.01)
    assert erlang.gen_call(process.pid, 2) == 2


def test_a_handler_may_be_a_coroutine_function(peer: FakePeer) -> None:
    async def handler(request: Any) -> Any:
        await asyncio.sleep(0)
        return request

    process = peer.process(handler=handler)
    assert erlang.gen_call(process.pid, "x") == "x"
    assert asyncio.run(erlang.async_gen_call(process.pid, "y")) == "y"


def test_nobody_under_that_name_is_noproc(peer: FakePeer) -> None:
    gone = peer.process()
    gone.exit()
    for dest in (("nobody", peer.name), gone.pid, "nobody"):
        with pytest.raises(ErlangError) as caught:
            erlang.gen_call(dest, 1)
        assert (caught.value.kind, caught.value.reason) == ("exit", "noproc")


def test_the_end_of_a_process_is_told_to_all_whom_it_concerns(peer: FakePeer) -> None:
    process = peer.process("p")

    async def user() -> tuple[Any, ...]:
        async with erlang.Process(trap_exit=True) as own:
            ref = erlang.monitor(process.pid)
            erlang.link(process.pid)
            question = asyncio.create_task(erlang.async_gen_call(process.pid, 1, None))
            await asyncio.sleep(0)
            process.exit(("bye", 1))
            down = await own.receive(("DOWN", ref, "process", process.pid, ...), 5)
            left = await own.receive(("EXIT", process.pid, ...), 5)
            with pytest.raises(ErlangError) as caught:
                await question
            again = erlang.monitor(("p", peer.name))
            noproc = await own.receive(("DOWN", again, ..., ("p", peer.name), ...), 5)
            erlang.link(process.pid)
            dead = await own.receive(("EXIT", process.pid, ...), 5)
            return down[4], left[2], caught.value.kind, caught.value.reason, noproc[4], dead[2]

    assert erlang.run(user()) == (("bye", 1), ("bye", 1), "exit", ("bye", 1), "noproc", "noproc")
    assert not process.alive
    assert peer.process("p").alive


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ErlangError("exit", ("shutdown", 1)), ("shutdown", 1)),
        (erlang.Exit("done"), "done"),
        (KeyError("k"), ("python", "KeyError", "'k'")),
    ],
)
def test_a_handler_that_raises_ends_its_process(
    peer: FakePeer, error: Exception, expected: Any
) -> None:
    def handler(request: Any) -> None:
        raise error

    process = peer.process(handler=handler)
    with pytest.raises(ErlangError) as caught:
        erlang.gen_call(process.pid, 1)
    reason = caught.value.reason
    assert caught.value.kind == "exit"
    assert (reason[:3] if len(reason) == 4 and reason[0] == "python" else reason) == expected
    assert not process.alive


def test_names_on_the_peer_are_its_own(peer: FakePeer) -> None:
    process = peer.process("p")
    assert erlang.whereis("p") is None
    with pytest.raises(ValueError, match="taken"):
        peer.process("p")
    with pytest.raises(ValueError, match="of this node"):
        erlang.register("q", process.pid)


# --- the test as the BEAM -------------------------------------------------------------------------------


def test_the_peer_calls_casts_and_sends_to_a_server(peer: FakePeer) -> None:
    class Server(erlang.GenServer):
        def init(self) -> None:
            self.seen: list[Any] = []

        def handle_call(self, request: Any, sender: tuple[Pid, Any]) -> Any:
            assert sender[0].node == "beam@fake"
            return [*self.seen, request]

        def handle_cast(self, request: Any) -> None:
            self.seen.append(("cast", request))

        def handle_info(self, message: Any) -> None:
            self.seen.append(message)

    pid = Server.start(name="server")
    peer.cast("server", 1)
    peer.send(pid, {"m": 2})
    peer.send("nobody", 3)
    assert peer.call(("server", "py@fake"), "r") == [("cast", 1), {"m": 2}, "r"]


def test_the_peer_hears_of_a_server_that_ends_or_is_none(peer: FakePeer) -> None:
    pid = Echo.start()
    with pytest.raises(ErlangError) as caught:
        peer.call(pid, "die")
    assert (caught.value.kind, caught.value.reason) == ("exit", ("done", 1))
    with pytest.raises(ErlangError) as caught:
        peer.call(pid, 1)
    assert caught.value.reason == "noproc"


def test_the_peer_does_not_wait_longer_than_it_wants(peer: FakePeer) -> None:
    class Silent(erlang.GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            return erlang.NO_REPLY

    pid = Silent.start()
    with pytest.raises(TimeoutError):
        peer.call(pid, 1, timeout=0.01)


def test_the_peer_does_not_block_the_loop_that_is_to_answer(peer: FakePeer) -> None:
    async def on_loop() -> None:
        peer.call("anybody", 1)

    with pytest.raises(RuntimeError, match="would block"):
        erlang.run(on_loop())


def test_the_peer_watches_and_ends_servers(peer: FakePeer) -> None:
    watcher = peer.process()
    watcher.trap_exit = True
    pid = Echo.start()
    ref = watcher.monitor(pid)
    watcher.link(pid)
    peer.exit(pid, "stop")
    assert watcher.receive(("DOWN", ..., ..., ..., ...)) == ("DOWN", ref, "process", pid, "stop")
    assert watcher.receive() == ("EXIT", pid, "stop")
    other = Echo.start()
    ignored = watcher.monitor(other)
    watcher.demonitor(ignored)
    watcher.link(other)
    watcher.unlink(other)
    peer.exit(other, "kill")
    last = watcher.monitor(other)
    assert watcher.receive() == ("DOWN", last, "process", other, "noproc")


def test_a_linked_server_takes_a_process_with_it(peer: FakePeer) -> None:
    watcher, linked = peer.process(), peer.process()
    watcher.monitor(linked.pid)
    pid = Echo.start()
    linked.link(pid)
    peer.exit(pid, "kill")
    assert watcher.receive()[3:] == (linked.pid, "killed")
    assert not linked.alive


def test_code_runs_at_the_request_of_a_process(peer: FakePeer) -> None:
    supervisor = peer.process()
    with pytest.raises(RuntimeError, match="needs a process to link to"):
        Echo.start_link()
    with peer.serving(), pytest.raises(RuntimeError, match="needs a process to link to"):
        Echo.start_link()
    with peer.serving(supervisor):
        pid = Echo.start_link()
    watcher = peer.process()
    watcher.monitor(pid)
    supervisor.exit("shutdown")
    assert watcher.receive()[4] == "shutdown"


def test_a_process_prints_who_it_is(peer: FakePeer) -> None:
    process: FakeProcess = peer.process("p")
    assert repr(process) == f"<FakeProcess p {process.pid}>"
    process.exit()
    assert repr(process).endswith("ended>")


# --- names and the rest ---------------------------------------------------------------------------------


def test_names_are_registered_as_on_a_node(peer: FakePeer) -> None:
    pid = Echo.start()
    erlang.register("one", pid)
    assert erlang.whereis("one") == pid
    assert erlang.registered() == ["py", "one"]
    for name, whom in (("one", Echo.start()), ("two", pid)):
        with pytest.raises(ValueError):
            erlang.register(name, whom)
    erlang.unregister("one")
    for name in ("one", "py"):
        with pytest.raises(ValueError):
            erlang.unregister(name)
    erlang.register("two", pid)
    peer.exit(pid, "kill")
    assert erlang.whereis("two") is None
    with pytest.raises(ValueError):
        erlang.register("three", pid)


def test_references_are_unique_and_counters_count(peer: FakePeer) -> None:
    refs = {erlang.make_ref() for _ in range(100)}
    assert len(refs) == 100
    Echo.start()
    assert erlang.stats()["processes"] == 1
    assert erlang.stats()["links_opened"] == 0


@pytest.mark.parametrize("dest", [1, None, ("a", "b", "c"), ("a", 1), b"py"])
def test_what_is_no_destination_is_a_type_error(peer: FakePeer, dest: Any) -> None:
    with pytest.raises(TypeError, match="a process is a Pid, a name or"):
        erlang.send(dest, 1)
    with pytest.raises(TypeError, match="a process is a Pid, a name or"):
        erlang.gen_call(dest, 1)
