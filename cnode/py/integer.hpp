// Integers of any size as little-endian bytes and back: the one part of CPython's int that changed
// names.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cnode/py/ref.hpp"

namespace py {

// The int whose magnitude stands in `bytes`, least significant first. Throws py::Error (no memory).
Ref integer_from_bytes(const std::uint8_t* bytes, std::size_t size, bool negative);

// Room enough for the magnitude of a non-negative int; at most a few bytes more than it takes.
std::size_t integer_byte_room(PyObject* non_negative);

// Writes the magnitude into `room` = integer_byte_room() bytes, least significant first; returns
// how many count.
std::size_t integer_to_bytes(PyObject* non_negative, std::uint8_t* out, std::size_t room);

// The value of an exact int of one digit, which is what most are; false for longer ones.
inline bool one_digit(PyObject* exact_int, long long& value) {
  auto* number = reinterpret_cast<PyLongObject*>(exact_int);
#if PY_VERSION_HEX >= 0x030C0000
  if (PyUnstable_Long_IsCompact(number) == 0) return false;
  value = PyUnstable_Long_CompactValue(number);
#else
  const Py_ssize_t size = Py_SIZE(number);
  if (size < -1 || size > 1) return false;
  value = size == 0 ? 0 : size * static_cast<long long>(number->ob_digit[0]);
#endif
  return true;
}

}  // namespace py
