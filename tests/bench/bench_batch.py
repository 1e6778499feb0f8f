"""The Python side of the benchmark of batches: a small classifier of numpy's, for one item and for many.

An item is 16 floats of 32 bits as one binary; what comes back is the class, and how likely it is.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy  # noqa: E402

_random = numpy.random.default_rng(0)
_mean, _scale = numpy.float32(0.5), numpy.float32(2.0)
_layers = [
    (_random.standard_normal(shape, dtype=numpy.float32), numpy.zeros(shape[1], numpy.float32))
    for shape in ((16, 16), (16, 16), (16, 4))
]


def classify(items: list[bytes]) -> list[tuple[int, float]]:
    values = numpy.frombuffer(b"".join(items), dtype=numpy.float32).reshape(len(items), 16)
    values = numpy.clip((values - _mean) * _scale, -4, 4)
    for weights, bias in _layers[:-1]:
        values = numpy.maximum(values @ weights + bias, 0)
    weights, bias = _layers[-1]
    values = values @ weights + bias
    values = numpy.exp(values - values.max(axis=1, keepdims=True))
    values /= values.sum(axis=1, keepdims=True)
    return list(zip(values.argmax(axis=1).tolist(), values.max(axis=1).tolist()))


def classify_one(item: bytes) -> tuple[int, float]:
    return classify([item])[0]
