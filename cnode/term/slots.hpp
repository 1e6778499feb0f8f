// SlotClass: a frozen Python class with __slots__, whose objects are made and read here without
// calling Python.
#pragma once

#include <array>
#include <cstddef>

#include "cnode/py/error.hpp"

namespace term {

template <std::size_t N>
class SlotClass {
 public:
  SlotClass(PyObject* module, const char* name, const std::array<const char*, N>& slots)
      : type_(py::attribute(module, name)) {
    for (std::size_t i = 0; i < N; ++i) {
      const py::Ref member = py::attribute(type_.get(), slots[i]);
      if (!Py_IS_TYPE(member.get(), &PyMemberDescr_Type)) {
        py::raise(PyExc_TypeError, std::string(name) + "." + slots[i] + " is no slot");
      }
      offsets_[i] = reinterpret_cast<PyMemberDescrObject*>(member.get())->d_member->offset;
    }
  }

  PyTypeObject* type() const { return reinterpret_cast<PyTypeObject*>(type_.get()); }
  bool is(PyObject* object) const { return PyObject_TypeCheck(object, type()) != 0; }

  // A new object whose slots take over these references; null with an exception set when one of
  // them is null, or there is no memory.
  template <class... Values>
  PyObject* make(Values... values) const {
    static_assert(sizeof...(Values) == N);
    const std::array<PyObject*, N> all{values...};
    bool whole = true;
    for (PyObject* value : all) whole = whole && value != nullptr;
    PyObject* object = whole ? type()->tp_alloc(type(), 0) : nullptr;
    for (std::size_t i = 0; i < N; ++i) {
      if (object == nullptr) {
        Py_XDECREF(all[i]);
      } else {
        place(object, i) = all[i];
      }
    }
    return object;
  }

  // Borrowed; null when an object was made without its constructor.
  PyObject* get(PyObject* object, std::size_t slot) const { return place(object, slot); }

 private:
  PyObject*& place(PyObject* object, std::size_t slot) const {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offsets_[slot]);
  }

  py::Ref type_;
  std::array<Py_ssize_t, N> offsets_{};
};

}  // namespace term
