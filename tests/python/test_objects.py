"""References to objects, and exceptions with a reason of their own, without a node."""

from __future__ import annotations

import pickle

import pytest

import erlang
from erlang.exceptions import BadReference, NotAllowed, Refused
from erlang.terms import Atom

REFERENCE = (Atom("$py_object"), Atom("py@host"), 1, 1, "list")


def test_a_reference_is_an_error_where_there_is_no_node() -> None:
    for term in (REFERENCE, [REFERENCE], {"key": (1, REFERENCE)}):
        with pytest.raises(BadReference) as caught:
            erlang.decode(erlang.encode(term))
        assert caught.value.why == "other_node"


def test_what_only_looks_like_a_reference_is_an_error_too() -> None:
    with pytest.raises(BadReference) as caught:
        erlang.decode(erlang.encode((Atom("$py_object"), 1, 2, 3, 4)))
    assert caught.value.why == "unknown"


@pytest.mark.parametrize(
    "term",
    [
        (Atom("$py_object"), 1, 2, 3),
        (Atom("$py_object"), 1, 2, 3, 4, 5),
        ("$py_object", 1, 2, 3, 4),
        (Atom("$py_context"), Atom("py@host"), 1, 1, Atom("auto")),
        [Atom("$py_object"), 1, 2, 3, 4],
    ],
)
def test_every_other_term_stays_what_it_is(term: object) -> None:
    assert erlang.decode(erlang.encode(term)) == term


def test_an_exception_carries_the_reason_that_the_caller_is_told() -> None:
    assert Refused((Atom("no"), 1)).reason == (Atom("no"), 1)
    assert NotAllowed("os", "getpid").reason == (Atom("not_allowed"), ("os", "getpid"))
    assert BadReference("released", "it is gone").reason == (Atom("bad_ref"), Atom("released"))
    assert str(NotAllowed("os", "getpid")) == "peers may not call os.getpid"
    for error in (Refused(1), NotAllowed("os", "getpid"), BadReference("unknown", "no")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.reason, str(again)) == (type(error), error.reason, str(error))
