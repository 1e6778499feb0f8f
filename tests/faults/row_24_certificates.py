"""Row 24: the node's certificate is renewed, the authority replaced, and a peer's certificate runs out."""

import pathlib
import subprocess
import time

from harness import Beam, Host, Needs, Row, World, equal, expect, main

ROW = Row(
    24,
    "certificates are renewed, the authority is replaced, a peer's has expired",
    "new handshakes use the new files, no restart; links that stand live on; who has expired is refused with the reason",
    needs=Needs.FAKETIME,
)
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


class Authority:
    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self.folder = folder
        self.pem, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        run(
            "openssl",
            "req",
            "-x509",
            *CURVE,
            "-days",
            "30",
            "-subj",
            f"/CN={name}",
            "-keyout",
            self.key,
            "-out",
            self.pem,
        )

    def issue(self, name: str, days: int, issued: str = "now") -> None:
        """NAME.pem and NAME.key, signed at a certain time, put into place by renaming."""
        new = self.folder / f"{name}.new"
        key, request, names = (new.with_suffix(suffix) for suffix in (".newkey", ".csr", ".ext"))
        run("openssl", "req", *CURVE, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        names.write_text("subjectAltName=IP:127.0.0.1,DNS:127.0.0.1\n")
        run("faketime", issued, "openssl", "x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self.key,
            "-CAcreateserial", "-days", days, "-extfile", names, "-out", new)  # fmt: skip
        key.chmod(0o400)
        key.rename(self.folder / f"{name}.key")
        new.rename(self.folder / f"{name}.pem")


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    equal(done.returncode, 0, f"{command[:3]}: {done.stderr}")


def secure_beam(host: Host, folder: pathlib.Path, name: str, authority: Authority) -> Beam:
    files = (
        f'{{certfile, "{folder}/{name}.pem"}}, {{keyfile, "{folder}/{name}.key"}}, '
        f'{{cacertfile, "{authority.pem}"}}, {{verify, verify_peer}}'
    )
    config = folder / f"{name}.config"
    config.write_text(
        f"[{{server, [{{fail_if_no_peer_cert, true}}, {files}]}}, {{client, [{files}]}}].\n"
    )
    return host.beam(name, options=["-proto_dist", "inet_tls", "-ssl_dist_optfile", str(config)])


def body(world: World) -> str:
    host, folder = world.here, world.folder
    first = Authority(folder, "first")
    authorities = folder / "authorities.pem"
    authorities.write_text(first.pem.read_text())
    first.issue("node", 10)
    node = host.node(
        "secure",
        "--tls-cert", str(folder / "node.pem"), "--tls-key", str(folder / "node.key"), "--tls-ca", str(authorities),
    )  # fmt: skip
    first.issue("old", 10)
    old = secure_beam(host, folder, "old", first)
    old.ping(node)

    def days_left() -> int:
        return round((node.metric("cert_expiry_seconds") - time.time()) / 86400)

    def works(beam: Beam) -> None:
        beam.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}")

    equal(days_left(), 10, "days left of the certificate")
    first.issue("node", 20)
    first.issue("second", 10)
    secure_beam(host, folder, "second", first).ping(node)
    equal(days_left(), 20, "days left of the renewed certificate")
    works(old)

    first.issue("expired", 1, issued="3 days ago")
    failures = node.metric("handshake_failures_total")
    secure_beam(host, folder, "expired", first).ping(node, "pang")
    node.wait_line("TLS: its certificate is refused: certificate has expired")
    expect(node.metric("handshake_failures_total") > failures, "the refusal is not counted")

    # The authority is replaced: both are trusted for a while, then the new one alone.
    later = Authority(folder, "later")
    new = folder / "authorities.new"
    new.write_text(later.pem.read_text())
    later.issue("node", 25)
    new.rename(authorities)
    later.issue("third", 10)
    secure_beam(host, folder, "third", later).ping(node)
    equal(days_left(), 25, "days left of the certificate of the new authority")
    first.issue("fourth", 10)
    secure_beam(host, folder, "fourth", first).ping(node, "pang")
    works(old)
    equal(old.seen("down", node), None, "the first link")
    equal(node.peers(), 3, "links")
    return "renewed and of a new authority, each from the next handshake on; the first link stood through all of it"


if __name__ == "__main__":
    main(ROW, body)
