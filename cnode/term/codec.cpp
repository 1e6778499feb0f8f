#include "cnode/term/codec.hpp"

#include <algorithm>

#include "cnode/term/cache.hpp"
#include "cnode/term/classes.hpp"

namespace term {
namespace {

// An identifier as it is kept: in the newest form, its node's name in UTF-8.
template <class View, class Write>
PyObject* kept(const SlotClass<1>& type, const View& view, std::uint8_t tag, std::size_t node,
               Write write) {
  etf::Buffer buffer;
  etf::Bytes raw = view.raw;
  if (raw.size() <= node || raw[0] != tag || raw[node] != etf::kSmallAtomUtf8) {
    etf::Writer writer(buffer);
    write(writer);
    raw = buffer.bytes();
  }
  return type.make(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(raw.data()),
                                             static_cast<Py_ssize_t>(raw.size())));
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
  return py::check(kept(classes_->pid, view, etf::kNewPid, 1,
                        [&](etf::Writer& writer) { writer.pid(view.value()); }));
}

py::Ref Codec::reference(const etf::RefView& view) {
  return py::check(kept(classes_->reference, view, etf::kNewerReference, 3,
                        [&](etf::Writer& writer) { writer.reference(view.value()); }));
}

bool Codec::as_pid(PyObject* object, etf::Pid& out) const {
  if (!classes_->pid.is(object)) return false;
  etf::Reader reader(Classes::raw_of(classes_->pid, object));
  const auto view = reader.pid();
  if (!view || !reader.at_end()) return false;
  out = view->value();
  return true;
}

bool Codec::as_reference(PyObject* object, etf::Ref& out) const {
  if (!classes_->reference.is(object)) return false;
  etf::Reader reader(Classes::raw_of(classes_->reference, object));
  const auto view = reader.reference();
  if (!view || !reader.at_end()) return false;
  out = view->value();
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
