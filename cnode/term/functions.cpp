// The codec's functions as Python sees them: erlang.encode, decode, set_none_atom, set_none_atoms.
#include <memory>

#include "cnode/py/error.hpp"
#include "cnode/term/codec.hpp"

namespace term {
namespace {

constexpr const char* kCapsule = "erlang._native.codec";
constexpr const char* kAttribute = "_codec";

// Made at its first use and not when the module is: the classes it needs are in the package that is
// still importing this module then.
struct Holder {
  std::unique_ptr<Codec> codec;

  Codec& get() {
    if (!codec) codec = Codec::create();
    return *codec;
  }
};

Holder& holder_in(PyObject* capsule) {
  void* holder = capsule == nullptr ? nullptr : PyCapsule_GetPointer(capsule, kCapsule);
  if (holder == nullptr) {
    PyErr_Clear();
    py::raise(PyExc_SystemError, "this module has no codec");
  }
  return *static_cast<Holder*>(holder);
}

// Runs `body`, which may throw, as a C function that returns an object or null with the exception
// set.
template <class Body>
PyObject* guarded(Body body) noexcept {
  try {
    return body().release();
  } catch (py::Error& error) {
    std::move(error).restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

std::string text_argument(PyObject* object, const char* what) {
  if (!PyUnicode_Check(object)) py::raise(PyExc_TypeError, std::string(what) + " is a str");
  return py::text_of(object);
}

PyObject* encode(PyObject* capsule, PyObject* object) {
  return guarded([&] {
    etf::Buffer buffer(64);
    etf::Writer writer(buffer);
    writer.version();
    holder_in(capsule).get().encode(object, writer, "value");
    return py::check(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(buffer.data()),
                                               static_cast<Py_ssize_t>(buffer.size())));
  });
}

BinaryPolicy policy_named(std::string_view name) {
  if (name == "auto") return BinaryPolicy::kAuto;
  if (name == "str") return BinaryPolicy::kStr;
  if (name == "bytes") return BinaryPolicy::kBytes;
  py::raise(PyExc_ValueError,
            "binary is 'auto', 'str' or 'bytes', not '" + std::string(name) + "'");
}

PyObject* decode(PyObject* capsule, PyObject* arguments, PyObject* named) {
  return guarded([&]() -> py::Ref {
    static const char* names[] = {"", "binary", nullptr};
    Py_buffer view;
    const char* binary = "auto";
    if (PyArg_ParseTupleAndKeywords(arguments, named, "y*|s:decode", const_cast<char**>(names),
                                    &view, &binary) == 0) {
      py::throw_fetched();
    }
    struct Release {
      Py_buffer* view;
      ~Release() { PyBuffer_Release(view); }
    } release{&view};
    const etf::Bytes bytes{static_cast<const std::uint8_t*>(view.buf),
                           static_cast<std::size_t>(view.len)};
    auto value = holder_in(capsule).get().decode_external(bytes, {policy_named(binary)});
    if (!value) {
      const py::Ref exceptions = py::import("erlang.exceptions");
      py::raise(py::attribute(exceptions.get(), "DecodeError").get(), value.error().message());
    }
    return std::move(*value);
  });
}

PyObject* set_none_atom(PyObject* capsule, PyObject* name) {
  return guarded([&] {
    holder_in(capsule).get().set_none_atom(text_argument(name, "an atom's name"));
    return py::Ref::borrow(Py_None);
  });
}

PyObject* set_none_atoms(PyObject* capsule, PyObject* names) {
  return guarded([&] {
    const py::Ref list = py::check(PySequence_List(names));
    std::vector<std::string> all;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list.get()); ++i) {
      all.push_back(text_argument(PyList_GET_ITEM(list.get(), i), "an atom's name"));
    }
    holder_in(capsule).get().set_none_atoms(all);
    return py::Ref::borrow(Py_None);
  });
}

PyMethodDef methods[] = {
    {"encode", encode, METH_O, "encode(value) -> bytes: one external term."},
    {"decode", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(decode)),
     METH_VARARGS | METH_KEYWORDS,
     "decode(data, binary='auto') -> object: the one external term that data is."},
    {"set_none_atom", set_none_atom, METH_O, "set_none_atom(name): the atom that None is sent as."},
    {"set_none_atoms", set_none_atoms, METH_O,
     "set_none_atoms(names): the atoms that arrive as None."},
    {nullptr, nullptr, 0, nullptr},
};

void drop_holder(PyObject* capsule) {
  delete static_cast<Holder*>(PyCapsule_GetPointer(capsule, kCapsule));
}

void add(PyObject* module) {
  auto holder = std::make_unique<Holder>();
  const py::Ref capsule = py::check(PyCapsule_New(holder.get(), kCapsule, drop_holder));
  static_cast<void>(holder.release());  // the capsule's now
  py::check_status(PyModule_AddObjectRef(module, kAttribute, capsule.get()));
  const py::Ref name = py::check(PyModule_GetNameObject(module));
  for (PyMethodDef* method = methods; method->ml_name != nullptr; ++method) {
    const py::Ref function = py::check(PyCFunction_NewEx(method, capsule.get(), name.get()));
    py::check_status(PyModule_AddObjectRef(module, method->ml_name, function.get()));
  }
}

}  // namespace

int add_to_module(PyObject* module) {
  try {
    add(module);
    return 0;
  } catch (py::Error& error) {
    std::move(error).restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return -1;
}

Codec& codec_of(PyObject* module) {
  return holder_in(PyDict_GetItemString(PyModule_GetDict(module), kAttribute)).get();
}

}  // namespace term
