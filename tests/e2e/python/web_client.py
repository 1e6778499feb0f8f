"""A WebSocket client in a process of its own: talks to the web suite's application and says what it heard.

python web_client.py URL CONNECTIONS MESSAGES
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import connect


async def talk(url: str, name: str, count: int) -> int:
    """How many of the messages came back as they should, in their order. Never waits before it says the next."""
    said = [f"{name} says {number}" for number in range(count)]
    async with connect(url) as socket, asyncio.TaskGroup() as group:
        group.create_task(say(socket.send, said))
        heard = [await socket.recv() for _ in said]
    return sum(one == other.upper() for one, other in zip(heard, said, strict=True))


async def say(send: Callable[[str], Awaitable[None]], messages: list[str]) -> None:
    for message in messages:
        await send(message)


async def main(url: str, connections: int, messages: int) -> None:
    async with asyncio.timeout(60):
        talks = (talk(url, f"client {number}", messages) for number in range(connections))
        print(await asyncio.gather(*talks))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
