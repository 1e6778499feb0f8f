#include "cnode/py/integer.hpp"

#include "cnode/py/error.hpp"

namespace py {

#if PY_VERSION_HEX >= 0x030D0000

namespace {
constexpr int kLayout = Py_ASNATIVEBYTES_LITTLE_ENDIAN | Py_ASNATIVEBYTES_UNSIGNED_BUFFER;

Ref magnitude_from(const std::uint8_t* bytes, std::size_t size) {
  return check(PyLong_FromUnsignedNativeBytes(bytes, size, kLayout));
}

void magnitude_to(PyObject* number, std::uint8_t* out, std::size_t room) {
  check_status(PyLong_AsNativeBytes(number, out, static_cast<Py_ssize_t>(room), kLayout) < 0 ? -1
                                                                                             : 0);
}
}  // namespace

std::size_t integer_byte_room(PyObject* non_negative) {
  const Py_ssize_t room = PyLong_AsNativeBytes(non_negative, nullptr, 0, kLayout);
  check_status(room < 0 ? -1 : 0);
  return static_cast<std::size_t>(room);
}

#else

namespace {
Ref magnitude_from(const std::uint8_t* bytes, std::size_t size) {
  return check(_PyLong_FromByteArray(bytes, size, /*little_endian=*/1, /*is_signed=*/0));
}

void magnitude_to(PyObject* number, std::uint8_t* out, std::size_t room) {
  auto* digits = reinterpret_cast<PyLongObject*>(number);
  check_status(_PyLong_AsByteArray(digits, out, room, /*little_endian=*/1, /*is_signed=*/0));
}
}  // namespace

std::size_t integer_byte_room(PyObject* non_negative) {
  const std::size_t bits = _PyLong_NumBits(non_negative);
  if (bits == static_cast<std::size_t>(-1) && PyErr_Occurred() != nullptr) throw_fetched();
  return bits / 8 + 1;
}

#endif

Ref integer_from_bytes(const std::uint8_t* bytes, std::size_t size, bool negative) {
  Ref magnitude = magnitude_from(bytes, size);
  if (!negative) return magnitude;
  return check(PyNumber_Negative(magnitude.get()));
}

std::size_t integer_to_bytes(PyObject* non_negative, std::uint8_t* out, std::size_t room) {
  magnitude_to(non_negative, out, room);
  while (room > 0 && out[room - 1] == 0) --room;
  return room;
}

}  // namespace py
