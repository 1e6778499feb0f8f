"""Writes the Debian package's generated documents: the manual page, from what the program says of itself, and the changelog.

    documents.py PROGRAM SOURCE-TREE DIRECTORY

SOURCE_DATE_EPOCH is their date, so that two builds of one tree are the same.
"""

from __future__ import annotations

import email.utils
import gzip
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

MAINTAINER = "Sidewinder maintainers <maintainers@users.noreply.h-seed-50239a53.example>"
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", str(int(time.time()))))


def said_by(program: str, option: str) -> str:
    done = subprocess.run([program, option], check=True, capture_output=True, text=True)
    return done.stdout


def roff(text: str) -> str:
    """Plain text as troff takes it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def settings(reference: str) -> list[tuple[str, str, str]]:
    """Flag, default and meaning of each row of the table that --print-reference prints."""
    rows = []
    for line in reference.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) >= 4 and cells[0].startswith("`"):
            flag = "--" + cells[0].strip("`")
            rows.append((flag, cells[-2].strip("`"), cells[-1].replace("`", "")))
    return rows


def manual(program: str, version: str) -> str:
    date = time.strftime("%Y-%m-%d", time.gmtime(EPOCH))
    page = [
        f'.TH SIDEWINDER 1 "{date}" "sidewinder {version}"',
        ".SH NAME",
        "sidewinder \\- Python as a node of an Erlang cluster",
        ".SH SYNOPSIS",
        ".B sidewinder \\-\\-name",
        ".I NAME@HOST",
        "[\\fIsetting\\fR]...",
        ".SH DESCRIPTION",
        roff(
            "Runs Python in a process that joins a BEAM cluster as a hidden node. Each setting is a flag, an environment"
            " variable (SIDEWINDER_WORKERS for --workers) and a key of the file that --config names."
        ),
        ".SH SETTINGS",
    ]
    rows = settings(said_by(program, "--print-reference"))
    if not rows:
        raise SystemExit("documents.py: no settings in what --print-reference prints")
    for flag, default, meaning in rows:
        text = meaning + (f" [{default}]" if default else "")
        page += [".TP", f".B {roff(flag)}", roff(text)]
    page += [
        ".SH EXIT STATUS",
        ".TP\n.B 0\ntold to stop; accepted calls were answered",
        ".TP\n.B 1\na setting is wrong, or cannot be had",
        ".TP\n.B 2\nthe command line cannot be read",
        ".TP\n.B 3\nepmd has another node of that name",
        ".TP\n.B 4\na second signal: stopped at once",
        ".SH FILES",
        ".TP\n.I /etc/sidewinder/sidewinder.toml\nsettings of the service",
        ".TP\n.I /etc/sidewinder/cookie\nits cookie, which only root may read",
        ".SH SEE ALSO",
        ".BR erl (1),",
        ".BR epmd (1),",
        ".BR systemctl (1)",
    ]
    return "\n".join(page) + "\n"


def changelog(tree: Path, version: str) -> str:
    text = (tree / "CHANGELOG.md").read_text()
    section = re.split(r"^## ", text, flags=re.MULTILINE)[1]
    items = re.findall(r"^- (.*(?:\n  .*)*)", section, flags=re.MULTILINE)
    lines = [f"sidewinder ({version}) unstable; urgency=medium", ""]
    for item in items:
        text = " ".join(item.split()).replace("`", "")
        lines += textwrap.wrap(text, 76, initial_indent="  * ", subsequent_indent="    ")
    lines += ["", f" -- {MAINTAINER}  {email.utils.formatdate(EPOCH)}", ""]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text.encode())


def main() -> None:
    program, tree, directory = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    version = said_by(program, "--version").split()[1]
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / "sidewinder.1.gz", manual(program, version))
    write(directory / "changelog.gz", changelog(tree, version))


if __name__ == "__main__":
    main()
