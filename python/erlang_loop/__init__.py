"""ErlangEventLoop: a complete asyncio event loop in C++, for every program that runs on asyncio.

asyncio.run(main(), loop_factory=ErlangEventLoop)    # Python 3.12 and later
erlang_loop.run(main())                              # every version
"""

from erlang_loop._loop import ErlangEventLoop, _core
from erlang_loop._policy import ErlangEventLoopPolicy, install, new_event_loop, run, spawn_task

debug_counters = _core.debug_counters

__all__ = [
    "ErlangEventLoop",
    "ErlangEventLoopPolicy",
    "debug_counters",
    "install",
    "new_event_loop",
    "run",
    "spawn_task",
]
