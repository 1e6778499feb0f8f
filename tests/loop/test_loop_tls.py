"""TLS over the loop's transports, start_tls, and sendfile with and without it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support import Certificates, Echo, LoopFactory, Recorder, Reports, reset, run, tcp_pair, until

BIG = 4 << 20


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@contextlib.asynccontextmanager
async def serving(
    certificates: Certificates, factory: Callable[[], asyncio.BaseProtocol] = Echo, **how: Any
) -> AsyncIterator[tuple[str, int]]:
    context = how.pop("ssl", None) or certificates.server()
    server = await running().create_server(factory, "127.0.0.1", 0, ssl=context, **how)
    async with server:
        yield server.sockets[0].getsockname()


def in_thread(work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    return asyncio.ensure_future(asyncio.to_thread(work, *arguments))


# ---------------------------------------------------------------------------------------------------------------------
# Streams


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_tls_stream_carries_everything_both_ways(
    loop_factory: LoopFactory, certificates: Certificates, version: str
) -> None:
    async def main() -> None:
        context = certificates.client()
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        async with serving(certificates) as address:
            reader, writer = await asyncio.open_connection(
                *address, ssl=context, server_hostname="localhost"
            )
            assert writer.get_extra_info("ssl_object").version() == version.replace("_", ".")
            assert writer.get_extra_info("cipher")
            assert ("DNS", "localhost") in writer.get_extra_info("peercert")["subjectAltName"]
            assert writer.get_extra_info("sslcontext") is context
            assert writer.get_extra_info("peername") == address
            assert isinstance(writer.transport, asyncio.Transport)
            payload = os.urandom(BIG)

            async def write() -> None:
                for start in range(0, BIG, 70_001):
                    writer.write(payload[start : start + 70_001])
                    await writer.drain()

            writing = asyncio.ensure_future(write())
            assert await reader.readexactly(BIG) == payload
            await writing
            for number in range(200):
                writer.write(b"%d\n" % number)
                assert await reader.readline() == b"%d\n" % number
            writer.close()
            await writer.wait_closed()

    run(loop_factory, main)


def test_a_server_of_pythons_own_ssl_and_one_of_the_loop_understand_each_other(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    """Both directions against blocking sockets that have nothing to do with any loop."""

    def client(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address, timeout=10) as sock:
            with certificates.client().wrap_socket(sock, server_hostname="localhost") as secure:
                secure.sendall(b"blocking client")
                got = secure.recv(100)
                secure.unwrap().close()
                return got

    def server(listener: socket.socket) -> bytes:
        sock, _ = listener.accept()
        sock.settimeout(10)
        with certificates.server().wrap_socket(sock, server_side=True) as secure:
            got = secure.recv(100)
            secure.sendall(b"to " + got)
            with contextlib.suppress(OSError):
                secure.unwrap().close()
            return got

    async def main() -> None:
        async with serving(certificates) as address:
            assert await in_thread(client, address) == b"blocking client"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving_it = in_thread(server, listener)
            reader, writer = await asyncio.open_connection(
                *listener.getsockname(), ssl=certificates.client(), server_hostname="localhost"
            )
            writer.write(b"the loop")
            assert await reader.read() == b"to the loop"
            writer.close()
            await writer.wait_closed()
            assert await serving_it == b"the loop"

    run(loop_factory, main)


def test_certificates_are_verified_against_their_authority_and_their_name(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        async with serving(certificates) as address:
            for context, name in (
                (ssl.create_default_context(), "localhost"),
                (certificates.client(), "elsewhere.example"),
            ):
                with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
                    await asyncio.open_connection(*address, ssl=context, server_hostname=name)
            reader, writer = await asyncio.open_connection(
                *address, ssl=certificates.client(), server_hostname="localhost"
            )
            writer.write(b"still serving")
            assert await reader.readexactly(13) == b"still serving"
            writer.close()
            await writer.wait_closed()

    run(loop_factory, main)


def test_a_server_may_want_certificates_of_its_clients(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        wanting = certificates.server()
        wanting.load_verify_locations(certificates.authority)
        wanting.verify_mode = ssl.CERT_REQUIRED
        async with serving(certificates, ssl=wanting) as address:
            context = certificates.client()
            context.load_cert_chain(certificates.certificate, certificates.key)
            reader, writer = await asyncio.open_connection(
                *address, ssl=context, server_hostname="localhost"
            )
            writer.write(b"trusted")
            assert await reader.readexactly(7) == b"trusted"
            writer.close()
            await writer.wait_closed()
            # In TLS 1.3 the client learns of it after its own handshake: an alert, a reset or an end.
            reader, writer = await asyncio.open_connection(
                *address, ssl=certificates.client(), server_hostname="localhost"
            )
            writer.write(b"not trusted")
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                assert await reader.read() == b""
            writer.transport.abort()
            await asyncio.sleep(0.005)

    run(loop_factory, main)


def test_a_client_that_speaks_no_tls_is_sent_away_and_costs_only_itself(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        reports, made = Reports(running()), []

        def factory() -> asyncio.Protocol:
            made.append(Recorder())
            return made[-1]

        def plain(address: tuple[str, int]) -> bytes:
            with socket.create_connection(address, timeout=10) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    return sock.recv(1000)
                return b""

        async with serving(certificates, factory) as address:
            answer = await in_thread(plain, address)
            assert answer == b"" or answer[:2] == b"\x15\x03"  # an alert, or nothing
            await asyncio.sleep(0.01)
            assert [one.events for one in made] == [[]]  # its protocol was told nothing
            secure = certificates.client()
            _, writer = await asyncio.open_connection(
                *address, ssl=secure, server_hostname="localhost"
            )
            await until(lambda: len(made) == 2 and made[1].events == ["made"])
            writer.close()
            await writer.wait_closed()
            await made[1].lost
        assert reports.messages == []

    run(loop_factory, main)


@pytest.mark.parametrize("end", ["reset", "end", "nothing"])
def test_a_peer_that_goes_or_stalls_during_the_handshake_ends_it(
    loop_factory: LoopFactory, certificates: Certificates, end: str
) -> None:
    """As a client and as a server."""

    async def main() -> None:
        with tcp_pair() as (near, far):
            connecting = asyncio.ensure_future(
                running().create_connection(
                    asyncio.Protocol,
                    sock=near,
                    ssl=certificates.client(),
                    server_hostname="localhost",
                    ssl_handshake_timeout=0.1 if end == "nothing" else 10,
                )
            )
            await asyncio.sleep(0.02)
            assert not connecting.done()
            if end != "nothing":
                (far.close if end == "end" else lambda: reset(far))()
            with pytest.raises(ConnectionError) as caught:
                await asyncio.wait_for(connecting, 5)
            if end == "nothing":
                text = "SSL handshake is taking longer than 0.1 seconds: aborting the connection"
                assert str(caught.value) == text
        how = {"ssl_handshake_timeout": 0.1 if end == "nothing" else 10}
        async with serving(certificates, **how) as address:
            peer = socket.create_connection(address)
            peer.send(b"\x16\x03\x01")
            await asyncio.sleep(0.01)
            if end == "end":
                peer.shutdown(socket.SHUT_WR)
            elif end == "reset":
                reset(peer)
            if end != "reset":
                peer.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    while await in_thread(peer.recv, 1000):
                        pass
                peer.close()
            else:
                await asyncio.sleep(0.02)

    run(loop_factory, main)


@pytest.mark.parametrize("state", ["reading", "paused", "writing", "closing"])
def test_a_peer_that_resets_a_tls_connection_ends_it_in_every_state(
    loop_factory: LoopFactory, certificates: Certificates, state: str
) -> None:
    async def main() -> None:
        reports, ready = Reports(running()), threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def peer() -> None:
                sock, _ = listener.accept()
                secure = certificates.server().wrap_socket(sock, server_side=True)
                secure.recv(1)
                ready.wait(10)
                reset(secure)

            peering = in_thread(peer)
            transport, protocol = await running().create_connection(
                Recorder,
                *listener.getsockname(),
                ssl=certificates.client(),
                server_hostname="localhost",
            )
            transport.write(b"x")
            await asyncio.sleep(0.01)
            if state == "paused":
                transport.pause_reading()
            if state in ("writing", "closing"):
                while transport.get_write_buffer_size() < 1000:
                    transport.write(b"x" * 500_000)
            if state == "closing":
                transport.close()
            ready.set()
            await peering
            if state == "paused":
                await asyncio.sleep(0.02)
                transport.resume_reading()
            await asyncio.wait_for(protocol.lost, 5)
            assert protocol.events[0] == "made" and protocol.events.count("lost") == 1
            if state != "closing":
                assert isinstance(protocol.error, ConnectionError)
        assert reports.messages == []

    run(loop_factory, main)


def test_a_close_sends_what_is_left_and_says_goodbye(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    """A peer that suppresses no ragged end must see an orderly one."""

    async def main() -> None:
        def client(address: tuple[str, int]) -> int:
            with socket.create_connection(address, timeout=10) as sock:
                with certificates.client().wrap_socket(
                    sock, server_hostname="localhost", suppress_ragged_eofs=False
                ) as secure:
                    got = 0
                    while data := secure.recv(1 << 18):
                        got += len(data)
                    return got

        class Gives(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                transport.write(b"x" * BIG)
                transport.close()

        async with serving(certificates, Gives) as address:
            assert await in_thread(client, address) == BIG
            await asyncio.sleep(0.005)

    run(loop_factory, main)


def test_a_peer_that_never_says_goodbye_is_not_waited_for_longer_than_agreed(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        reports = Reports(running())
        release = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def deaf() -> None:
                sock, _ = listener.accept()
                with certificates.server().wrap_socket(sock, server_side=True):
                    release.wait(10)

            peering = in_thread(deaf)
            transport, protocol = await running().create_connection(
                Recorder,
                *listener.getsockname(),
                ssl=certificates.client(),
                server_hostname="localhost",
                ssl_shutdown_timeout=0.1,
            )
            transport.close()
            await asyncio.wait_for(protocol.lost, 5)
            assert isinstance(protocol.error, (TimeoutError, type(None)))
            release.set()
            await peering
        assert all("Fatal" not in message for message in reports.messages)

    run(loop_factory, main)


def test_flow_control_works_through_tls(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[0]

        async with serving(certificates, factory) as address:
            transport, protocol = await running().create_connection(
                Recorder, *address, ssl=certificates.client(), server_hostname="localhost"
            )
            await until(lambda: made and made[0].transport)
            there: Any = made[0].transport
            there.pause_reading()
            payload = b""
            while protocol.events[-1] != "pause":  # and stays so, with all buffers between full
                assert len(payload) < 100_000_000
                while protocol.events[-1] != "pause":
                    payload += (piece := os.urandom(250_000))
                    transport.write(piece)
                await asyncio.sleep(0.05)
            before = len(made[0].received)
            await asyncio.sleep(0.05)
            assert len(made[0].received) == before < len(payload)
            there.resume_reading()
            await until(lambda: len(made[0].received) == len(payload))
            assert made[0].received == payload
            await until(lambda: protocol.events[-1] == "resume")
            transport.close()
            await protocol.lost
            await made[0].lost

    run(loop_factory, main)


@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received"])
def test_a_protocol_that_raises_behind_tls_is_reported(
    loop_factory: LoopFactory, certificates: Certificates, where: str
) -> None:
    async def main() -> list[str]:
        reports = Reports(running())

        def fails(self: Recorder, *arguments: Any) -> None:
            getattr(Recorder, where)(self, *arguments)
            raise ValueError(where)

        kind = type("Faulty", (Recorder,), {where: fails})
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(kind())
            return made[0]

        async with serving(certificates, factory) as address:

            def client() -> None:
                with socket.create_connection(address, timeout=10) as sock:
                    secure = certificates.client().wrap_socket(sock, server_hostname="localhost")
                    secure.sendall(b"data")
                    with contextlib.suppress(OSError):
                        secure.unwrap()
                    secure.close()

            await in_thread(client)
            await until(lambda: reports.messages)
            if made[0].transport:
                made[0].transport.abort()
            await asyncio.sleep(0.02)
        return reports.errors

    assert run(loop_factory, main) == [f"ValueError('{where}')"]


# ---------------------------------------------------------------------------------------------------------------------
# start_tls


def test_a_plain_connection_becomes_a_secure_one(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    """As SMTP does it, with a server of the loop's on the other side that changes over as well."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"GO\n")
            await writer.drain()
            await writer.start_tls(certificates.server())
            while line := await reader.readline():
                writer.write(line.upper())
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert writer.get_extra_info("sslcontext") is None
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"GO\n"
            await writer.start_tls(certificates.client(), server_hostname="localhost")
            assert writer.get_extra_info("cipher")
            for word in (b"secure\n", b"x" * 60_000 + b"\n"):
                writer.write(word)
                assert await reader.readline() == word.upper()
            writer.close()
            await writer.wait_closed()

    run(loop_factory, main)


def test_start_tls_gives_a_new_transport_and_keeps_the_protocol(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def peer() -> bytes:
                sock, _ = listener.accept()
                sock.settimeout(10)
                with certificates.server().wrap_socket(sock, server_side=True) as secure:
                    secure.sendall(b"welcome")
                    got = secure.recv(100)
                    with contextlib.suppress(OSError):
                        secure.unwrap()
                    return got

            peering = in_thread(peer)
            plain, protocol = await running().create_connection(Recorder, *listener.getsockname())
            secure = await running().start_tls(
                plain, protocol, certificates.client(), server_hostname="localhost"
            )
            assert secure is not plain and secure is not None
            await until(lambda: protocol.received == b"welcome")
            assert protocol.events.count("made") == 1  # it was told once, of the plain one
            secure.write(b"thank you")
            assert await peering == b"thank you"
            await until(lambda: "lost" in protocol.events)

    run(loop_factory, main)


def test_start_tls_refuses_what_it_cannot_do(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            transport, protocol = await running().create_connection(Recorder, sock=near)
            with pytest.raises(TypeError, match="sslcontext is expected to be an instance of"):
                await running().start_tls(transport, protocol, None)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="transport .* is not supported by start_tls"):
                await running().start_tls(object(), protocol, certificates.client())  # type: ignore[arg-type]
            changing = asyncio.ensure_future(
                running().start_tls(
                    transport,
                    protocol,
                    certificates.client(),
                    server_hostname="localhost",
                    ssl_handshake_timeout=0.05,
                )
            )
            with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
                await changing
            assert transport.is_closing()

    run(loop_factory, main)


def test_a_cancelled_start_tls_closes_the_connection(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            transport, protocol = await running().create_connection(Recorder, sock=near)
            changing = asyncio.ensure_future(
                running().start_tls(
                    transport, protocol, certificates.client(), server_hostname="localhost"
                )
            )
            await asyncio.sleep(0.02)
            changing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await changing
            await asyncio.sleep(0.02)
            assert transport.is_closing()
            far.settimeout(5)

            def rest() -> None:
                with contextlib.suppress(ConnectionResetError):
                    while far.recv(1000):
                        pass

            await in_thread(rest)

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# sendfile


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("offset, count", [(0, None), (12_345, 1_000_000)])
def test_a_file_is_sent_between_what_is_written(
    loop_factory: LoopFactory,
    certificates: Certificates,
    tmp_path: Path,
    secure: bool,
    offset: int,
    count: int | None,
) -> None:
    async def main() -> None:
        payload = os.urandom(BIG)
        (tmp_path / "file").write_bytes(payload)
        wanted = payload[offset:][:count]
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        server = await running().create_server(
            factory, "127.0.0.1", 0, ssl=certificates.server() if secure else None
        )
        async with server:
            transport, protocol = await running().create_connection(
                Recorder,
                *server.sockets[0].getsockname(),
                ssl=certificates.client() if secure else None,
                server_hostname="localhost" if secure else None,
            )
            transport.write(b"before" * 50_000)
            with (tmp_path / "file").open("rb") as file:
                sending = running().sendfile(transport, file, offset, count)
                assert await sending == len(wanted)
                assert file.tell() == offset + len(wanted)
            transport.write(b"after")
            transport.close()
            await made[0].lost
            assert made[0].received == b"before" * 50_000 + wanted + b"after"
            await protocol.lost

    run(loop_factory, main)


def test_sendfile_refuses_a_closing_transport_and_a_missing_way(
    loop_factory: LoopFactory, certificates: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")

    async def main() -> None:
        with tcp_pair() as (near, far), (tmp_path / "file").open("rb") as file:
            transport, protocol = await running().create_connection(Recorder, sock=near)
            writing = asyncio.ensure_future(running().sendfile(transport, file))
            await writing
            assert await in_thread(far.recv, 100) == b"content"
            transport.close()
            with pytest.raises(RuntimeError, match="Transport is closing"):
                await running().sendfile(transport, file)
            await protocol.lost
        async with serving(certificates) as address:
            transport, protocol = await running().create_connection(
                Recorder, *address, ssl=certificates.client(), server_hostname="localhost"
            )
            with (tmp_path / "file").open("rb") as file:
                with pytest.raises(RuntimeError, match="fallback is disabled and native sendfile"):
                    await running().sendfile(transport, file, fallback=False)
            transport.close()
            await protocol.lost

    run(loop_factory, main)


def test_nothing_can_be_written_while_a_file_is_sent_and_a_reset_ends_it(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x" * (16 << 20))

    async def main() -> None:
        with tcp_pair() as (near, far), (tmp_path / "file").open("rb") as file:
            transport, protocol = await running().create_connection(Recorder, sock=near)
            sending = asyncio.ensure_future(running().sendfile(transport, file))
            await asyncio.sleep(0.02)
            assert not sending.done()
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                transport.write(b"between")
            reset(far)
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(sending, 5)
            transport.abort()
            await protocol.lost

    run(loop_factory, main)
