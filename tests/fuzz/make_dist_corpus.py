#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets frame, handshake, control and epmd: one of every message there is.

Run it after a change of the protocol's parsers and commit what it writes: tests/fuzz/make_dist_corpus.py
"""

import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"


def atom(name: str) -> bytes:
    text = name.encode()
    return bytes([119, len(text)]) + text


def small(value: int) -> bytes:
    return bytes([97, value])


def pid(node: str, number: int) -> bytes:
    return b"X" + atom(node) + struct.pack(">III", number, 0, 77)


def ref(node: str, *words: int) -> bytes:
    return (
        b"Z"
        + struct.pack(">H", len(words))
        + atom(node)
        + struct.pack(f">{len(words) + 1}I", 77, *words)
    )


def tup(*elements: bytes) -> bytes:
    return bytes([104, len(elements)]) + b"".join(elements)


def lst(*elements: bytes) -> bytes:
    return b"l" + struct.pack(">I", len(elements)) + b"".join(elements) + b"j" if elements else b"j"


FROM = pid("beam@host", 100)
TO = pid("py@host", 7)
REF = ref("beam@host", 1, 2, 3)
ALIAS = ref("beam@host", 9, 8, 7, 6, 5)
NAME = atom("server")
NONE = atom("")
REASON = tup(atom("badarg"), b"j")
TOKEN = tup(small(1), atom("label"))
MFA = tup(atom("math"), atom("sqrt"), small(1))
OPTIONS = lst(tup(atom("reply"), atom("error_only")), atom("monitor"))
MESSAGE = tup(atom("call"), b"m" + struct.pack(">I", 3) + b"abc")

CONTROLS = {
    "link": (tup(small(1), FROM, TO), b""),
    "send": (tup(small(2), NONE, TO), MESSAGE),
    "exit": (tup(small(3), FROM, TO, REASON), b""),
    "node_link": (tup(small(5)), b""),
    "reg_send": (tup(small(6), FROM, NONE, NAME), MESSAGE),
    "group_leader": (tup(small(7), FROM, TO), b""),
    "exit2": (tup(small(8), FROM, TO, REASON), b""),
    "send_tt": (tup(small(12), NONE, TO, TOKEN), MESSAGE),
    "exit_tt": (tup(small(13), FROM, TO, TOKEN, REASON), b""),
    "reg_send_tt": (tup(small(16), FROM, NONE, NAME, TOKEN), MESSAGE),
    "exit2_tt": (tup(small(18), FROM, TO, TOKEN, REASON), b""),
    "monitor_p": (tup(small(19), FROM, NAME, REF), b""),
    "demonitor_p": (tup(small(20), FROM, TO, REF), b""),
    "monitor_p_exit": (tup(small(21), NAME, TO, REF, REASON), b""),
    "send_sender": (tup(small(22), FROM, TO), MESSAGE),
    "send_sender_tt": (tup(small(23), FROM, TO, TOKEN), MESSAGE),
    "payload_exit": (tup(small(24), FROM, TO), REASON),
    "payload_exit_tt": (tup(small(25), FROM, TO, TOKEN), REASON),
    "payload_exit2": (tup(small(26), FROM, TO), REASON),
    "payload_exit2_tt": (tup(small(27), FROM, TO, TOKEN), REASON),
    "payload_monitor_p_exit": (tup(small(28), FROM, TO, REF), REASON),
    "spawn_request": (tup(small(29), REF, FROM, FROM, MFA, OPTIONS), lst(small(16))),
    "spawn_request_tt": (tup(small(30), REF, FROM, FROM, MFA, OPTIONS, TOKEN), lst(small(16))),
    "spawn_reply": (tup(small(31), REF, TO, small(2), FROM), b""),
    "spawn_reply_error": (tup(small(31), REF, TO, small(0), atom("notsup")), b""),
    "spawn_reply_tt": (tup(small(32), REF, TO, small(2), FROM, TOKEN), b""),
    "alias_send": (tup(small(33), FROM, ALIAS), MESSAGE),
    "alias_send_tt": (tup(small(34), FROM, ALIAS, TOKEN), MESSAGE),
    "unlink_id": (tup(small(35), small(5), FROM, TO), b""),
    "unlink_id_ack": (tup(small(36), b"n\x08\x00" + b"\xff" * 8, FROM, TO), b""),
    "altact_pid": (tup(small(37), small(0), FROM, TO), MESSAGE),
    "altact_alias": (tup(small(37), small(4), FROM, ALIAS), MESSAGE),
    "altact_name_token": (tup(small(37), small(10), FROM, NAME, TOKEN), MESSAGE),
    "unknown": (tup(small(99), FROM, TO), MESSAGE),
}

WHOLE = b"\x83D\x00"


def frames(mode: int, *bodies: bytes) -> bytes:
    return bytes([mode]) + b"".join(struct.pack(">H", len(body)) + body for body in bodies)


def first(sequence: int, fragment: int, data: bytes) -> bytes:
    return b"\x83E" + struct.pack(">QQ", sequence, fragment) + b"\x00" + data


def following(sequence: int, fragment: int, data: bytes) -> bytes:
    return b"\x83F" + struct.pack(">QQ", sequence, fragment) + data


SEND = CONTROLS["send"][0]
LONG = b"m" + struct.pack(">I", 6000) + b"x" * 6000

FRAMES = {
    "ticks": frames(0, b"", b"", b""),
    "whole": frames(0, WHOLE + SEND + MESSAGE, b"", WHOLE + CONTROLS["link"][0]),
    "pass_through": frames(1, b"p\x83" + SEND + b"\x83" + MESSAGE),
    "fragments": frames(
        0, first(1, 3, SEND), following(1, 2, MESSAGE[:4]), following(1, 1, MESSAGE[4:])
    ),
    "interleaved": frames(
        0, first(1, 2, SEND), first(2, 2, SEND), following(2, 1, MESSAGE), following(1, 1, MESSAGE)
    ),
    "too_large": frames(
        0, first(1, 3, SEND), following(1, 2, LONG[:3000]), following(1, 1, LONG[3000:])
    ),
    "too_many": frames(2, *[first(n, 2, SEND) for n in range(9)]),
    "atom_cache": frames(0, b"\x83D\x01\x00\x00" + SEND),
}

BEAM_FLAGS = 0xD07DF7FBC


def name_packet(name: bytes, flags: int = BEAM_FLAGS) -> bytes:
    return b"N" + struct.pack(">QIH", flags, 77, len(name)) + name


def challenge_packet(name: bytes) -> bytes:
    return b"N" + struct.pack(">QIIH", BEAM_FLAGS, 42, 77, len(name)) + name


def talk(mode: int, *packets: bytes) -> bytes:
    return bytes([mode]) + b"".join(bytes([1, len(packet)]) + packet for packet in packets)


REPLY = b"r" + struct.pack(">I", 7) + bytes(16)
ACK = b"a" + bytes(16)

HANDSHAKES = {
    "accept_ok": talk(1, name_packet(b"beam@host"), REPLY),
    "accept_simultaneous": talk(1 | 1 << 3, name_packet(b"beam@host"), REPLY),
    "accept_nok": talk(1 | 2 << 3, name_packet(b"beam@host")),
    "accept_not_allowed": talk(1 | 3 << 3, name_packet(b"beam@host")),
    "accept_alive": talk(1 | 4 << 3, name_packet(b"beam@host"), b"strue", REPLY),
    "accept_name_me": talk(1, name_packet(b"host", BEAM_FLAGS | 1 << 33)),
    "accept_old": talk(1, b"n\x00\x05" + struct.pack(">I", 0x7FBC) + b"old@host"),
    "dial_ok": talk(0, b"sok", challenge_packet(b"beam@host"), ACK),
    "dial_simultaneous": talk(4, b"sok_simultaneous", challenge_packet(b"other@host"), ACK),
    "dial_alive": talk(0, b"salive", challenge_packet(b"beam@host"), ACK),
    "dial_nok": talk(0, b"snok"),
    "dial_named": talk(
        2,
        b"snamed:" + struct.pack(">H", 9) + b"1G6X@host" + struct.pack(">I", 5),
        challenge_packet(b"beam@host"),
        ACK,
    ),
}

EPMD = {
    "alive_x": b"v\x00\x65\x00\x00\x07",
    "alive": b"y\x00\x00\x03",
    "alive_taken": b"v\x01\x00\x00\x00\x63",
    "port": b"w\x00\xa0\x28\x4d\x00\x00\x06\x00\x05\x00\x02py\x00\x00",
    "port_extra": b"w\x00\xa0\x28\x4d\x00\x00\x06\x00\x05\x00\x02py\x00\x03abc",
    "port_unknown": b"w\x01",
    "ask_alive": b"x\x10\x68\x4d\x00\x00\x06\x00\x05\x00\x02py\x00\x03abc",
    "ask_port": b"zpy",
    "ask_names": b"n",
}


def write(target: str, seeds: dict[str, bytes]) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        (folder / name).write_bytes(seed)


write("control", {name: control + payload for name, (control, payload) in CONTROLS.items()})
write("frame", FRAMES)
write("handshake", HANDSHAKES)
write("epmd", EPMD)
