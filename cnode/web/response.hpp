// What the heads of answers are made of, and the reading of an application's messages.
#pragma once

#include <string>
#include <string_view>

#include "cnode/web/state.hpp"

namespace web {

// "HTTP/1.1 200 OK\r\n"
std::string status_line(int status);
// Whether `name`, in any case, is this name in lower case.
bool same_name(std::string_view name, std::string_view lower_case);
// Whether the comma-separated `list` has this token (lower case).
bool has_token(std::string_view list, std::string_view token);
// Appends "name: value\r\n", the name in lower case. Raises ValueError for what would be read as
// something else than one header: applications put what clients sent into values.
void append_header(std::string& head, std::string_view name, std::string_view value);

// The "type" of a message.
struct MessageType {
  State& state;
  PyObject* type;  // borrowed from the message

  bool is(PyObject* name) const;
  [[noreturn]] void unexpected(const char* expected) const;
  [[noreturn]] void unexpected_after_end() const;
};

MessageType message_type(State& state, PyObject* message);
// An item of a message, borrowed; null if it is not there or None.
PyObject* item_of(PyObject* message, PyObject* key);
// "status", from 100 to 999.
int status_of(State& state, PyObject* message);

// Calls action(name, value) for each pair in "headers".
template <typename Action>
void each_header(State& state, PyObject* message, Action action) {
  PyObject* headers = item_of(message, state.names.headers);
  if (headers == nullptr) return;
  const py::Ref list = py::check(PySequence_Fast(headers, "headers is not iterable"));
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.get()); ++i) {
    const py::Ref pair = py::check(
        PySequence_Fast(PySequence_Fast_GET_ITEM(list.get(), i), "a header is a pair of bytes"));
    if (PySequence_Fast_GET_SIZE(pair.get()) != 2)
      py::raise(PyExc_ValueError, "a header is a pair of bytes");
    const BytesView name(PySequence_Fast_GET_ITEM(pair.get(), 0));
    const BytesView value(PySequence_Fast_GET_ITEM(pair.get(), 1));
    action(name.text(), value.text());
  }
}

}  // namespace web
