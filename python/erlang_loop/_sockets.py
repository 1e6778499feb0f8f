"""The socket coroutines of ErlangEventLoop, over what cnode/loop/sockets.cpp does at once or promises with a future.

What is not exactly a socket.socket (a subclass may have methods of its own, or none that work here) is asyncio's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

_Standard: Any = asyncio.SelectorEventLoop


# Later versions refuse a second transport for a descriptor.
_ONE_OWNER = "_ensure_fd_no_transport" in _Standard._make_datagram_transport.__code__.co_names


class SocketCalls(_Standard):  # type: ignore[misc]
    """What a loop does with sockets itself, and its transports of datagrams."""

    def _make_datagram_transport(
        self, sock: Any, protocol: Any, address: Any = None, waiter: Any = None, extra: Any = None
    ) -> Any:
        if type(sock) is not socket.socket:
            return super()._make_datagram_transport(sock, protocol, address, waiter, extra)
        if _ONE_OWNER:
            self._ensure_fd_no_transport(sock)
        return self._new_datagram_transport(sock, protocol, address, waiter, extra)

    async def sock_recv(self, sock: Any, n: int) -> bytes:
        """Receive at most `n` bytes; none at the end of the stream.

        Raises ValueError in debug mode for a socket that blocks, OSError as sock.recv().
        """
        got: Any = self._recv_now(sock, n)
        if type(got) is bytes:
            return got
        if got is NotImplemented:
            got = super().sock_recv(sock, n)
        try:
            result: bytes = await got
            return result
        except BaseException:
            self._stop_waiting(sock, got)
            del got  # or the exception would hold its own future
            raise

    async def sock_recv_into(self, sock: Any, buf: Any) -> int:
        """Receive into a writable buffer; returns how many bytes."""
        got: Any = self._recv_into_now(sock, buf)
        if type(got) is int:
            return got
        if got is NotImplemented:
            got = super().sock_recv_into(sock, buf)
        try:
            result: int = await got
            return result
        except BaseException:
            self._stop_waiting(sock, got)
            del got
            raise

    async def sock_recvfrom(self, sock: Any, bufsize: int) -> Any:
        """Receive one datagram of at most `bufsize` bytes; returns it and where it came from."""
        got = self._recvfrom_now(sock, bufsize)
        if type(got) is tuple:
            return got
        if got is NotImplemented:
            got = super().sock_recvfrom(sock, bufsize)
        try:
            return await got
        except BaseException:
            self._stop_waiting(sock, got)
            del got
            raise

    async def sock_recvfrom_into(self, sock: Any, buf: Any, nbytes: int = 0) -> Any:
        """Receive one datagram into a writable buffer; returns how many bytes, and where they came from."""
        got = self._recvfrom_into_now(sock, buf, nbytes)
        if type(got) is tuple:
            return got
        if got is NotImplemented:
            got = super().sock_recvfrom_into(sock, buf, nbytes)
        try:
            return await got
        except BaseException:
            self._stop_waiting(sock, got)
            del got
            raise

    async def sock_sendall(self, sock: Any, data: Any) -> None:
        """Send all of `data`. After an error nobody knows how much has left."""
        sent = self._sendall_now(sock, data)
        if sent is None:
            return
        if sent is NotImplemented:
            sent = super().sock_sendall(sock, data)
        try:
            await sent
        except BaseException:
            self._stop_waiting(sock, sent)
            del sent
            raise

    async def sock_sendto(self, sock: Any, data: Any, address: Any) -> int:
        """Send one datagram to `address`; returns how many bytes."""
        sent: Any = self._sendto_now(sock, data, address)
        if type(sent) is int:
            return sent
        if sent is NotImplemented:
            sent = super().sock_sendto(sock, data, address)
        try:
            result: int = await sent
            return result
        except BaseException:
            self._stop_waiting(sock, sent)
            del sent
            raise

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Connect to `address`, whose host may be a name."""
        connected = self._connect_now(sock, address)
        if connected is None:
            return
        if connected is NotImplemented:
            connected = super().sock_connect(sock, address)
        try:
            await connected
        except BaseException:
            self._stop_waiting(sock, connected)
            del connected
            raise

    async def sock_accept(self, sock: Any) -> Any:
        """Accept a connection; returns its socket, which does not block, and the peer's address."""
        got = self._accept_now(sock)
        if type(got) is tuple:
            return got
        if got is NotImplemented:
            got = super().sock_accept(sock)
        try:
            return await got
        except BaseException:
            self._stop_waiting(sock, got)
            del got
            raise

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Resolve a name, in a thread; what is a number already is answered without one.

        Raises socket.gaierror as socket.getaddrinfo().
        """
        found = self._getaddrinfo_now(host, port, family, type, proto, flags)
        if found is not None:
            return found
        return await super().getaddrinfo(
            host, port, family=family, type=type, proto=proto, flags=flags
        )
