// Ref: one owned reference to a Python object, dropped where it was made, under the GIL.
//
//   py::Ref item = py::Ref::steal(PyLong_FromLong(42));         // new reference: ours now
//   py::Ref first = py::Ref::borrow(PyList_GET_ITEM(list, 0));  // borrowed: we add one
//   return item.release();                                      // the caller's now
#pragma once

#include "cnode/py/python.hpp"

#include <cassert>
#include <utility>

namespace py {

class Ref {
 public:
  Ref() = default;
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    Ref taken(std::move(other));
    std::swap(object_, taken.object_);
    return *this;
  }
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { reset(); }

  static Ref steal(PyObject* object) { return Ref(object); }
  static Ref borrow(PyObject* object) {
    assert((object == nullptr || PyGILState_Check()) && "references are counted under the GIL");
    Py_XINCREF(object);
    return Ref(object);
  }

  PyObject* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }
  [[nodiscard]] PyObject* release() { return std::exchange(object_, nullptr); }
  void reset() {
    if (object_ == nullptr) return;
    assert(PyGILState_Check() && "references are counted under the GIL");
    Py_DECREF(std::exchange(object_, nullptr));
  }

 private:
  explicit Ref(PyObject* object) : object_(object) {}

  PyObject* object_ = nullptr;
};

}  // namespace py
