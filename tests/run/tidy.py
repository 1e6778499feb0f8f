"""Runs clang-tidy over the layers' sources, of which cmake --preset tidy has made build-tidy/compile_commands.json.

The files of a layer are read as one, for most of what each costs is in the headers that they share. A layer in which
something is found, or that is no valid program as one (two files may use one name for different things), is read again
file by file, and that is what counts.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build-tidy"
JOBS = int(os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "0")) or os.cpu_count() or 1


def options(command: str) -> list[str]:
    """What a command line says of the language, the macros and the places of headers."""
    found: list[str] = []
    words = iter(shlex.split(command)[1:])
    for word in words:
        if word in ("-isystem", "-I", "-D"):
            found += [word + next(words)]
        elif word.startswith(("-D", "-I", "-std=", "-f", "-W")):
            found += [word]
    return found


def tidy(source: Path, flags: list[str], *more: str) -> tuple[int, str]:
    command = ["clang-tidy", "--quiet", *more, str(source), "--", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout


def main() -> int:
    layers: dict[str, dict[Path, list[str]]] = defaultdict(dict)
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        source = Path(entry["file"])
        if source.parent.parent == ROOT / "cnode":
            layers[source.parent.name][source] = options(entry["command"])

    def together(layer: str) -> bool:
        sources = layers[layer]
        one = BUILD / "together" / f"{layer}.cpp"
        one.parent.mkdir(exist_ok=True)
        one.write_text("".join(f'#include "{source}"  // NOLINT\n' for source in sorted(sources)))
        flags = list(dict.fromkeys(flag for each in sources.values() for flag in each))
        code, _ = tidy(one, flags, r"--header-filter=/cnode/[a-z]+/[a-z_]+\.[ch]pp$")
        return code == 0

    with ThreadPoolExecutor(JOBS) as pool:
        largest_first = sorted(layers, key=lambda layer: -len(layers[layer]))
        clean = dict(zip(largest_first, pool.map(together, largest_first)))
        apart = [
            item for layer in largest_first if not clean[layer] for item in layers[layer].items()
        ]
        results = list(pool.map(lambda item: tidy(*item), apart))
    for _, output in results:
        print(output, end="")
    print(f"as one: {', '.join(layer for layer in layers if clean[layer])}")
    return 1 if any(code for code, _ in results) or not layers else 0


if __name__ == "__main__":
    sys.exit(main())
