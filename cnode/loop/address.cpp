#include "cnode/loop/address.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

#include "cnode/py/integer.hpp"

namespace loop {
namespace {

// Numbers first: a tuple that is not whole yet holds null pointers, which its end passes over.
PyObject* host_and_port(int family, const void* host, in_port_t port, Py_ssize_t size) {
  char text[INET6_ADDRSTRLEN];
  if (inet_ntop(family, host, text, sizeof text) == nullptr)
    return PyErr_SetFromErrno(PyExc_OSError);
  PyObject* tuple = PyTuple_New(size);
  if (tuple == nullptr) return nullptr;
  PyObject* name = PyUnicode_FromString(text);
  PyTuple_SET_ITEM(tuple, 0, name);
  PyObject* number = PyLong_FromLong(ntohs(port));
  PyTuple_SET_ITEM(tuple, 1, number);
  if (name != nullptr && number != nullptr) return tuple;
  Py_DECREF(tuple);
  return nullptr;
}

PyObject* v6_object(const sockaddr_in6& address) {
  PyObject* tuple = host_and_port(AF_INET6, &address.sin6_addr, address.sin6_port, 4);
  if (tuple == nullptr) return nullptr;
  PyObject* flow = PyLong_FromUnsignedLong(ntohl(address.sin6_flowinfo));
  PyTuple_SET_ITEM(tuple, 2, flow);
  PyObject* scope = PyLong_FromUnsignedLong(address.sin6_scope_id);
  PyTuple_SET_ITEM(tuple, 3, scope);
  if (flow != nullptr && scope != nullptr) return tuple;
  Py_DECREF(tuple);
  return nullptr;
}

// A plain int from 0 to `most`.
bool number(PyObject* object, long long most, long long& value) {
  if (!PyLong_CheckExact(object)) return false;
  if (!py::one_digit(object, value)) {
    value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
  }
  return value >= 0 && value <= most;
}

// A host in digits, as inet_pton has it, and its port.
bool host_and_port(int family, PyObject* tuple, void* host, in_port_t& port) {
  PyObject* text = PyTuple_GET_ITEM(tuple, 0);
  long long value = 0;
  if (!PyUnicode_CheckExact(text) || !PyUnicode_IS_COMPACT_ASCII(text) ||
      !number(PyTuple_GET_ITEM(tuple, 1), 65535, value))
    return false;
  const auto* digits = static_cast<const char*>(PyUnicode_DATA(text));
  if (std::strlen(digits) != static_cast<std::size_t>(PyUnicode_GET_LENGTH(text))) return false;
  port = htons(static_cast<std::uint16_t>(value));
  return inet_pton(family, digits, host) == 1;
}

bool parse_v6(PyObject* tuple, Py_ssize_t count, sockaddr_in6& address) {
  long long flow = 0;
  long long scope = 0;
  if (count > 2 && !number(PyTuple_GET_ITEM(tuple, 2), 0xFFFFF, flow)) return false;
  if (count > 3 && !number(PyTuple_GET_ITEM(tuple, 3), UINT32_MAX, scope)) return false;
  address.sin6_family = AF_INET6;
  address.sin6_flowinfo = htonl(static_cast<std::uint32_t>(flow));
  address.sin6_scope_id = static_cast<std::uint32_t>(scope);
  return host_and_port(AF_INET6, tuple, &address.sin6_addr, address.sin6_port);
}

// A path ends with a zero, an abstract name begins with one.
bool parse_path(PyObject* path, sockaddr_un& address, socklen_t& size) {
  const auto length = static_cast<std::size_t>(PyBytes_GET_SIZE(path));
  const char* text = PyBytes_AS_STRING(path);
  const std::size_t end = length > 0 && text[0] != '\0' ? 1 : 0;
  if (length == 0 || length + end > sizeof address.sun_path) return false;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, text, length);
  size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length + end);
  return true;
}

bool parse_local(PyObject* object, sockaddr_un& address, socklen_t& size) {
  if (PyBytes_CheckExact(object)) return parse_path(object, address, size);
  if (!PyUnicode_CheckExact(object)) return false;
  PyObject* path = PyUnicode_EncodeFSDefault(object);
  if (path == nullptr) {
    PyErr_Clear();
    return false;
  }
  const bool parsed = parse_path(path, address, size);
  Py_DECREF(path);
  return parsed;
}

}  // namespace

PyObject* address_object(const sockaddr* address, socklen_t size) {
  if (size == 0) Py_RETURN_NONE;
  switch (address->sa_family) {
    case AF_INET: {
      const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
      return host_and_port(AF_INET, &v4->sin_addr, v4->sin_port, 2);
    }
    case AF_INET6:
      return v6_object(*reinterpret_cast<const sockaddr_in6*>(address));
    case AF_UNIX: {
      const auto* local = reinterpret_cast<const sockaddr_un*>(address);
      const std::size_t used = size - offsetof(sockaddr_un, sun_path);
      if (used > 0 && local->sun_path[0] == '\0')
        return PyBytes_FromStringAndSize(local->sun_path, static_cast<Py_ssize_t>(used));
      return PyUnicode_DecodeFSDefaultAndSize(
          local->sun_path, static_cast<Py_ssize_t>(strnlen(local->sun_path, used)));
    }
    default:
      return Py_BuildValue("(iy#)", static_cast<int>(address->sa_family), address->sa_data,
                           static_cast<Py_ssize_t>(size - offsetof(sockaddr, sa_data)));
  }
}

bool parse_address(int family, PyObject* object, sockaddr_storage& address, socklen_t& size) {
  address = {};
  if (family == AF_UNIX) return parse_local(object, reinterpret_cast<sockaddr_un&>(address), size);
  if (!PyTuple_CheckExact(object)) return false;
  const Py_ssize_t count = PyTuple_GET_SIZE(object);
  if (family == AF_INET && count == 2) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    v4.sin_family = AF_INET;
    size = sizeof v4;
    return host_and_port(AF_INET, object, &v4.sin_addr, v4.sin_port);
  }
  size = sizeof(sockaddr_in6);
  return family == AF_INET6 && count >= 2 && count <= 4 &&
         parse_v6(object, count, reinterpret_cast<sockaddr_in6&>(address));
}

}  // namespace loop
