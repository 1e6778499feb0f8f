"""Addresses in numbers are resolved as libc does, and without a thread; everything else in one."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import pytest
from support import LoopFactory, run

HOSTS: list[Any] = [
    "127.0.0.1",
    b"127.0.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "127.1",
    "0x7f.1",
    "0177.0.0.1",
    "2130706433",
    "1.2.3",
    "::1",
    b"::1",
    "::",
    "fe80::1%lo",
    "fe80::1%1",
    "ff02::1%lo",
    "::1%lo",
    "::1%1",
    "fe80::1%nowhere",
    "fe80::1",
    "::ffff:1.2.3.4",
    "2001:DB8::A",
    "1.2.3.4 ",
    "1::2::3",
    ":::",
    "127.0.0.1\0",
    "",
]
NAMES = ["1.2.3.4.5", "256.1.1.1", "1.2.3.", "12345678901234567890", "dead.beef", "10.x"]
PORTS: list[Any] = [
    80,
    0,
    65535,
    65536,
    99999999999,
    -1,
    "80",
    b"80",
    "080",
    "",
    None,
    "http",
    "-1",
]
PORTS += [" 80", "8 0", "nothing", True, 80.0]


def running() -> Any:
    return asyncio.get_running_loop()


def outcome_of(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        return socket.getaddrinfo(*arguments, **options)
    except Exception as error:
        return type(error), str(error)


async def resolved(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        return await running().getaddrinfo(*arguments, **options)
    except Exception as error:
        return type(error), str(error)


async def compare(arguments: tuple[Any, ...], **options: Any) -> None:
    expected = outcome_of(arguments, options)
    got = await resolved(arguments, options)
    assert got == expected, (arguments, options)
    if isinstance(got, list):
        assert [tuple(map(type, each)) for each in got] == [
            tuple(map(type, each)) for each in expected
        ]


class Elsewhere:
    """An executor's stand-in: says that something was to run in a thread."""

    def __init__(self, loop: Any) -> None:
        self.calls: list[Any] = []
        self.loop, self.run = loop, loop.run_in_executor
        loop.run_in_executor = self

    def __call__(self, executor: Any, call: Any, *arguments: Any) -> Any:
        self.calls.append(arguments[0])
        return self.run(executor, call, *arguments)


@pytest.mark.parametrize("host", HOSTS, ids=repr)
def test_every_kind_of_host_is_resolved_as_libc_does(loop_factory: LoopFactory, host: Any) -> None:
    async def main() -> None:
        for port in PORTS:
            await compare((host, port))
        for family, kind in itertools.product((0, 2, 10, 1, 99), (0, 1, 2, 3, 5, 6, 99)):
            await compare((host, 80), family=family, type=kind)

    run(loop_factory, main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%lo"])
def test_every_hint_is_understood_as_libc_understands_it(
    loop_factory: LoopFactory, host: str
) -> None:
    flags = [getattr(socket, name) for name in dir(socket) if name.startswith("AI_")]
    assert len(flags) >= 7

    async def main() -> None:
        for flag in [*flags, sum(set(flags)), 1 << 20]:
            await compare((host, 80), flags=flag)
            await compare((host, None), type=socket.SOCK_STREAM, flags=flag)
        for proto in (0, 1, 6, 17, 33, 132, 136, 255, 999):
            for kind in (0, 1, 2, 3):
                await compare((host, 80), type=kind, proto=proto)

    run(loop_factory, main)


def test_names_are_resolved_too(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        for host in ("localhost", None):
            await compare((host, 80), type=socket.SOCK_STREAM)
        for host in NAMES:  # that look like numbers; nobody is asked for them here
            await compare((host, 80), flags=socket.AI_NUMERICHOST)

    run(loop_factory, main)


def test_numbers_need_no_thread_and_all_else_does(our_factory: LoopFactory) -> None:
    async def main() -> None:
        elsewhere = Elsewhere(running())
        numbers = ["127.0.0.1", b"127.0.0.1", "127.1", "::1", "fe80::1%lo", "2001:db8::1"]
        for host in numbers:
            await compare((host, 80))
            await compare((host, "80"))
            await compare((host, None))
        assert elsewhere.calls == []
        others: list[tuple[Any, Any]] = [("localhost", 80), ("127.0.0.1", "http"), (None, 80)]
        others += [("::1::", 80), ("", 80), ("127.0.0.1", "")]
        for host, port in others:
            await compare((host, port))
        for host in NAMES:
            await compare((host, 80), flags=socket.AI_NUMERICHOST)
        assert elsewhere.calls == [host for host, _ in others] + NAMES

    run(our_factory, main)


def test_debug_mode_measures_every_call(our_factory: LoopFactory) -> None:
    async def main() -> None:
        elsewhere = Elsewhere(running())
        await compare(("127.0.0.1", 80))
        assert elsewhere.calls == ["127.0.0.1"]

    run(our_factory, main, debug=True)


def test_wrong_arguments_are_told_as_the_socket_module_tells_them(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        for arguments in ((7, 80), ("127.0.0.1", []), ("127.0.0.1", 1.5), ([], 80)):
            await compare(arguments)
        for options in ({"family": "v4"}, {"type": 1.5}, {"proto": None}, {"flags": 1 << 40}):
            await compare(("127.0.0.1", 80), **options)
        with pytest.raises(TypeError):
            await running().getaddrinfo("127.0.0.1", 80, 2)

    run(loop_factory, main)


def test_a_closed_loop_resolves_nothing(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.getaddrinfo("127.0.0.1", 80).send(None)
