#include "cnode/term/codec.hpp"

#include <algorithm>

#include "cnode/term/cache.hpp"
#include "cnode/term/classes.hpp"

namespace term {
namespace {

bool fits(PyObject* number, std::uint64_t most, std::uint64_t& out) {
  if (number == nullptr || !PyLong_Check(number)) return false;
  out = PyLong_AsUnsignedLongLong(number);
  if (out == static_cast<std::uint64_t>(-1) && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  return out <= most;
}

bool fits(PyObject* number, std::uint32_t& out) {
  std::uint64_t wide = 0;
  if (!fits(number, UINT32_MAX, wide)) return false;
  out = static_cast<std::uint32_t>(wide);
  return true;
}

bool node_name(const Classes& classes, PyObject* atom, std::string& out) {
  if (atom == nullptr || !classes.is_atom(atom)) return false;
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(atom, &size);
  if (text == nullptr) {
    PyErr_Clear();
    return false;
  }
  out.assign(text, static_cast<std::size_t>(size));
  return true;
}

void check_none_atom(std::string_view name) {
  if (name == "true" || name == "false" || !etf::is_utf8(name, etf::kMaxAtomCharacters)) {
    py::raise(PyExc_ValueError, "None cannot stand for the atom '" + std::string(name) + "'");
  }
}

}  // namespace

std::string describe(const Classes& classes, PyObject* object) noexcept {
  try {
    return py::text_of(py::check(PyObject_CallOneArg(classes.short_repr.get(), object)).get());
  } catch (const py::Error&) {
    return "<no repr>";
  }
}

Codec::Codec()
    : values_(std::make_unique<TextCache>()),
      atoms_(std::make_unique<TextCache>()),
      keys_(std::make_unique<TextCache>()) {}

Codec::~Codec() = default;

std::unique_ptr<Codec> Codec::create() {
  const py::Ref terms = py::import("erlang.terms");
  const py::Ref encoders = py::import("erlang._encoders");
  const py::Ref natives = py::attribute(encoders.get(), "NATIVE");
  if (PyObject_Size(natives.get()) != static_cast<Py_ssize_t>(Native::kCount)) {
    py::raise(PyExc_ImportError,
              "the erlang package and its native module are of different versions");
  }
  std::unique_ptr<Codec> codec(new Codec());
  codec->classes_ = std::make_unique<Classes>(terms.get(), encoders.get());
  return codec;
}

PyObject* Codec::new_atom(std::string_view utf8) {
  if (utf8.size() <= TextCache::kLongest) {
    if (PyObject* known = atoms_->find(utf8)) {
      Py_INCREF(known);
      return known;
    }
  }
  const py::Ref text = py::Ref::steal(
      PyUnicode_DecodeUTF8(utf8.data(), static_cast<Py_ssize_t>(utf8.size()), nullptr));
  if (!text) return nullptr;
  const py::Ref arguments = py::Ref::steal(PyTuple_Pack(1, text.get()));
  if (!arguments) return nullptr;
  // str.__new__, not Atom.__new__: the text has been checked, and this spares a call into Python.
  PyObject* atom = PyUnicode_Type.tp_new(classes_->atom_type(), arguments.get(), nullptr);
  if (atom != nullptr) atoms_->keep(utf8, atom);
  return atom;
}

PyObject* Codec::atom_value(std::string_view utf8) {
  if (utf8.size() <= TextCache::kLongest) {
    if (PyObject* known = values_->find(utf8)) {
      Py_INCREF(known);
      return known;
    }
  }
  py::Ref value;
  if (utf8 == "true" || utf8 == "false") {
    value = py::Ref::borrow(utf8 == "true" ? Py_True : Py_False);
  } else if (std::find(none_atoms_.begin(), none_atoms_.end(), utf8) != none_atoms_.end()) {
    value = py::Ref::borrow(Py_None);
  } else {
    value = py::Ref::steal(new_atom(utf8));
    if (!value) return nullptr;
  }
  values_->keep(utf8, value.get());
  return value.release();
}

py::Ref Codec::atom(std::string_view utf8) { return py::check(new_atom(utf8)); }

py::Ref Codec::pid(const etf::PidView& view) {
  py::Ref node = atom(view.node.latin1 ? view.node.utf8() : view.node.text);
  return py::check(classes_->pid.make(node.release(), PyLong_FromUnsignedLong(view.id),
                                      PyLong_FromUnsignedLong(view.serial),
                                      PyLong_FromUnsignedLong(view.creation)));
}

py::Ref Codec::reference(const etf::RefView& view) {
  py::Ref node = atom(view.node.latin1 ? view.node.utf8() : view.node.text);
  py::Ref words = py::check(PyTuple_New(view.count));
  for (std::size_t i = 0; i < view.count; ++i) {
    PyTuple_SET_ITEM(words.get(), static_cast<Py_ssize_t>(i),
                     py::check(PyLong_FromUnsignedLong(view.words[i])).release());
  }
  return py::check(classes_->reference.make(node.release(), PyLong_FromUnsignedLong(view.creation),
                                            words.release()));
}

bool Codec::as_pid(PyObject* object, etf::Pid& out) const {
  const auto& type = classes_->pid;
  return type.is(object) && node_name(*classes_, type.get(object, 0), out.node) &&
         fits(type.get(object, 1), out.id) && fits(type.get(object, 2), out.serial) &&
         fits(type.get(object, 3), out.creation);
}

bool Codec::as_reference(PyObject* object, etf::Ref& out) const {
  const auto& type = classes_->reference;
  if (!type.is(object) || !node_name(*classes_, type.get(object, 0), out.node) ||
      !fits(type.get(object, 1), out.creation)) {
    return false;
  }
  PyObject* words = type.get(object, 2);
  if (words == nullptr || !PyTuple_Check(words)) return false;
  const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(words));
  if (count == 0 || count > etf::kMaxReferenceWords) return false;
  out.count = static_cast<std::uint8_t>(count);
  out.words.fill(0);
  for (std::size_t i = 0; i < count; ++i) {
    if (!fits(PyTuple_GET_ITEM(words, static_cast<Py_ssize_t>(i)), out.words[i])) return false;
  }
  return true;
}

bool Codec::is_atom(PyObject* object) const { return classes_->is_atom(object); }

void Codec::set_none_atom(std::string_view utf8) {
  check_none_atom(utf8);
  none_atom_ = utf8;
}

void Codec::set_none_atoms(const std::vector<std::string>& names) {
  for (const std::string& name : names) check_none_atom(name);
  none_atoms_ = names;
  values_->clear();
}

}  // namespace term
