"""The web server of Sidewinder: ASGI and WSGI applications on an asyncio loop, with HTTP and WebSockets in C++.

`sidewinder serve module:app` is the program of it. From Python, under any asyncio loop:

    server = erlang_web.Server(erlang_web.Options(mounts=[erlang_web.Mount(prefix="", target="shop:app")]))
    await server.start()
    ...
    await server.stop(10)
"""

from erlang_web import _native  # isort: skip  # before all that imports the native part
from erlang_web._server import Mount, Options, Server, ServerError

del _native

__all__ = ["Mount", "Options", "Server", "ServerError"]
