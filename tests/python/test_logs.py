"""Python's logging and print in the node's log, or in the logger of a BEAM."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import erlang
import erlang.logs
from erlang import Atom
from erlang.logs import BeamHandler, NodeHandler
from erlang.testing import FakePeer


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    with FakePeer() as peer:
        yield peer


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("shop.cart")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


# --- NodeHandler ----------------------------------------------------------------------------------------


def test_a_record_becomes_a_line_of_the_nodes_log(peer: FakePeer, logger: logging.Logger) -> None:
    logger.addHandler(NodeHandler())
    logger.warning("%d items", 3)
    logger.debug("details")
    assert peer.node_log == [(30, "shop.cart: 3 items"), (10, "shop.cart: details")]


def test_an_exception_is_logged_with_its_traceback(peer: FakePeer, logger: logging.Logger) -> None:
    logger.addHandler(NodeHandler(logging.ERROR))
    logger.warning("not this")
    try:
        raise KeyError("k")
    except KeyError:
        logger.exception("failed")
    [(level, text)] = peer.node_log
    assert level == logging.ERROR
    assert text.startswith("shop.cart: failed\nTraceback")
    assert text.endswith("KeyError: 'k'")


def test_a_record_that_cannot_be_logged_does_not_reach_the_caller(
    peer: FakePeer, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = NodeHandler()
    handler.handle(logger.makeRecord(logger.name, 20, "f.py", 1, "%d", ("no number",), None))
    handler.handle(logger.makeRecord(logger.name, 20, "f.py", 2, "next", (), None))
    assert peer.node_log == [(20, "shop.cart: next")]
    assert "--- Logging error ---" in capsys.readouterr().err


def test_that_there_is_no_node_does_not_reach_the_caller(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.addHandler(BeamHandler())
    logger.info("hello")
    assert "does not run inside a node" in capsys.readouterr().err


# --- BeamHandler ----------------------------------------------------------------------------------------


def test_a_record_reaches_the_logger_of_the_beam_with_where_it_was_made(
    peer: FakePeer, logger: logging.Logger
) -> None:
    logger.addHandler(BeamHandler())
    logger.error("%s is sold out", "tea", extra={"erlang": {"order": 7, "file": "other"}})
    [(level, text, metadata)] = peer.logged
    assert (level, text) == ("error", "tea is sold out")
    assert set(map(type, metadata)) == {Atom}
    assert metadata == metadata | {
        "function": "test_a_record_reaches_the_logger_of_the_beam_with_where_it_was_made",
        "python_logger": "shop.cart",
        "thread": threading.current_thread().name,
        "node": Atom("py@fake"),
        "pid": erlang.self(),
        "order": 7,
        "file": "other",
    }
    assert metadata[Atom("line")] > 0
    assert "caller" not in metadata


def test_an_exception_its_task_and_extra_fields_are_metadata(
    peer: FakePeer, logger: logging.Logger
) -> None:
    async def fail() -> None:
        try:
            {}["k"]
        except KeyError:
            extra = {"order": 7, "odd": object, "large": "x" * 100_000}
            logger.exception("failed", extra=extra)

    async def main() -> None:
        await asyncio.create_task(fail(), name="worker 7")

    logger.addHandler(BeamHandler())
    asyncio.run(main())
    [(_, text, metadata)] = peer.logged
    kind, name, message, trace = metadata[Atom("exception")]
    assert (kind, name, message) == (Atom("python"), "KeyError", "'k'")
    assert trace.startswith("Traceback") and "in fail" in trace
    assert text.startswith("failed\nTraceback")
    assert metadata[Atom("task")] == "worker 7"
    assert metadata[Atom("module")] == "test_logs"
    assert abs(metadata[Atom("time")] - time.time() * 1e6) < 60e6
    assert metadata[Atom("extra")] == {
        "order": 7,
        "odd": "<class 'object'>",
        "large": "str of 100006 bytes",
    }


def test_levels_can_be_given_others_of_logger(peer: FakePeer, logger: logging.Logger) -> None:
    logger.addHandler(BeamHandler(levels={logging.ERROR: "alert", logging.INFO: "notice"}))
    logger.critical("one")
    logger.warning("two")
    logger.debug("three")
    assert [level for level, _, _ in peer.logged] == ["alert", "notice", "debug"]
    with pytest.raises(ValueError, match="no level 'loud'"):
        BeamHandler(levels={1: "loud"})


def test_what_a_peer_does_not_handle_is_bounded_counted_and_told(
    peer: FakePeer, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    native = erlang._backend.native

    def ask_call(name: str, args: Any, node: Any, wake: Any, trace: Any) -> object:
        asked.append(wake)
        return object()

    monkeypatch.setattr(native, "ask_call", ask_call)
    kept = Kept()
    handler = BeamHandler(window=8, fallback=kept)
    logger.addHandler(handler)
    for number in range(20):
        logger.info("%d", number)
    assert [text for _, text, _ in peer.logged] == [str(number) for number in range(8)]
    assert (handler.dropped, len(kept.records), len(asked)) == (12, 12, 1)
    asked[0]()  # the peer has handled the two that came before the question
    asked[0]()
    logger.info("again")
    assert [text for _, text, _ in peer.logged][8:] == [
        "12 log records were dropped: more than 8 were under way",
        "again",
    ]
    assert peer.logged[8][2][Atom("dropped")] == 12
    assert len(asked) == 2


def test_a_peer_that_handles_records_leaves_room_for_any_number(
    peer: FakePeer, logger: logging.Logger
) -> None:
    handler = BeamHandler(window=8)
    logger.addHandler(handler)
    for number in range(200):
        logger.info("%d", number)
        time.sleep(0.0005)  # the answers are told by another thread
    assert len(peer.logged) + handler.dropped >= 200
    assert handler.dropped < 100


def test_a_record_logged_while_one_is_sent_is_not_sent(
    peer: FakePeer, logger: logging.Logger
) -> None:
    class Talkative(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            logger.info("formatting")
            return super().format(record)

    handler = BeamHandler()
    handler.setFormatter(Talkative())
    logger.addHandler(handler)
    logger.info("one")
    logger.info("two")
    assert [text for _, text, _ in peer.logged] == ["one", "two"]


def test_a_thread_that_never_comes_back_does_not_keep_the_program_from_ending(
    peer: FakePeer, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def log_to_peer(*_: object) -> bool:
        begun.set()
        return end.wait(30)

    handler = BeamHandler()
    logger.addHandler(handler)
    monkeypatch.setattr(erlang._backend.native, "log_to_peer", log_to_peer)
    thread = threading.Thread(target=logger.info, args=("stuck",))
    thread.start()
    assert begun.wait(30)
    ended = threading.Thread(target=logging.shutdown, args=([weakref.ref(handler)],))
    ended.start()
    ended.join(30)
    stuck = ended.is_alive()
    end.set()
    thread.join()
    assert not stuck


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.CRITICAL, "critical"),
        (logging.ERROR + 1, "error"),
        (logging.WARNING, "warning"),
        (logging.INFO, "info"),
        (logging.DEBUG, "debug"),
        (1, "debug"),
    ],
)
def test_pythons_levels_are_those_of_logger(
    peer: FakePeer, logger: logging.Logger, level: int, expected: str
) -> None:
    logger.setLevel(1)
    logger.addHandler(BeamHandler())
    logger.log(level, "text")
    assert peer.logged[0][0] == expected


def test_the_metadata_names_the_process_that_logs_and_the_one_it_serves(
    peer: FakePeer, logger: logging.Logger
) -> None:
    class Server(erlang.GenServer):
        def handle_call(self, request: Any, sender: Any) -> Any:
            logger.info("served")
            return sender[0]

    logger.addHandler(BeamHandler())
    pid = Server.start()
    caller = peer.call(pid, 1)
    with peer.serving():
        logger.info("for a node")
    first, second = (metadata for _, _, metadata in peer.logged)
    assert (first[Atom("pid")], first[Atom("caller")]) == (pid, caller)
    assert "caller" not in second


def test_a_record_that_finds_no_peer_goes_to_the_fallback(
    peer: FakePeer, logger: logging.Logger
) -> None:
    kept = Kept()
    logger.addHandler(BeamHandler(fallback=kept))
    logger.addHandler(BeamHandler(node="nobody@nowhere", fallback=kept))
    logger.addHandler(BeamHandler(node="nobody@nowhere"))
    logger.info("one")
    peer.disconnect()
    logger.info("two")
    assert [text for _, text, _ in peer.logged] == ["one"]
    assert [record.getMessage() for record in kept.records] == ["one", "two", "two"]


def test_metadata_that_has_no_term_does_not_reach_the_caller(
    peer: FakePeer, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.addHandler(BeamHandler())
    logger.info("bad", extra={"erlang": {"key": object()}})
    logger.info("odd", extra={"erlang": "no dict"})
    assert [text for _, text, _ in peer.logged] == ["odd"]
    assert "cannot encode 'object' object" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("trace", 10),
        ("debug", 10),
        ("info", 20),
        ("warning", 30),
        ("warn", 30),
        ("error", 40),
        ("err", 40),
        ("critical", 50),
        ("off", 50),
    ],
)
def test_the_root_logger_has_the_level_of_the_node(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch, level: str, expected: int
) -> None:
    root = logging.Logger("root of this test")
    monkeypatch.setattr(logging, "getLogger", lambda name=None: root)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    erlang.logs.install(level)
    assert root.level == expected


# --- print and sys.stderr -------------------------------------------------------------------------------


def lines(level: int = logging.INFO, plain: Any = None) -> erlang.logs._Lines:
    return erlang.logs._Lines(level, plain)


def test_what_is_printed_is_logged_line_by_line(peer: FakePeer) -> None:
    stream = lines()
    print("one", "two", file=stream)
    print("three\n\nfo", end="", file=stream)
    print("ur", file=stream)
    assert peer.node_log == [(20, text) for text in ("one two", "three", "", "four")]


def test_an_unfinished_line_is_logged_when_it_is_flushed(peer: FakePeer) -> None:
    stream = lines(logging.WARNING)
    assert stream.write("half") == 4
    assert peer.node_log == []
    stream.flush()
    stream.flush()
    stream.write(" a line\n")
    assert peer.node_log == [(30, "half"), (30, " a line")]


def test_lines_of_many_threads_are_whole(peer: FakePeer) -> None:
    stream = lines()

    def write(number: int) -> None:
        for _ in range(100):
            stream.write(f"{number}" * 20 + "\n")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert sorted(text for _, text in peer.node_log) == sorted(
        f"{number}" * 20 for number in range(8) for _ in range(100)
    )


def test_a_stream_of_lines_is_one_that_programs_can_use(peer: FakePeer, tmp_path: Any) -> None:
    with open(tmp_path / "plain", "w") as plain:
        stream = lines(plain=plain)
        assert stream.writable() and not stream.isatty() and not stream.readable()
        assert stream.encoding == "utf-8"
        assert stream.fileno() == plain.fileno()
        assert stream.buffer is plain.buffer
    with pytest.raises(io.UnsupportedOperation):
        stream.read()


def test_install_takes_over_logging_print_and_stderr(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.Logger("root of this test")
    monkeypatch.setattr(logging, "getLogger", lambda name=None: root)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    erlang.logs.install("info")
    print("printed")
    print("complained", file=sys.stderr)
    root.debug("not this")
    root.info("logged")
    assert peer.node_log == [
        (20, "printed"),
        (30, "complained"),
        (20, "root of this test: logged"),
    ]
