"""aiohttp's own run_app on our loop, as its users write it; --tls CERTIFICATE KEY serves https."""

from __future__ import annotations

import argparse
import asyncio
import socket
import ssl

from aiohttp import WSMsgType, web

import erlang_loop


async def where(request: web.Request) -> web.Response:
    loop = type(asyncio.get_running_loop()).__name__
    return web.json_response({"loop": loop, "secure": request.secure})


async def echo(request: web.Request) -> web.StreamResponse:
    """Sends the body back while it arrives."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for piece in request.content.iter_any():
        await response.write(piece)
    await response.write_eof()
    return response


async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(request.app["file"])


async def slow(request: web.Request) -> web.Response:
    await asyncio.sleep(0.3)
    return web.Response(text="finished")


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(heartbeat=10)
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data.upper())
        elif message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data[::-1])
    return ws


async def lifetime(app: web.Application):  # type: ignore[no-untyped-def]
    print("started", flush=True)
    yield
    await asyncio.sleep(0.001)
    print("cleaned up", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tls", nargs=2)
    parser.add_argument("--file", default=__file__)
    options = parser.parse_args()
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*options.tls)
    app = web.Application(client_max_size=100 << 20)
    app["file"] = options.file
    app.cleanup_ctx.append(lifetime)
    app.add_routes([web.get("/where", where), web.post("/echo", echo), web.get("/file", file)])
    app.add_routes([web.get("/slow", slow), web.get("/ws", websocket)])
    web.run_app(
        app,
        sock=socket.create_server(("127.0.0.1", 0)),
        ssl_context=context,
        loop=erlang_loop.new_event_loop(),
    )
