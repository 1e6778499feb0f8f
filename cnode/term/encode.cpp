// Encoding: one walk over Python objects that appends their bytes as it goes.
//
//   put(object) ──▶ bytes, or a container: its header, and a place on stack_
//   next()      ◀── the next element of the innermost open container; its end when there is none
//
// The stack is the path to the value in hand, so an error can name it. Any Python code that runs on
// the way (a registered encoder), and any other thread while a long copy goes on without the GIL,
// may change the containers that are open: their sizes are checked at each step, and what is held
// across such a moment is held by a reference.
#include <cmath>
#include <cstring>
#include <unordered_set>

#include "cnode/py/gil.hpp"
#include "cnode/py/integer.hpp"
#include "cnode/term/classes.hpp"
#include "cnode/term/codec.hpp"

namespace term {

using etf::write_u16;
using etf::write_u32;
using etf::write_u64;

namespace {

constexpr std::size_t kMaxIntegerBytes = 65535 * 8;  // the largest integer that every BEAM holds
constexpr std::size_t kMaxTupleArity = 0xFFFFFF;     // the largest tuple that every BEAM holds
constexpr int kMaxConversions = 32;  // registered encoders that hand on to one another

// Which kinds of keys a dict has. Most kinds can never meet as one Erlang term; for the others the
// bytes are compared.
enum KeyKinds : std::uint8_t { kText = 1, kBytes = 2, kNames = 4, kConstants = 8, kAnything = 16 };

bool may_collide(std::uint8_t kinds) {
  return (kinds & kAnything) != 0 || (kinds & (kText | kBytes)) == (kText | kBytes) ||
         (kinds & (kNames | kConstants)) == (kNames | kConstants);
}

template <class Character>
std::size_t utf8_size(const Character* text, std::size_t length, bool& surrogate) {
  std::size_t size = 0;
  for (std::size_t i = 0; i < length; ++i) {
    const auto c = static_cast<std::uint32_t>(text[i]);
    size += c < 0x80 ? 1u : c < 0x800 ? 2u : c < 0x10000 ? 3u : 4u;
    if (c >= 0xD800 && c < 0xE000) surrogate = true;
  }
  return size;
}

template <class Character>
void write_utf8(const Character* text, std::size_t length, std::uint8_t* at) {
  for (std::size_t i = 0; i < length; ++i) {
    const auto c = static_cast<std::uint32_t>(text[i]);
    if (c < 0x80) {
      *at++ = static_cast<std::uint8_t>(c);
      continue;
    }
    if (c < 0x800) {
      *at++ = static_cast<std::uint8_t>(0xC0 | (c >> 6));
    } else {
      if (c < 0x10000) {
        *at++ = static_cast<std::uint8_t>(0xE0 | (c >> 12));
      } else {
        *at++ = static_cast<std::uint8_t>(0xF0 | (c >> 18));
        *at++ = static_cast<std::uint8_t>(0x80 | ((c >> 12) & 0x3F));
      }
      *at++ = static_cast<std::uint8_t>(0x80 | ((c >> 6) & 0x3F));
    }
    *at++ = static_cast<std::uint8_t>(0x80 | (c & 0x3F));
  }
}

// memcpy for a few bytes, without the call.
inline void copy_short(std::uint8_t* to, const std::uint8_t* from, std::size_t size) {
  if (size >= 8) {
    for (std::size_t i = 0; i + 8 < size; i += 8) std::memcpy(to + i, from + i, 8);
    std::memcpy(to + size - 8, from + size - 8, 8);
  } else if (size >= 4) {
    std::uint32_t first = 0;
    std::uint32_t last = 0;
    std::memcpy(&first, from, 4);
    std::memcpy(&last, from + size - 4, 4);
    std::memcpy(to, &first, 4);
    std::memcpy(to + size - 4, &last, 4);
  } else {
    for (std::size_t i = 0; i < size; ++i) to[i] = from[i];
  }
}

// The text of a str, wherever CPython keeps it.
struct Text {
  explicit Text(PyObject* str)
      : kind(static_cast<int>(PyUnicode_KIND(str))),
        ascii(PyUnicode_IS_ASCII(str)),
        length(static_cast<std::size_t>(PyUnicode_GET_LENGTH(str))),
        data(PyUnicode_DATA(str)) {}

  template <class Use>
  auto with(Use use) const {
    if (kind == PyUnicode_1BYTE_KIND) return use(static_cast<const Py_UCS1*>(data));
    if (kind == PyUnicode_2BYTE_KIND) return use(static_cast<const Py_UCS2*>(data));
    return use(static_cast<const Py_UCS4*>(data));
  }
  // Bytes as UTF-8; sets `surrogate` when it has none.
  std::size_t size(bool& surrogate) const {
    if (ascii) return length;
    return with([&](const auto* text) { return utf8_size(text, length, surrogate); });
  }
  void write(std::uint8_t* at) const {
    if (ascii) {
      std::memcpy(at, data, length);
    } else {
      with([&](const auto* text) { write_utf8(text, length, at); });
    }
  }

  int kind;
  bool ascii;
  std::size_t length;
  const void* data;
};

}  // namespace

class Encoder {
 public:
  Encoder(Codec& codec, etf::Buffer& out, std::string_view root)
      : classes_(*codec.classes_),
        none_atom_(codec.none_atom_),
        out_(out),
        start_(out.size()),
        root_(root) {}
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;
  ~Encoder() {
    while (open_ > 0) pop();
  }

  void run(PyObject* object);

 private:
  enum class Kind : std::uint8_t { kList, kTuple, kImproper, kImproperTail, kDictKey, kDictValue };

  struct Open {
    PyObject* object;  // owned: list, tuple, dict, or an ImproperList's tuple
    PyObject* held;    // owned: a dict's key in hand, an ImproperList's tail
    PyObject* value;   // owned: a dict's value while a key that is no scalar is written
    Py_ssize_t index;  // elements handed out; of a dict, CPython's own position
    Py_ssize_t count;
    Py_ssize_t pairs;   // of a dict: keys handed out
    std::size_t begin;  // of a dict: where its header stands
    Kind kind;
    std::uint8_t keys;  // of a dict: KeyKinds
  };

  PyObject* next();
  PyObject* next_pair(Open& dict);
  void pop();
  Open& push(PyObject* object, Kind kind, Py_ssize_t count);

  void put(PyObject* object);
  bool put_plain(PyObject* object);
  bool put_short_text(PyObject* str);
  bool put_short_atom(PyObject* atom);
  void put_digit(long long value);
  bool put_known(PyObject* object, PyTypeObject* type);
  void put_native(PyObject* object, Native native);
  void put_other(PyObject* object);
  bool put_simple_key(PyObject* key, std::uint8_t& kinds);

  void put_atom(std::string_view name);
  void put_atom_object(PyObject* atom);
  void put_text(PyObject* str);
  void put_integer(PyObject* number);
  void put_big(PyObject* number, bool negative);
  void put_float(double value);
  // Runs a copy of `size` bytes out of `owner`, which outlives it whatever others do meanwhile to
  // the container that held it.
  template <class Copy>
  static void copying(PyObject* owner, std::size_t size, Copy copy) {
    if (size <= kLongCopy) return copy();
    const py::Ref held = py::Ref::borrow(owner);
    const py::GilRelease released;
    copy();
  }
  void put_bytes(PyObject* bytes);
  void put_binary(PyObject* owner, const void* data, std::size_t size);
  void put_buffer(PyObject* object);
  void put_list(PyObject* list);
  void put_tuple(PyObject* tuple);
  void put_dict(PyObject* dict);
  void put_set(PyObject* set);
  void put_improper(PyObject* object);
  void put_identifier(PyObject* object, const SlotClass<1>& type, std::size_t node,
                      std::size_t numbers);
  void put_pid(PyObject* object);
  void put_port(PyObject* object);
  void put_reference(PyObject* object);
  void put_export(PyObject* object);
  void put_fun(PyObject* object);
  void put_bits(PyObject* object);
  void put_node(PyObject* atom);

  std::uint64_t number(PyObject* object, std::uint64_t most);
  void check_keys(const Open& dict);
  void reserve(std::size_t size);
  std::string path() const;
  [[noreturn]] void fail(PyObject* type, const std::string& what) {
    py::raise(type, path() + ": " + what);
  }
  [[noreturn]] void changed() { fail(PyExc_RuntimeError, "changed while it was encoded"); }
  [[noreturn]] void broken(PyObject* object) {
    fail(PyExc_TypeError,
         std::string("cannot encode a '") + Py_TYPE(object)->tp_name + "' that is not whole");
  }

  static constexpr std::size_t kShortText = 64;
  // From here on bytes are copied without the GIL, which would hold every other thread up.
  static constexpr std::size_t kLongCopy = 256 * 1024;
  // A key whose copy might give the GIL up is written like those that run Python code, because the
  // dictionary may then change.
  static constexpr Py_ssize_t kLongKey = kLongCopy / 4;

  const Classes& classes_;
  const std::string& none_atom_;
  etf::Buffer& out_;
  const std::size_t start_;
  const std::string_view root_;
  std::size_t open_ = 0;
  Open stack_[etf::kMaxDepth];  // NOLINT: only the part in use is ever initialized
};

void Encoder::run(PyObject* object) {
  for (PyObject* at = object; at != nullptr; at = next()) put(at);
  if (out_.size() - start_ > etf::kMaxMessage) fail(PyExc_ValueError, "too large for one message");
}

// The next element to write, borrowed; null when no container is open any more.
PyObject* Encoder::next() {
  while (open_ > 0) {
    Open& top = stack_[open_ - 1];
    switch (top.kind) {
      case Kind::kList:
        if (PyList_GET_SIZE(top.object) != top.count) changed();
        while (top.index < top.count) {
          PyObject* item = PyList_GET_ITEM(top.object, top.index++);
          if (!put_plain(item)) return item;
        }
        out_.append(etf::kNil);
        break;
      case Kind::kTuple:
        while (top.index < top.count) {
          PyObject* item = PyTuple_GET_ITEM(top.object, top.index++);
          if (!put_plain(item)) return item;
        }
        break;
      case Kind::kImproper:
        if (top.index < top.count) return PyTuple_GET_ITEM(top.object, top.index++);
        top.kind = Kind::kImproperTail;
        return top.held;
      case Kind::kImproperTail:
        break;
      case Kind::kDictKey:
      case Kind::kDictValue:
        if (PyObject* object = next_pair(top)) return object;
        break;
    }
    pop();
  }
  return nullptr;
}

PyObject* Encoder::next_pair(Open& dict) {
  if (PyDict_GET_SIZE(dict.object) != dict.count) changed();
  if (dict.kind == Kind::kDictValue) {  // its key was a container or the like, and is written now
    dict.kind = Kind::kDictKey;
    return dict.value;
  }
  Py_CLEAR(dict.value);
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  while (PyDict_Next(dict.object, &dict.index, &key, &value) != 0) {
    if (++dict.pairs > dict.count) changed();
    Py_INCREF(key);
    Py_XSETREF(dict.held, key);
    if (!put_simple_key(key, dict.keys)) {
      Py_INCREF(value);
      dict.value = value;
      dict.kind = Kind::kDictValue;
      return key;
    }
    if (!put_plain(value)) return value;
  }
  if (dict.pairs != dict.count) changed();
  if (may_collide(dict.keys)) check_keys(dict);
  return nullptr;
}

// Writes the commonest values, those that run no Python code, open nothing and cannot fail; false
// for all others.
inline bool Encoder::put_plain(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  if (type == &PyUnicode_Type) return put_short_text(object);
  if (type == &PyLong_Type) {
    long long value = 0;
    if (!py::one_digit(object, value)) return false;
    put_digit(value);
  } else if (type == classes_.atom_type()) {
    return put_short_atom(object);
  } else if (type == &PyFloat_Type) {
    put_float(PyFloat_AS_DOUBLE(object));
  } else if (object == Py_None) {
    put_atom(none_atom_);
  } else if (type == &PyBool_Type) {
    put_atom(object == Py_True ? "true" : "false");
  } else {
    return false;
  }
  return true;
}

inline bool Encoder::put_short_text(PyObject* str) {
  if (!PyUnicode_IS_COMPACT_ASCII(str)) return false;
  const auto size = static_cast<std::size_t>(PyUnicode_GET_LENGTH(str));
  if (size > kShortText || out_.size() - start_ > etf::kMaxMessage) return false;
  std::uint8_t* at = out_.prepare(5 + kShortText);
  at[0] = etf::kBinary;
  write_u32(at + 1, static_cast<std::uint32_t>(size));
  copy_short(at + 5, static_cast<const std::uint8_t*>(PyUnicode_DATA(str)), size);
  out_.commit(5 + size);
  return true;
}

inline bool Encoder::put_short_atom(PyObject* atom) {
  if (!PyUnicode_IS_ASCII(atom)) return false;
  const auto size = static_cast<std::size_t>(PyUnicode_GET_LENGTH(atom));
  if (size > kShortText) return false;
  std::uint8_t* at = out_.prepare(2 + kShortText);
  at[0] = etf::kSmallAtomUtf8;
  at[1] = static_cast<std::uint8_t>(size);
  copy_short(at + 2, static_cast<const std::uint8_t*>(PyUnicode_DATA(atom)), size);
  out_.commit(2 + size);
  return true;
}

// An integer of at most 31 bits.
inline void Encoder::put_digit(long long value) {
  std::uint8_t* at = out_.prepare(5);
  if (value >= 0 && value < 256) {
    at[0] = etf::kSmallInteger;
    at[1] = static_cast<std::uint8_t>(value);
    out_.commit(2);
  } else if (value >= INT32_MIN && value <= INT32_MAX) {
    at[0] = etf::kInteger;
    write_u32(at + 1, static_cast<std::uint32_t>(static_cast<std::int32_t>(value)));
    out_.commit(5);
  }
}

// Writes the keys that run no Python code and open nothing, and notes of each key what it could be
// mistaken for.
bool Encoder::put_simple_key(PyObject* key, std::uint8_t& kinds) {
  PyTypeObject* type = Py_TYPE(key);
  if (type == &PyUnicode_Type) {
    kinds |= kText;
    if (PyUnicode_GET_LENGTH(key) > kLongKey) return false;
    if (!put_short_text(key)) put_text(key);
  } else if (type == classes_.atom_type()) {
    kinds |= kNames;
    if (!put_short_atom(key)) put_atom_object(key);
  } else if (type == &PyLong_Type) {
    put_integer(key);
  } else if (type == &PyBytes_Type) {
    kinds |= kBytes;
    if (PyBytes_GET_SIZE(key) > kLongKey) return false;
    put_bytes(key);
  } else if (type == &PyBool_Type || key == Py_None) {
    kinds |= kConstants;
    put(key);
  } else {
    kinds |= kAnything;
    return false;
  }
  return true;
}

// Two keys that differ in Python may be one in Erlang ('a' and b'a'): a map that no BEAM takes.
// Their bytes tell.
void Encoder::check_keys(const Open& dict) {
  etf::Reader reader(out_.bytes().subspan(dict.begin));
  std::unordered_set<std::string_view> seen;
  [[maybe_unused]] const auto pairs = reader.map();
  assert(pairs && *pairs == static_cast<std::uint32_t>(dict.count) && "we wrote this header");
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  for (Py_ssize_t position = 0; PyDict_Next(dict.object, &position, &key, &value) != 0;) {
    const auto bytes = reader.term();
    const auto skipped = reader.term();
    assert(bytes && skipped && "we wrote these terms");
    if (!bytes || !skipped) changed();
    if (!seen.insert({reinterpret_cast<const char*>(bytes->data()), bytes->size()}).second) {
      fail(PyExc_ValueError, "another key is the same Erlang term as " + describe(classes_, key));
    }
  }
}

void Encoder::pop() {
  Open& top = stack_[--open_];
  Py_DECREF(top.object);
  Py_XDECREF(top.held);
  Py_XDECREF(top.value);
}

Encoder::Open& Encoder::push(PyObject* object, Kind kind, Py_ssize_t count) {
  if (open_ == etf::kMaxDepth) {
    for (std::size_t i = 0; i < open_; ++i) {
      if (stack_[i].object == object) fail(PyExc_ValueError, "contains itself");
    }
    fail(PyExc_ValueError, "nested deeper than " + std::to_string(etf::kMaxDepth) + " levels");
  }
  // Every element takes a byte at least: an early word for what could never fit.
  if (static_cast<std::size_t>(count) > etf::kMaxMessage ||
      out_.size() - start_ > etf::kMaxMessage) {
    fail(PyExc_ValueError, "too large for one message");
  }
  Py_INCREF(object);
  stack_[open_] = {object, nullptr, nullptr, 0, count, 0, out_.size(), kind, 0};
  return stack_[open_++];
}

void Encoder::reserve(std::size_t size) {
  if (size > etf::kMaxMessage || out_.size() - start_ > etf::kMaxMessage) {
    fail(PyExc_ValueError, "too large for one message");
  }
  out_.reserve(size + 5);
}

void Encoder::put(PyObject* object) {
  if (!put_known(object, Py_TYPE(object))) put_other(object);
}

bool Encoder::put_known(PyObject* object, PyTypeObject* type) {
  if (type == &PyUnicode_Type) {
    put_text(object);
  } else if (type == &PyLong_Type) {
    put_integer(object);
  } else if (type == classes_.atom_type()) {
    put_atom_object(object);
  } else if (type == &PyTuple_Type) {
    put_tuple(object);
  } else if (type == &PyList_Type) {
    put_list(object);
  } else if (type == &PyDict_Type) {
    put_dict(object);
  } else if (type == &PyFloat_Type) {
    put_float(PyFloat_AS_DOUBLE(object));
  } else if (object == Py_None) {
    put_atom(none_atom_);
  } else if (type == &PyBool_Type) {
    put_atom(object == Py_True ? "true" : "false");
  } else if (type == &PyBytes_Type) {
    put_bytes(object);
  } else if (type == classes_.pid.type()) {
    put_pid(object);
  } else if (type == classes_.reference.type()) {
    put_reference(object);
  } else {
    return false;
  }
  return true;
}

void Encoder::put_native(PyObject* object, Native native) {
  switch (native) {
    case Native::kStr:
      return put_text(object);
    case Native::kInt:
      return put_integer(object);
    case Native::kFloat:
      return put_float(PyFloat_AS_DOUBLE(object));
    case Native::kBool:
      return put_atom(object == Py_True ? "true" : "false");
    case Native::kNone:
      return put_atom(none_atom_);
    case Native::kBytes:
      return put_bytes(object);
    case Native::kByteArray:
      return put_buffer(object);
    case Native::kList:
      return put_list(object);
    case Native::kTuple:
      return put_tuple(object);
    case Native::kDict:
      return put_dict(object);
    case Native::kSet:
    case Native::kFrozenSet:
      return put_set(object);
    case Native::kAtom:
      return put_atom_object(object);
    case Native::kPid:
      return put_pid(object);
    case Native::kPort:
      return put_port(object);
    case Native::kRef:
      return put_reference(object);
    case Native::kExport:
      return put_export(object);
    case Native::kFun:
      return put_fun(object);
    case Native::kBitString:
      return put_bits(object);
    case Native::kImproperList:
      return put_improper(object);
    case Native::kCount:
      break;
  }
  fail(PyExc_SystemError, "the encoders of erlang._encoders are not those of this module");
}

// What is neither of our own classes nor one of Python's plain ones: the registry knows, or it is a
// buffer.
void Encoder::put_other(PyObject* object) {
  py::Ref held = py::Ref::borrow(object);
  for (int hops = 0; hops < kMaxConversions; ++hops) {
    auto* type = reinterpret_cast<PyObject*>(Py_TYPE(held.get()));
    if (hops > 0 && put_known(held.get(), Py_TYPE(held.get()))) return;
    py::Ref how = py::Ref::borrow(PyDict_GetItemWithError(classes_.resolved.get(), type));
    if (!how) {
      if (PyErr_Occurred() != nullptr) py::throw_fetched();
      how = py::check(PyObject_CallOneArg(classes_.resolve.get(), type));
    }
    if (PyLong_CheckExact(how.get())) {
      return put_native(held.get(), static_cast<Native>(PyLong_AsLong(how.get())));
    }
    if (how.get() == Py_None) {
      if (PyObject_CheckBuffer(held.get()) != 0) return put_buffer(held.get());
      fail(PyExc_TypeError,
           std::string("cannot encode '") + Py_TYPE(held.get())->tp_name + "' object");
    }
    held = py::Ref::steal(PyObject_CallOneArg(how.get(), held.get()));
    if (!held) {
      py::Error error = py::Error::fetch();
      const std::string note = "while encoding " + path();
      const py::Ref noted =
          py::Ref::steal(PyObject_CallMethod(error.exception(), "add_note", "s", note.c_str()));
      if (!noted) PyErr_Clear();
      throw py::Error(error);
    }
  }
  fail(PyExc_ValueError, "its encoders hand on to one another without end");
}

void Encoder::put_atom(std::string_view name) {
  std::uint8_t* at = out_.prepare(name.size() + 3);
  std::size_t header = 2;
  if (name.size() < 256) {
    at[0] = etf::kSmallAtomUtf8;
    at[1] = static_cast<std::uint8_t>(name.size());
  } else {
    at[0] = etf::kAtomUtf8;
    write_u16(at + 1, static_cast<std::uint16_t>(name.size()));
    header = 3;
  }
  std::memcpy(at + header, name.data(), name.size());
  out_.commit(header + name.size());
}

void Encoder::put_atom_object(PyObject* atom) {
#if PY_VERSION_HEX < 0x030C0000
  if (PyUnicode_READY(atom) < 0) py::throw_fetched();
#endif
  const Text text(atom);
  bool surrogate = false;
  const std::size_t size = text.size(surrogate);
  if (text.length > etf::kMaxAtomCharacters)
    fail(PyExc_ValueError, "an atom has at most 255 characters");
  if (surrogate) fail(PyExc_ValueError, "an atom cannot hold a lone surrogate");
  std::uint8_t* at = out_.prepare(size + 3);
  std::size_t header = 2;
  if (size < 256) {
    at[0] = etf::kSmallAtomUtf8;
    at[1] = static_cast<std::uint8_t>(size);
  } else {
    at[0] = etf::kAtomUtf8;
    write_u16(at + 1, static_cast<std::uint16_t>(size));
    header = 3;
  }
  text.write(at + header);
  out_.commit(header + size);
}

void Encoder::put_text(PyObject* str) {
#if PY_VERSION_HEX < 0x030C0000
  if (PyUnicode_READY(str) < 0) py::throw_fetched();
#endif
  const Text text(str);
  bool surrogate = false;
  const std::size_t size = text.size(surrogate);
  if (surrogate)
    fail(PyExc_ValueError, "a str with a lone surrogate is no text: encode it to bytes");
  reserve(size);
  std::uint8_t* at = out_.prepare(5 + size);
  at[0] = etf::kBinary;
  write_u32(at + 1, static_cast<std::uint32_t>(size));
  copying(str, size, [&] { text.write(at + 5); });
  out_.commit(5 + size);
}

void Encoder::put_integer(PyObject* number) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
  if (overflow != 0) return put_big(number, overflow < 0);
  if (value == -1 && PyErr_Occurred() != nullptr) py::throw_fetched();
  std::uint8_t* at = out_.prepare(11);
  if (value >= 0 && value < 256) {
    at[0] = etf::kSmallInteger;
    at[1] = static_cast<std::uint8_t>(value);
    out_.commit(2);
  } else if (value >= INT32_MIN && value <= INT32_MAX) {
    at[0] = etf::kInteger;
    write_u32(at + 1, static_cast<std::uint32_t>(static_cast<std::int32_t>(value)));
    out_.commit(5);
  } else {
    std::uint64_t magnitude =
        value < 0 ? ~static_cast<std::uint64_t>(value) + 1 : static_cast<std::uint64_t>(value);
    std::uint8_t size = 0;
    for (; magnitude != 0; magnitude >>= 8) at[3 + size++] = static_cast<std::uint8_t>(magnitude);
    at[0] = etf::kSmallBig;
    at[1] = size;
    at[2] = value < 0;
    out_.commit(3 + std::size_t{size});
  }
}

void Encoder::put_big(PyObject* number, bool negative) {
  const py::Ref magnitude =
      py::check(negative ? PyNumber_Negative(number) : PyNumber_Positive(number));
  const std::size_t room = py::integer_byte_room(magnitude.get());
  if (room > kMaxIntegerBytes + 16)
    fail(PyExc_ValueError, "an integer larger than any Erlang can have");
  std::uint8_t* at = out_.prepare(6 + room);
  std::size_t size = py::integer_to_bytes(magnitude.get(), at + 6, room);
  if (size > kMaxIntegerBytes) fail(PyExc_ValueError, "an integer larger than any Erlang can have");
  if (size < 256) {
    at[0] = etf::kSmallBig;
    at[1] = static_cast<std::uint8_t>(size);
    at[2] = negative;
    std::memmove(at + 3, at + 6, size);
    out_.commit(3 + size);
  } else {
    at[0] = etf::kLargeBig;
    write_u32(at + 1, static_cast<std::uint32_t>(size));
    at[5] = negative;
    out_.commit(6 + size);
  }
}

void Encoder::put_float(double value) {
  if (!std::isfinite(value))
    return put_atom(std::isnan(value) ? "nan" : value > 0 ? "infinity" : "neg_infinity");
  std::uint8_t* at = out_.prepare(9);
  at[0] = etf::kNewFloat;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  write_u64(at + 1, bits);
  out_.commit(9);
}

void Encoder::put_bytes(PyObject* bytes) {
  put_binary(bytes, PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes)));
}

void Encoder::put_binary(PyObject* owner, const void* data, std::size_t size) {
  reserve(size);
  std::uint8_t* at = out_.prepare(5 + size);
  at[0] = etf::kBinary;
  write_u32(at + 1, static_cast<std::uint32_t>(size));
  copying(owner, size, [&] {
    if (size > 0) std::memcpy(at + 5, data, size);
  });
  out_.commit(5 + size);
}

void Encoder::put_buffer(PyObject* object) {
  Py_buffer view;
  if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) < 0) {
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError))
      py::throw_fetched();
    PyErr_Clear();
    fail(PyExc_TypeError, std::string("cannot encode a '") + Py_TYPE(object)->tp_name +
                              "' that is not contiguous and open");
  }
  struct Release {
    Py_buffer* view;
    ~Release() { PyBuffer_Release(view); }
  } release{&view};
  put_binary(object, view.buf, static_cast<std::size_t>(view.len));
}

void Encoder::put_list(PyObject* list) {
  const Py_ssize_t count = PyList_GET_SIZE(list);
  if (count == 0) return out_.append(etf::kNil);
  push(list, Kind::kList, count);
  std::uint8_t* at = out_.prepare(5);
  at[0] = etf::kList;
  write_u32(at + 1, static_cast<std::uint32_t>(count));
  out_.commit(5);
}

void Encoder::put_tuple(PyObject* tuple) {
  const Py_ssize_t count = PyTuple_GET_SIZE(tuple);
  if (static_cast<std::size_t>(count) > kMaxTupleArity) {
    fail(PyExc_ValueError,
         "a tuple has at most " + std::to_string(kMaxTupleArity) + " elements in Erlang");
  }
  if (count > 0) push(tuple, Kind::kTuple, count);
  std::uint8_t* at = out_.prepare(5);
  if (count < 256) {
    at[0] = etf::kSmallTuple;
    at[1] = static_cast<std::uint8_t>(count);
    out_.commit(2);
  } else {
    at[0] = etf::kLargeTuple;
    write_u32(at + 1, static_cast<std::uint32_t>(count));
    out_.commit(5);
  }
}

void Encoder::put_dict(PyObject* dict) {
  const Py_ssize_t count = PyDict_GET_SIZE(dict);
  if (count > 0) push(dict, Kind::kDictKey, count);
  std::uint8_t* at = out_.prepare(5);
  at[0] = etf::kMap;
  write_u32(at + 1, static_cast<std::uint32_t>(count));
  out_.commit(5);
}

void Encoder::put_set(PyObject* set) { put_list(py::check(PySequence_List(set)).get()); }

void Encoder::put_improper(PyObject* object) {
  PyObject* items = classes_.improper.get(object, 0);
  PyObject* tail = classes_.improper.get(object, 1);
  if (items == nullptr || tail == nullptr || !PyTuple_CheckExact(items) ||
      PyTuple_GET_SIZE(items) == 0) {
    broken(object);
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(items);
  Open& top = push(items, Kind::kImproper, count);
  Py_INCREF(tail);
  top.held = tail;
  std::uint8_t* at = out_.prepare(5);
  at[0] = etf::kList;
  write_u32(at + 1, static_cast<std::uint32_t>(count));
  out_.commit(5);
}

std::uint64_t Encoder::number(PyObject* object, std::uint64_t most) {
  if (object == nullptr || !PyLong_Check(object))
    fail(PyExc_TypeError, "an identifier that is not whole");
  const std::uint64_t value = PyLong_AsUnsignedLongLong(object);
  if (value == static_cast<std::uint64_t>(-1) && PyErr_Occurred() != nullptr) py::throw_fetched();
  if (value > most) fail(PyExc_ValueError, "an identifier with too large a number");
  return value;
}

void Encoder::put_node(PyObject* atom) {
  if (atom == nullptr || !classes_.is_atom(atom))
    fail(PyExc_TypeError, "an identifier that is not whole");
  put_atom_object(atom);
}

// A Pid or a Ref is its term; whether it is a whole one is still to be seen.
void Encoder::put_identifier(PyObject* object, const SlotClass<1>& type, std::size_t node,
                             std::size_t numbers) {
  const etf::Bytes raw = Classes::raw_of(type, object);
  const bool is_pid = &type == &classes_.pid;
  if (raw.size() < node + 3 || raw[0] != (is_pid ? etf::kNewPid : etf::kNewerReference)) {
    broken(object);
  }
  if (!is_pid) numbers = 4 + 4 * std::size_t{etf::read_u16(raw.data() + 1)};
  const bool small = raw[node] == etf::kSmallAtomUtf8;
  const std::size_t length = small ? raw[node + 1] : etf::read_u16(raw.data() + node + 1);
  const std::size_t text = node + (small ? 2 : 3);
  const bool whole = (small || raw[node] == etf::kAtomUtf8) &&
                     raw.size() == text + length + numbers && numbers >= 8 &&
                     numbers <= 4 + 4 * etf::kMaxReferenceWords &&
                     etf::is_utf8({reinterpret_cast<const char*>(raw.data() + text), length},
                                  etf::kMaxAtomCharacters);
  if (!whole) broken(object);
  out_.append(raw);
}

void Encoder::put_pid(PyObject* object) { put_identifier(object, classes_.pid, 1, 12); }

void Encoder::put_port(PyObject* object) {
  const auto& type = classes_.port;
  const std::uint64_t id = number(type.get(object, 1), UINT64_MAX);
  const auto creation = static_cast<std::uint32_t>(number(type.get(object, 2), UINT32_MAX));
  const bool wide = id >= (1u << 28);
  out_.append(wide ? etf::kV4Port : etf::kNewPort);
  put_node(type.get(object, 0));
  std::uint8_t* at = out_.prepare(12);
  if (wide) {
    write_u64(at, id);
    at += 8;
  } else {
    write_u32(at, static_cast<std::uint32_t>(id));
    at += 4;
  }
  write_u32(at, creation);
  out_.commit(wide ? 12 : 8);
}

void Encoder::put_reference(PyObject* object) { put_identifier(object, classes_.reference, 3, 0); }

void Encoder::put_export(PyObject* object) {
  const auto& type = classes_.exported;
  out_.append(etf::kExport);
  put_node(type.get(object, 0));
  put_node(type.get(object, 1));
  out_.append(etf::kSmallInteger);
  out_.append(static_cast<std::uint8_t>(number(type.get(object, 2), UINT8_MAX)));
}

void Encoder::put_fun(PyObject* object) {
  const etf::Bytes bytes = Classes::raw_of(classes_.fun, object);
  if (bytes.empty()) broken(object);
  etf::Reader reader(bytes);
  const auto term = reader.term(open_);
  if (!term || !reader.at_end() || bytes[0] != etf::kNewFun) {
    fail(PyExc_ValueError,
         "a Fun whose bytes are not a fun's: " + (term ? "" : term.error().message()));
  }
  reserve(bytes.size());
  out_.append(bytes);
}

void Encoder::put_bits(PyObject* object) {
  PyObject* data = classes_.bits.get(object, 0);
  if (data == nullptr || !PyBytes_Check(data) || PyBytes_GET_SIZE(data) == 0) broken(object);
  const auto used = static_cast<std::uint8_t>(number(classes_.bits.get(object, 1), 7));
  if (used == 0) broken(object);
  const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(data));
  reserve(size + 1);
  std::uint8_t* at = out_.prepare(6 + size);
  at[0] = etf::kBitBinary;
  write_u32(at + 1, static_cast<std::uint32_t>(size));
  at[5] = used;
  std::memcpy(at + 6, PyBytes_AS_STRING(data), size);
  out_.commit(6 + size);
}

// How to write the value in hand in Python: result[3]['x']. A long path keeps its two ends.
std::string Encoder::path() const {
  constexpr std::size_t kEnds = 8;
  std::string text(root_);
  for (std::size_t i = 0; i < open_; ++i) {
    if (i == kEnds && open_ > 2 * kEnds) {
      text += "[...]";
      i = open_ - kEnds;
    }
    const Open& step = stack_[i];
    switch (step.kind) {
      case Kind::kList:
      case Kind::kTuple:
        text += "[" + std::to_string(step.index > 0 ? step.index - 1 : 0) + "]";
        break;
      case Kind::kImproper:
        text += ".items[" + std::to_string(step.index > 0 ? step.index - 1 : 0) + "]";
        break;
      case Kind::kImproperTail:
        text += ".tail";
        break;
      case Kind::kDictKey:
        if (step.held != nullptr) text += "[" + describe(classes_, step.held) + "]";
        break;
      case Kind::kDictValue:
        text += ".keys()[" + std::to_string(step.pairs - 1) + "]";
        break;
    }
  }
  return text;
}

void Codec::encode(PyObject* object, etf::Writer& out, std::string_view root) {
  const std::size_t before = out.buffer().size();
  try {
    Encoder(*this, out.buffer(), root).run(object);
  } catch (...) {
    out.buffer().truncate(before);
    throw;
  }
}

}  // namespace term
