"""A bare echo on our loop, by websockets or by streams; --tls CERTIFICATE KEY makes it secure."""

from __future__ import annotations

import argparse
import asyncio
import ssl

from websockets.asyncio.server import ServerConnection, serve

import erlang_loop


async def main(kind: str, context: ssl.SSLContext | None) -> None:
    async def messages(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = (
        await serve(messages, "127.0.0.1", 0, ssl=context, compression=None)
        if kind == "websockets"
        else await asyncio.start_server(streams, "127.0.0.1", 0, ssl=context)
    )
    print("running on 127.0.0.1:%d" % list(server.sockets)[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["websockets", "streams"])
    parser.add_argument("--tls", nargs=2)
    options = parser.parse_args()
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*options.tls)
    erlang_loop.run(main(options.kind, context))
