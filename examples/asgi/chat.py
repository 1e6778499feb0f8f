"""A chat over WebSockets whose rooms reach across nodes; chat.erl is its other half.

    client ── WebSocket ──▶ front ── py_asgi ──▶ talk(), on any node of the pool
                                                  │ chat_say          ▲ {said, Text}
                                                  ▼                   │
                                      the room, a group of `pg` on the BEAM: one process a member
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs

import erlang


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await talk(scope, receive, send)
    elif scope["type"] == "http":
        page = b"a chat: connect a WebSocket to /ROOM?name=YOU\n"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": page})


async def talk(scope: Any, receive: Any, send: Any) -> None:
    room = scope["path"].strip("/") or "lobby"
    name = parse_qs(scope["query_string"].decode()).get("name", ["somebody"])[0]
    await receive()
    await send({"type": "websocket.accept"})
    async with erlang.Process() as member:
        await erlang.async_call("chat_join", room, member.pid)
        hearing = asyncio.create_task(hear(member, send))
        try:
            while (message := await receive())["type"] == "websocket.receive":
                said = f"{name}@{erlang.node()}: {message.get('text')}"
                await erlang.async_call("chat_say", room, said)
        finally:
            hearing.cancel()


async def hear(member: erlang.Process, send: Any) -> None:
    """What is said in the room, this member's own words too."""
    while True:
        _, said = await member.receive(("said", ...))
        await send({"type": "websocket.send", "text": said})
