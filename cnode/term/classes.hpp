// Classes: the Python classes and functions that the codec makes, recognizes and asks.
#pragma once

#include <array>
#include <cstdint>

#include "cnode/etf/values.hpp"
#include "cnode/term/slots.hpp"

namespace term {

// What the encoder writes by itself, in the order of NATIVE in erlang/_encoders.py.
enum class Native : std::uint8_t {
  kStr,
  kInt,
  kFloat,
  kBool,
  kNone,
  kBytes,
  kByteArray,
  kList,
  kTuple,
  kDict,
  kSet,
  kFrozenSet,
  kAtom,
  kPid,
  kPort,
  kRef,
  kExport,
  kFun,
  kBitString,
  kImproperList,
  kCount,
};

struct Classes {
  explicit Classes(PyObject* terms, PyObject* encoders)
      : atom(py::attribute(terms, "Atom")),
        pid(terms, "Pid", {"raw"}),
        port(terms, "Port", {"node", "id", "creation"}),
        reference(terms, "Ref", {"raw"}),
        exported(terms, "Export", {"module", "function", "arity"}),
        fun(terms, "Fun", {"raw"}),
        bits(terms, "BitString", {"data", "bits"}),
        improper(terms, "ImproperList", {"items", "tail"}),
        resolved(py::attribute(encoders, "resolved")),
        resolve(py::attribute(encoders, "resolve")),
        short_repr(py::attribute(encoders, "short_repr")),
        object_of(py::attribute(encoders, "object_of")) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = py::check(PyLong_FromSize_t(i));
    }
  }

  py::Ref atom;
  SlotClass<1> pid;
  SlotClass<3> port;
  SlotClass<1> reference;
  SlotClass<3> exported;
  SlotClass<1> fun;
  SlotClass<2> bits;
  SlotClass<2> improper;
  py::Ref resolved;                // dict: type -> encoder, place in NATIVE, or None
  py::Ref resolve;                 // fills it
  py::Ref short_repr;              // object -> str of bounded length
  py::Ref object_of;               // the tuple that an object is known by -> that object
  std::array<py::Ref, 256> bytes;  // the ints 0 to 255

  // The bytes of a Pid's, a Ref's or a Fun's only slot; empty when it is not whole.
  static etf::Bytes raw_of(const SlotClass<1>& type, PyObject* object) {
    PyObject* raw = type.get(object, 0);
    if (raw == nullptr || !PyBytes_Check(raw)) return {};
    return {reinterpret_cast<const std::uint8_t*>(PyBytes_AS_STRING(raw)),
            static_cast<std::size_t>(PyBytes_GET_SIZE(raw))};
  }

  PyTypeObject* atom_type() const { return reinterpret_cast<PyTypeObject*>(atom.get()); }
  bool is_atom(PyObject* object) const { return PyObject_TypeCheck(object, atom_type()) != 0; }
};

// repr(object) for a message: short, never failing.
std::string describe(const Classes& classes, PyObject* object) noexcept;

}  // namespace term
