"""Takes fenced blocks out of a page: page.py FILE SECTION INFO prints those whose fence says ```INFO, in that section."""

import sys
from pathlib import Path


def blocks(text: str, section: str, info: str) -> list[str]:
    found: list[str] = []
    inside, fence = False, None
    for line in text.splitlines():
        if fence is None and line.startswith("## "):
            inside = line == f"## {section}"
        elif line.startswith("```"):
            if fence is None:
                fence = line[3:].strip()
                found += [""] if inside and fence == info else []
            else:
                fence = None
        elif inside and fence == info:
            found[-1] += line + "\n"
    return found


if __name__ == "__main__":
    page, section, info = sys.argv[1:]
    texts = blocks(Path(page).read_text(encoding="utf-8"), section, info)
    if not texts:
        sys.exit(f"{page}: no block ```{info} below ## {section}")
    print("\n".join(texts), end="")
