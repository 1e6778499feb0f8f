"""Writes the seeds of fuzz_term into corpus/term: the golden terms that are short, one file each."""

from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "data" / "terms.tsv"
CORPUS = HERE / "corpus" / "term"


def main() -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, term = line.split("\t")[:2]
        if len(term) < 800:
            (CORPUS / name).write_bytes(bytes.fromhex(term))


if __name__ == "__main__":
    main()
