"""`python -m sidewinder`: the same node as the program `sidewinder`, in this interpreter with its packages."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import io
import signal
import sys

try:
    from sidewinder import _program
except ImportError as error:  # a checkout where pip has not built it, or a library that is missing
    sys.exit(f"sidewinder: python: {error}")


class _Parts(importlib.abc.MetaPathFinder):
    """Finds codec, loop and web server in the node's own shared object: all three share what they know.

    Alone, each package loads one of its own.
    """

    names = ("erlang._native", "erlang_loop._core", "erlang_web._http")

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.names:
            return None
        file = str(_program.__file__)
        loader = importlib.machinery.ExtensionFileLoader(fullname, file)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


def _put_together() -> None:
    for name in _Parts.names:
        if name in sys.modules:
            sys.exit(
                f"sidewinder: python: {name} was imported before the node started (sitecustomize, a .pth file?)"
            )
    sys.meta_path.insert(0, _Parts())


def main() -> int:
    """Run the node and return its exit code."""
    # The node has its own answer to a signal; until it listens, Ctrl-C ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(write_through=True)  # nothing printed is lost, however the node ends
    _put_together()
    return _program.run(["sidewinder", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
