#include "cnode/loop/resolve.hpp"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "cnode/loop/address.hpp"
#include "cnode/py/ref.hpp"

namespace loop {
namespace {

struct Request {
  std::string_view host;
  std::string port;
  bool has_port = false;
  addrinfo hints{};
};

struct Release {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using Answer = std::unique_ptr<addrinfo, Release>;

// The characters of a str or a bytes, up to its end; empty for others.
std::string_view text_of(PyObject* object) {
  std::string_view text;
  if (PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object))
    text = {static_cast<const char*>(PyUnicode_DATA(object)),
            static_cast<std::size_t>(PyUnicode_GET_LENGTH(object))};
  else if (PyBytes_CheckExact(object))
    text = {PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object))};
  return text;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Whether it may be an address, with a scope or not: libc decides. What certainly is a name goes to
// a thread without having been tried.
bool may_be_numeric(std::string_view host) {
  constexpr std::size_t kLongest = 60;  // of an IPv6 address and a scope
  if (host.empty() || host.size() > kLongest || host.find('\0') != host.npos) return false;
  if (host.find(':') != host.npos) return true;
  return is_digit(host.front()) && host.find_first_not_of("0123456789abcdefABCDEFxX.") == host.npos;
}

bool read_port(PyObject* object, Request& request) {
  if (object == Py_None) return true;
  request.has_port = true;
  if (PyLong_CheckExact(object)) {
    const long port = PyLong_AsLong(object);
    if (port == -1 && PyErr_Occurred() != nullptr) PyErr_Clear();
    request.port = std::to_string(port);
    return port >= 0;
  }
  request.port = text_of(object);
  return !request.port.empty() && std::all_of(request.port.begin(), request.port.end(), is_digit);
}

bool read_number(PyObject* object, int& number) {
  if (!PyLong_Check(object)) return false;
  const long value = PyLong_AsLong(object);
  number = static_cast<int>(value);
  if (value == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  return value == number;
}

bool read(PyObject* const* arguments, Request& request) {
  request.host = text_of(arguments[0]);
  addrinfo& hints = request.hints;
  if (!may_be_numeric(request.host) || !read_port(arguments[1], request) ||
      !read_number(arguments[2], hints.ai_family) ||
      !read_number(arguments[3], hints.ai_socktype) ||
      !read_number(arguments[4], hints.ai_protocol) || !read_number(arguments[5], hints.ai_flags))
    return false;
  hints.ai_flags |= AI_NUMERICHOST | AI_NUMERICSERV;
  return true;
}

// A number as the socket module shows it: a member of an enumeration, if it has one for it.
PyObject* shown(PyObject* members, int number) {
  PyObject* value = PyLong_FromLong(number);
  if (value == nullptr) return nullptr;
  PyObject* member = PyDict_GetItemWithError(members, value);
  if (member == nullptr && PyErr_Occurred() == nullptr) return value;
  Py_DECREF(value);
  return Py_XNewRef(member);
}

PyObject* entry(State& state, const addrinfo& found) {
  py::Ref family = py::Ref::steal(shown(state.families, found.ai_family));
  if (!family) return nullptr;
  py::Ref kind = py::Ref::steal(shown(state.kinds, found.ai_socktype));
  if (!kind) return nullptr;
  PyObject* address = address_object(found.ai_addr, found.ai_addrlen);
  if (address == nullptr) return nullptr;
  return Py_BuildValue("(NNisN)", family.release(), kind.release(), found.ai_protocol,
                       found.ai_canonname == nullptr ? "" : found.ai_canonname, address);
}

PyObject* list_of(State& state, const addrinfo* found) {
  py::Ref list = py::Ref::steal(PyList_New(0));
  for (; found != nullptr && list; found = found->ai_next) {
    const py::Ref each = py::Ref::steal(entry(state, *found));
    if (!each || PyList_Append(list.get(), each.get()) < 0) list.reset();
  }
  return list.release();
}

PyObject* getaddrinfo_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  Loop& loop = *reinterpret_cast<LoopObject*>(self)->loop;
  Request request;
  // In debug mode asyncio tells how long it took, and a closed loop has no threads to ask.
  if (count != 6 || loop.debug() || loop.closed || !read(arguments, request)) Py_RETURN_NONE;
  addrinfo* found = nullptr;
  const std::string host(request.host);
  if (getaddrinfo(host.c_str(), request.has_port ? request.port.c_str() : nullptr, &request.hints,
                  &found) != 0)
    Py_RETURN_NONE;
  const Answer answer(found);
  if (PySys_Audit("socket.getaddrinfo", "OOiii", arguments[0], arguments[1],
                  request.hints.ai_family, request.hints.ai_socktype,
                  request.hints.ai_protocol) < 0)
    return nullptr;
  return list_of(loop.state(), answer.get());
}

PyMethodDef g_loop_methods[] = {
    {"_getaddrinfo_now",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(getaddrinfo_now)), METH_FASTCALL,
     nullptr},
    {}};

}  // namespace

int resolve_exec(PyObject*, State& state) { return add_loop_methods(state, g_loop_methods); }

}  // namespace loop
