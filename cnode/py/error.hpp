// Error: a Python exception on its way through C++.
//
// Whoever calls CPython wraps the call in check(); a failure then travels as py::Error, which
// carries the exception itself. It is caught under the GIL, and either given back to Python with
// restore() or told with describe().
#pragma once

#include <exception>
#include <string>

#include "cnode/py/ref.hpp"

namespace py {

// An exception as text, all of it valid UTF-8: what a peer is told.
struct Description {
  std::string type;       // qualified: "ValueError", "package.module.Name"
  std::string message;    // str(exception)
  std::string traceback;  // as Python prints it; may be empty
};

class Error : public std::exception {
 public:
  // Takes over the exception that is set in this thread. There must be one.
  static Error fetch();
  explicit Error(Ref exception) : exception_(std::move(exception)) {}
  Error(const Error& other) noexcept : exception_(Ref::borrow(other.exception_.get())) {}
  Error& operator=(const Error&) = delete;

  PyObject* exception() const { return exception_.get(); }
  bool matches(PyObject* type) const {
    return PyErr_GivenExceptionMatches(exception_.get(), type) != 0;
  }
  // Sets it in this thread again, for Python to see.
  void restore() &&;
  // Never throws and leaves no exception set, whatever the exception's own __str__ does.
  Description describe() const noexcept;
  const char* what() const noexcept override { return "Python exception"; }

 private:
  Ref exception_;
};

[[noreturn]] void throw_fetched();
[[noreturn]] void raise(PyObject* type, const std::string& message);

// The new reference that a CPython function returned, or the exception it set.
inline Ref check(PyObject* object) {
  if (object == nullptr) throw_fetched();
  return Ref::steal(object);
}
inline void check_status(int status) {
  if (status < 0) throw_fetched();
}

Ref import(const char* module);
Ref attribute(PyObject* object, const char* name);

// A str as UTF-8, lone surrogates as '?'.
std::string text_of(PyObject* str);

}  // namespace py
