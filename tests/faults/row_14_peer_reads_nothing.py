"""Row 14: a peer asks for much, sends its ticks, and reads nothing."""

import contextlib
import sys
import threading

from harness import HERE, Row, World, at_most, equal, expect, main, until

sys.path.insert(0, str(HERE.parent / "hostile"))

from raw_peer import REG_SEND, Atom, RawPeer  # noqa: E402

ROW = Row(
    14,
    "a peer that reads nothing and ticks on",
    "dropped once 1 GiB waits for it, the memory given back; others unaffected",
    quick=False,
)
ANSWER = 64 << 20
CALLS = 20


def body(world: World) -> str:
    host = world.here
    node, beam = host.node(None, "--workers", "2"), host.beam()
    beam.ping(node)
    before = node.status("VmRSS")
    deaf = RawPeer("127.0.0.1", node.port, "deaf@127.0.0.1").connect(world.cookie)
    stop = threading.Event()
    with contextlib.closing(deaf):

        def tick() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(1.0):
                    deaf.tick()

        ticker = threading.Thread(target=tick)
        ticker.start()
        beam.ask(
            f"watcher:load(other, 4, fun() -> timer:tc(fun() -> watcher:call({node}, {{call, math, sqrt, [16.0]}}) end) end,"
            " fun({T, {ok, 4.0}}) when T < 1000000 -> good; (Other) -> Other end)"
        ).is_("ok")
        request = (Atom("call"), Atom("faulty"), Atom("zeros"), [ANSWER])
        try:
            for number in range(1, CALLS + 1):
                call = (Atom("$gen_call"), (deaf.pid(), deaf.ref()), request)
                deaf.send_control((REG_SEND, deaf.pid(), Atom(""), Atom("py")), call)
                until(
                    "it has run", lambda: node.metric("inflight") + node.metric("queue_depth") == 0
                )
                if node.peers() == 1:
                    break
        except OSError:
            number -= 1
        finally:
            stop.set()
            ticker.join()
    equal(node.peers(), 1, "peers left")
    node.wait_line("deaf@127.0.0.1 is down: the peer has stopped reading")
    beam.ask("watcher:stopped(other)").like(r"^\[\{good,\d+\}\]$")
    until("its memory is given back", lambda: node.status("VmRSS") - before < 200 * 1024)
    equal(beam.seen("down", node), None, "the other link")
    return f"dropped with {number * ANSWER >> 20} MB on their way"


if __name__ == "__main__":
    main(ROW, body)
