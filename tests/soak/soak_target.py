"""What the soak calls."""

import time

import erlang
from erlang import _native


def same(value):
    return value


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class Adder(erlang.GenServer):
    """Ends by itself, should its BEAM be killed before it ends it: even if the call that starts it is cancelled."""

    def init(self):
        self.total = 0
        loop = _native.event_loop()
        loop.call_soon_threadsafe(loop.call_later, 10, self.expire)

    def expire(self):
        if hasattr(self, "pid"):
            erlang.send(self.pid, "expire")

    def handle_call(self, request, sender):
        self.total += request[1]
        return self.total

    def handle_info(self, message):
        raise erlang.Exit("expired")


def server():
    return Adder.start()
