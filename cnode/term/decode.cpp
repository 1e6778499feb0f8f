// Decoding: one pass over a peer's bytes that builds the Python objects as it goes.
//
//   bytes ──▶ one value ──▶ its place in the innermost open container ──▶ (is it full?) ──▶ its
//   place in the next …
//                                  stack_[open_]
//
// No step trusts a length: `owed_` counts the terms that the open containers still wait for, each
// of them at least a byte, so what is allocated for them is bounded by the bytes that are really
// there.
#include <zlib.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "cnode/py/gil.hpp"
#include "cnode/py/integer.hpp"
#include "cnode/term/cache.hpp"
#include "cnode/term/classes.hpp"
#include "cnode/term/codec.hpp"

namespace term {

using base::ErrorCode;
using etf::read_u16;
using etf::read_u32;
using etf::read_u64;

namespace {

// From here on bytes are copied without the GIL: nobody else has the new object yet, and a copy of
// megabytes would hold every other thread up.
constexpr std::size_t kLongCopy = 256 * 1024;

constexpr std::uint32_t kReferenceArity = 5;  // of {'$py_object', Node, Creation, Id, Type}

void copy_into(void* to, const std::uint8_t* data, std::size_t size) {
  if (size > kLongCopy) {
    const py::GilRelease released;
    std::memcpy(to, data, size);
  } else if (size > 0) {
    std::memcpy(to, data, size);
  }
}

PyObject* new_bytes(const std::uint8_t* data, std::size_t size) {
  PyObject* value = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
  if (value != nullptr) copy_into(PyBytes_AS_STRING(value), data, size);
  return value;
}

bool is_ascii(const std::uint8_t* data, std::size_t size) {
  constexpr std::uint64_t kHigh = 0x8080808080808080u;
  std::uint64_t word = 0;
  std::size_t i = 0;
  for (; i + 32 <= size; i += 32) {
    std::uint64_t words[4];
    std::memcpy(words, data + i, sizeof words);
    if (((words[0] | words[1] | words[2] | words[3]) & kHigh) != 0) return false;
  }
  for (; i + 8 <= size; i += 8) {
    std::memcpy(&word, data + i, sizeof word);
    if ((word & kHigh) != 0) return false;
  }
  std::uint8_t rest = 0;
  for (; i < size; ++i) rest |= data[i];
  return rest < 0x80;
}

std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace

class Decoder {
 public:
  Decoder(Codec& codec, etf::Bytes bytes, const DecodeOptions& options)
      : codec_(codec),
        classes_(*codec.classes_),
        options_(options),
        begin_(bytes.data()),
        at_(bytes.data()),
        end_(bytes.data() + bytes.size()) {}
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  ~Decoder() {
    for (std::size_t i = 0; i < open_; ++i) {
      Py_DECREF(stack_[i].object);
      Py_XDECREF(stack_[i].key);
    }
  }

  // A new reference; or null, and then either refused() or a Python exception is set.
  PyObject* run();
  bool refused() const { return refused_; }
  base::Error& error() { return error_; }
  std::size_t consumed() const { return static_cast<std::size_t>(at_ - begin_); }

 private:
  enum class Kind : std::uint8_t { kTuple, kList, kMapKey, kMapValue, kLongerList, kTail, kTailed };
  enum class Place : bool { kKey, kValue };

  // An open container. A list whose tail is a list again (no BEAM writes that) becomes a
  // kLongerList: it grows, and counts one level deeper for each such tail. One whose tail is no
  // list waits for it as kTail and is kTailed when it has it.
  struct Open {
    PyObject* object;
    PyObject* key;  // of a map: the key that waits for its value
    std::uint32_t index;
    std::uint32_t count;
    Kind kind;
    std::uint16_t levels;
  };

  std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
  PyObject* refuse(ErrorCode code, const std::uint8_t* at, std::string detail = {}) {
    refused_ = true;
    error_ = {code, static_cast<std::size_t>(at - begin_), std::move(detail)};
    return nullptr;
  }
  PyObject* truncated() { return refuse(ErrorCode::kTruncated, at_); }

  // Null, and there is more to read.
  PyObject* more() {
    more_ = true;
    return nullptr;
  }

  bool fill(Open& top);
  PyObject* plain(Place place);
  PyObject* read();  // the value at the cursor; or null with more_ set when a container opened
  bool put(Open& top, PyObject* value);
  bool insert(Open& map, PyObject* key, PyObject* value);
  bool is_full(const Open& top) const {
    return top.index == top.count && (top.kind != Kind::kTail && top.kind != Kind::kMapValue);
  }
  PyObject* close(Open& top);
  bool is_object_reference(PyObject* tuple) const;
  bool ends(Open& list);
  PyObject* open(PyObject* object, Kind kind, std::uint32_t count, std::uint32_t terms,
                 std::size_t header);

  PyObject* atom(const std::uint8_t* text, std::size_t size, bool latin1, std::size_t header);
  PyObject* binary(const std::uint8_t* data, std::size_t size);
  PyObject* key_text(const std::uint8_t* data, std::size_t size);
  bool is_tagged_bytes(std::size_t header) const;
  PyObject* tagged_bytes(std::size_t header);
  PyObject* big(std::size_t header, std::size_t size, std::uint8_t sign);
  PyObject* characters(std::size_t size);
  bool append_characters(PyObject* list, std::size_t size);
  std::size_t usual_size(std::size_t node, std::size_t numbers) const;
  PyObject* take_raw(const SlotClass<1>& type, std::size_t size);
  PyObject* pid();
  PyObject* port();
  PyObject* reference();
  PyObject* exported();
  PyObject* fun();
  PyObject* bits();
  PyObject* taken(const base::Error& error) {
    return refuse(error.code, at_ + error.offset, error.detail);
  }

  Codec& codec_;
  const Classes& classes_;
  const DecodeOptions options_;
  const std::uint8_t* const begin_;
  const std::uint8_t* at_;
  const std::uint8_t* const end_;
  std::uint64_t owed_ = 1;
  std::size_t open_ = 0;   // containers on the stack
  std::size_t depth_ = 0;  // levels of nesting: open_, and the levels of longer lists
  bool more_ = false;      // a null says: go on reading
  bool refused_ = false;   // a null says: the bytes are at fault
  bool failed_ = false;    // plain()'s null says: Python is
  base::Error error_;
  Open stack_[etf::kMaxDepth];  // NOLINT: only the part in use is ever initialized
};

PyObject* Decoder::run() {
  for (;;) {
    PyObject* value = nullptr;
    if (open_ > 0 && !fill(stack_[open_ - 1])) return nullptr;
    if (open_ > 0 && is_full(stack_[open_ - 1])) {
      value = close(stack_[open_ - 1]);
    } else {
      value = read();
    }
    while (value != nullptr && open_ > 0) {
      Open& top = stack_[open_ - 1];
      value = put(top, value) ? (is_full(top) ? close(top) : more()) : nullptr;
    }
    if (value != nullptr) return value;
    if (!std::exchange(more_, false)) return nullptr;
  }
}

// Reads the plain values that come next straight into their places: the short way that most terms
// take. Whatever is not plain, or not whole, is left to read(). False when Python failed or a key
// was refused.
bool Decoder::fill(Open& top) {
  const std::uint32_t before = top.index;
  if (top.kind == Kind::kMapKey) {
    while (top.index < top.count) {
      PyObject* key = plain(Place::kKey);
      if (key == nullptr) break;
      PyObject* value = plain(Place::kValue);
      if (value == nullptr) {
        top.key = key;
        top.kind = Kind::kMapValue;
        --owed_;
        break;
      }
      if (!insert(top, key, value)) return false;
    }
    owed_ -= 2 * std::uint64_t{top.index - before};
  } else if (top.kind == Kind::kTuple || top.kind == Kind::kList) {
    PyObject** items = top.kind == Kind::kTuple
                           ? reinterpret_cast<PyTupleObject*>(top.object)->ob_item
                           : reinterpret_cast<PyListObject*>(top.object)->ob_item;
    for (; top.index < top.count; ++top.index) {
      PyObject* value = plain(Place::kValue);
      if (value == nullptr) break;
      items[top.index] = value;
    }
    owed_ -= top.index - before;
  }
  return !failed_;
}

// The value at the cursor when it is of the commonest kinds and whole; null when it is not, with
// failed_ set when it is only Python that failed.
inline PyObject* Decoder::plain(Place place) {
  const std::size_t available = left();
  if (available < 2) return nullptr;
  PyObject* value = nullptr;
  switch (*at_) {
    case etf::kSmallInteger:
      value = classes_.bytes[at_[1]].get();
      Py_INCREF(value);
      at_ += 2;
      return value;
    case etf::kInteger:
      if (available < 5) return nullptr;
      value = PyLong_FromLong(static_cast<std::int32_t>(read_u32(at_ + 1)));
      at_ += 5;
      break;
    case etf::kSmallAtomUtf8: {
      const std::size_t size = at_[1];
      if (available - 2 < size || size > TextCache::kLongest) return nullptr;
      value = codec_.values_->find(text_of(at_ + 2, size));
      if (value == nullptr) return nullptr;
      Py_INCREF(value);
      at_ += 2 + size;
      return value;
    }
    case etf::kBinary: {
      if (available < 5 || options_.binary == BinaryPolicy::kBytes) return nullptr;
      const std::size_t size = read_u32(at_ + 1);
      if (size > available - 5) return nullptr;
      if (place == Place::kKey && size <= TextCache::kLongest) {
        value = codec_.keys_->find(text_of(at_ + 5, size));
        if (value == nullptr) return nullptr;
        Py_INCREF(value);
      } else {
        if (!is_ascii(at_ + 5, size)) return nullptr;
        value = PyUnicode_New(static_cast<Py_ssize_t>(size), 127);
        if (value != nullptr && size > 0) {
          std::memcpy(PyUnicode_1BYTE_DATA(value), at_ + 5, size);
        }
      }
      at_ += 5 + size;
      break;
    }
    case etf::kNewFloat: {
      if (available < 9) return nullptr;
      const auto number = std::bit_cast<double>(read_u64(at_ + 1));
      if (!std::isfinite(number)) return nullptr;
      value = PyFloat_FromDouble(number);
      at_ += 9;
      break;
    }
    default:
      return nullptr;
  }
  failed_ = value == nullptr;
  return value;
}

// Gives `value` to a container as its next element. False when that failed.
bool Decoder::put(Open& top, PyObject* value) {
  switch (top.kind) {
    case Kind::kTuple:
      PyTuple_SET_ITEM(top.object, static_cast<Py_ssize_t>(top.index++), value);
      return true;
    case Kind::kList:
      PyList_SET_ITEM(top.object, static_cast<Py_ssize_t>(top.index++), value);
      return true;
    case Kind::kLongerList: {
      const py::Ref owned = py::Ref::steal(value);
      ++top.index;
      return PyList_Append(top.object, value) == 0;
    }
    case Kind::kTail: {
      // The improper list takes the place of the list that it was until now.
      PyObject* items = PyList_AsTuple(top.object);
      PyObject* whole = classes_.improper.make(items, value);
      if (whole == nullptr) return false;
      Py_SETREF(top.object, whole);
      top.kind = Kind::kTailed;
      return true;
    }
    case Kind::kMapKey:
      top.key = value;
      top.kind = Kind::kMapValue;
      return true;
    case Kind::kMapValue:
      top.kind = Kind::kMapKey;
      return insert(top, std::exchange(top.key, nullptr), value);
    case Kind::kTailed:
      break;
  }
  return false;
}

// Puts a pair into a map, taking over both. Keys that Erlang tells apart must not become one.
inline bool Decoder::insert(Open& map, PyObject* key, PyObject* value) {
  const py::Ref owned_key = py::Ref::steal(key);
  const py::Ref owned_value = py::Ref::steal(value);
  if (PyDict_SetItem(map.object, key, value) < 0) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) return false;
    PyErr_Clear();
    refuse(ErrorCode::kUnsupported, at_,
           "a map key that Python cannot hash: " + describe(classes_, key));
    return false;
  }
  if (PyDict_GET_SIZE(map.object) != static_cast<Py_ssize_t>(map.index) + 1) {
    refuse(ErrorCode::kUnsupported, at_,
           "two map keys that are equal in Python: " + describe(classes_, key));
    return false;
  }
  ++map.index;
  return true;
}

// Takes a full container off the stack: its value, or null when it was a list that does not end
// yet.
PyObject* Decoder::close(Open& top) {
  if (top.kind == Kind::kList || top.kind == Kind::kLongerList) {
    if (!ends(top)) return nullptr;
  }
  depth_ -= 1u + top.levels;
  --open_;
  if (top.kind == Kind::kTuple && top.count == kReferenceArity && is_object_reference(top.object)) {
    const py::Ref reference = py::Ref::steal(top.object);
    return PyObject_CallOneArg(classes_.object_of.get(), reference.get());
  }
  return top.object;
}

// Whether this is {'$py_object', …}: an object of a node that a peer holds a reference to.
inline bool Decoder::is_object_reference(PyObject* tuple) const {
  PyObject* tag = PyTuple_GET_ITEM(tuple, 0);
  return Py_IS_TYPE(tag, classes_.atom_type()) &&
         PyUnicode_CompareWithASCIIString(tag, "$py_object") == 0;
}

// A list has its elements: what ends it? True when that was [] (or characters); false when there is
// more to read, or it is refused.
bool Decoder::ends(Open& list) {
  if (at_ == end_) {
    truncated();
    return false;
  }
  if (*at_ == etf::kNil) {
    ++at_;
    --owed_;
    return true;
  }
  if (*at_ == etf::kString) {
    if (left() < 3 || left() - 3 < read_u16(at_ + 1)) {
      truncated();
      return false;
    }
    const std::size_t size = read_u16(at_ + 1);
    at_ += 3;
    --owed_;
    if (!append_characters(list.object, size)) return false;
    at_ += size;
    return true;
  }
  if (*at_ == etf::kList) {
    const std::uint32_t count = left() < 5 ? 0 : read_u32(at_ + 1);
    owed_ += count;  // its elements and its tail, less itself
    if (left() < 5 || (count != 0 && owed_ > left() - 5)) {
      truncated();
      return false;
    }
    if (count == 0 || depth_ == etf::kMaxDepth) {
      refuse(count == 0 ? ErrorCode::kMalformed : ErrorCode::kTooDeep, at_);
      return false;
    }
    at_ += 5;
    ++depth_;
    list.kind = Kind::kLongerList;
    list.index = 0;
    list.count = count;
    ++list.levels;
  } else {
    list.kind = Kind::kTail;
  }
  more_ = true;
  return false;
}

// Pushes a container that has `terms` terms to come after its header of `header` bytes.
PyObject* Decoder::open(PyObject* object, Kind kind, std::uint32_t count, std::uint32_t terms,
                        std::size_t header) {
  if (object == nullptr) return nullptr;
  at_ += header;
  owed_ += terms;
  stack_[open_++] = {object, nullptr, 0, count, kind, 0};
  ++depth_;
  return more();
}

PyObject* Decoder::read() {
  if (at_ == end_) return truncated();
  --owed_;
  const std::size_t available = left();
  // Whether a container of `terms` terms behind `header` bytes may be opened here.
  const auto admits = [&](std::uint64_t terms, std::size_t header) {
    if (owed_ + terms > available - header) {
      truncated();
    } else if (depth_ == etf::kMaxDepth) {
      refuse(ErrorCode::kTooDeep, at_);
    } else {
      return true;
    }
    return false;
  };
  switch (*at_) {
    case etf::kSmallInteger: {
      if (available < 2) return truncated();
      const long value = at_[1];
      at_ += 2;
      return PyLong_FromLong(value);
    }
    case etf::kInteger: {
      if (available < 5) return truncated();
      const auto value = static_cast<std::int32_t>(read_u32(at_ + 1));
      at_ += 5;
      return PyLong_FromLong(value);
    }
    case etf::kSmallAtomUtf8:
    case etf::kSmallAtom:
      if (available < 2 || available - 2 < at_[1]) return truncated();
      return atom(at_ + 2, at_[1], *at_ == etf::kSmallAtom, 2);
    case etf::kAtomUtf8:
    case etf::kAtom:
      if (available < 3 || available - 3 < read_u16(at_ + 1)) return truncated();
      return atom(at_ + 3, read_u16(at_ + 1), *at_ == etf::kAtom, 3);
    case etf::kBinary: {
      if (available < 5) return truncated();
      const std::size_t size = read_u32(at_ + 1);
      if (size > available - 5) return truncated();
      const bool is_key = open_ > 0 && stack_[open_ - 1].kind == Kind::kMapKey;
      PyObject* value = is_key ? key_text(at_ + 5, size) : binary(at_ + 5, size);
      if (value != nullptr) at_ += 5 + size;
      return value;
    }
    case etf::kSmallTuple: {
      if (available < 2) return truncated();
      const std::uint32_t arity = at_[1];
      if (arity == 0) {
        at_ += 2;
        return PyTuple_New(0);
      }
      if (!admits(arity, 2)) return nullptr;
      if (arity == 2 && is_tagged_bytes(2)) return tagged_bytes(2);
      return open(PyTuple_New(static_cast<Py_ssize_t>(arity)), Kind::kTuple, arity, arity, 2);
    }
    case etf::kNil:
      ++at_;
      return PyList_New(0);
    case etf::kList: {
      if (available < 5) return truncated();
      const std::uint32_t count = read_u32(at_ + 1);
      if (count == 0) return refuse(ErrorCode::kMalformed, at_);
      if (!admits(std::uint64_t{count} + 1, 5)) return nullptr;
      return open(PyList_New(static_cast<Py_ssize_t>(count)), Kind::kList, count, count + 1, 5);
    }
    case etf::kMap: {
      if (available < 5) return truncated();
      const std::uint32_t pairs = read_u32(at_ + 1);
      if (pairs == 0) {
        at_ += 5;
        return PyDict_New();
      }
      if (!admits(std::uint64_t{pairs} * 2, 5)) return nullptr;
      return open(PyDict_New(), Kind::kMapKey, pairs, pairs * 2, 5);
    }
    case etf::kNewFloat: {
      if (available < 9) return truncated();
      const auto value = std::bit_cast<double>(read_u64(at_ + 1));
      if (!std::isfinite(value))
        return refuse(ErrorCode::kMalformed, at_, "a float that is not finite");
      at_ += 9;
      return PyFloat_FromDouble(value);
    }
    case etf::kFloat: {
      if (available < 1 + etf::kFloatText) return truncated();
      double value = 0;
      if (!etf::parse_float_text(at_ + 1, value))
        return refuse(ErrorCode::kMalformed, at_, "a float's text");
      at_ += 1 + etf::kFloatText;
      return PyFloat_FromDouble(value);
    }
    case etf::kString:
      if (available < 3 || available - 3 < read_u16(at_ + 1)) return truncated();
      return characters(read_u16(at_ + 1));
    case etf::kSmallBig:
      if (available < 3 || available - 3 < at_[1]) return truncated();
      return big(3, at_[1], at_[2]);
    case etf::kLargeBig:
      if (available < 6 || available - 6 < read_u32(at_ + 1)) return truncated();
      return big(6, read_u32(at_ + 1), at_[5]);
    case etf::kLargeTuple: {
      if (available < 5) return truncated();
      const std::uint32_t arity = read_u32(at_ + 1);
      if (arity == 0) {
        at_ += 5;
        return PyTuple_New(0);
      }
      if (!admits(arity, 5)) return nullptr;
      if (arity == 2 && is_tagged_bytes(5)) return tagged_bytes(5);
      return open(PyTuple_New(static_cast<Py_ssize_t>(arity)), Kind::kTuple, arity, arity, 5);
    }
    case etf::kPid:
    case etf::kNewPid:
      return pid();
    case etf::kNewReference:
    case etf::kNewerReference:
      return reference();
    case etf::kPort:
    case etf::kNewPort:
    case etf::kV4Port:
      return port();
    case etf::kExport:
      return exported();
    case etf::kNewFun:
      return fun();
    case etf::kBitBinary:
      return bits();
    default:
      return refuse(ErrorCode::kUnknownTag, at_, "tag " + std::to_string(*at_));
  }
}

PyObject* Decoder::atom(const std::uint8_t* text, std::size_t size, bool latin1,
                        std::size_t header) {
  const std::string_view name = text_of(text, size);
  PyObject* value = nullptr;
  if (!latin1 || is_ascii(text, size)) {
    const bool known_good = size <= TextCache::kLongest && codec_.values_->find(name) != nullptr;
    if (!known_good && !etf::is_utf8(name, etf::kMaxAtomCharacters)) {
      return refuse(ErrorCode::kMalformed, at_, "an atom's text");
    }
    value = codec_.atom_value(name);
  } else {
    if (size > etf::kMaxAtomCharacters)
      return refuse(ErrorCode::kMalformed, at_, "an atom's length");
    value = codec_.atom_value(etf::AtomView{name, true}.utf8());
  }
  if (value != nullptr) at_ += header + size;
  return value;
}

PyObject* Decoder::binary(const std::uint8_t* data, std::size_t size) {
  const char* text = reinterpret_cast<const char*>(data);
  const auto length = static_cast<Py_ssize_t>(size);
  if (options_.binary == BinaryPolicy::kBytes) return new_bytes(data, size);
  enum class Text { kAscii, kUtf8, kNone };
  const auto look = [&] {
    if (is_ascii(data, size)) return Text::kAscii;
    return etf::is_utf8(text_of(data, size)) ? Text::kUtf8 : Text::kNone;
  };
  Text kind = Text::kNone;
  if (size > kLongCopy) {
    const py::GilRelease released;
    kind = look();
  } else {
    kind = look();
  }
  if (kind == Text::kAscii) {
    PyObject* value = PyUnicode_New(length, 127);
    if (value != nullptr) copy_into(PyUnicode_1BYTE_DATA(value), data, size);
    return value;
  }
  if (kind == Text::kUtf8) return PyUnicode_DecodeUTF8(text, length, nullptr);
  if (options_.binary == BinaryPolicy::kAuto) return new_bytes(data, size);
  return refuse(ErrorCode::kUnsupported, at_, "a binary that is not UTF-8 where text is asked for");
}

// A map's key: the same few short texts again and again.
PyObject* Decoder::key_text(const std::uint8_t* data, std::size_t size) {
  if (size > TextCache::kLongest || options_.binary == BinaryPolicy::kBytes)
    return binary(data, size);
  const std::string_view text = text_of(data, size);
  if (PyObject* known = codec_.keys_->find(text)) {
    Py_INCREF(known);
    return known;
  }
  PyObject* value = binary(data, size);
  if (value != nullptr && PyUnicode_CheckExact(value)) codec_.keys_->keep(text, value);
  return value;
}

// {bytes, Binary}, behind a tuple's header: the way to say that a binary is `bytes` whatever the
// policy.
bool Decoder::is_tagged_bytes(std::size_t header) const {
  const std::uint8_t* at = at_ + header;
  const std::size_t available = left() - header;
  if (available == 0) return false;
  const bool small = *at == etf::kSmallAtomUtf8 || *at == etf::kSmallAtom;
  if (!small && *at != etf::kAtomUtf8 && *at != etf::kAtom) return false;
  const std::size_t name = small ? 2 : 3;
  if (available < name + 5 + 5) return false;
  const std::size_t length = small ? at[1] : read_u16(at + 1);
  return length == 5 && std::memcmp(at + name, "bytes", 5) == 0 && at[name + 5] == etf::kBinary;
}

PyObject* Decoder::tagged_bytes(std::size_t header) {
  const bool small = at_[header] == etf::kSmallAtomUtf8 || at_[header] == etf::kSmallAtom;
  const std::size_t front = header + (small ? 2 : 3) + 5;
  const std::size_t size = read_u32(at_ + front + 1);
  if (size > left() - front - 5) return truncated();
  PyObject* value = new_bytes(at_ + front + 5, size);
  if (value != nullptr) at_ += front + 5 + size;
  return value;
}

PyObject* Decoder::big(std::size_t header, std::size_t size, std::uint8_t sign) {
  if (sign > 1) return refuse(ErrorCode::kMalformed, at_, "an integer's sign");
  const std::uint8_t* digits = at_ + header;
  PyObject* value = nullptr;
  if (size <= 8) {
    std::uint64_t magnitude = 0;
    for (std::size_t i = size; i-- > 0;) magnitude = (magnitude << 8) | digits[i];
    constexpr std::uint64_t kMost = INT64_MAX;
    if (sign == 0) {
      value = PyLong_FromUnsignedLongLong(magnitude);
    } else if (magnitude <= kMost) {
      value = PyLong_FromLongLong(-static_cast<long long>(magnitude));
    }
  }
  if (value == nullptr) value = py::integer_from_bytes(digits, size, sign == 1).release();
  at_ += header + size;
  return value;
}

bool Decoder::append_characters(PyObject* list, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) {
    const py::Ref number = py::Ref::steal(PyLong_FromLong(at_[i]));
    if (!number || PyList_Append(list, number.get()) < 0) return false;
  }
  return true;
}

// STRING_EXT: a list of small integers, packed.
PyObject* Decoder::characters(std::size_t size) {
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(size));
  if (list == nullptr) return nullptr;
  for (std::size_t i = 0; i < size; ++i) {
    PyObject* number =
        PyLong_FromLong(at_[3 + i]);  // always there already: small integers are never made anew
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), number);
  }
  at_ += 3 + size;
  return list;
}

// How long the identifier at the cursor is if it stands in the form that nodes write today, its
// node's name at `node` and `numbers` bytes behind that; 0 if the reader has to look at it.
std::size_t Decoder::usual_size(std::size_t node, std::size_t numbers) const {
  if (left() < node + 2 || at_[node] != etf::kSmallAtomUtf8) return 0;
  const std::size_t length = at_[node + 1];
  const std::size_t size = node + 2 + length + numbers;
  if (left() < size) return 0;
  return is_ascii(at_ + node + 2, length) ? size : 0;
}

PyObject* Decoder::take_raw(const SlotClass<1>& type, std::size_t size) {
  PyObject* raw =
      PyBytes_FromStringAndSize(reinterpret_cast<const char*>(at_), static_cast<Py_ssize_t>(size));
  at_ += size;
  return type.make(raw);
}

PyObject* Decoder::pid() {
  if (*at_ == etf::kNewPid) {
    if (const std::size_t size = usual_size(1, 12); size != 0) return take_raw(classes_.pid, size);
  }
  etf::Reader reader({at_, end_});
  const auto view = reader.pid();
  if (!view) return taken(view.error());
  PyObject* value = codec_.pid(*view).release();
  at_ += reader.offset();
  return value;
}

PyObject* Decoder::reference() {
  if (*at_ == etf::kNewerReference && left() > 3) {
    const std::size_t words = read_u16(at_ + 1);
    const bool usual = words > 0 && words <= etf::kMaxReferenceWords;
    const std::size_t size = usual ? usual_size(3, 4 + 4 * words) : 0;
    if (size != 0) return take_raw(classes_.reference, size);
  }
  etf::Reader reader({at_, end_});
  const auto view = reader.reference();
  if (!view) return taken(view.error());
  PyObject* value = codec_.reference(*view).release();
  at_ += reader.offset();
  return value;
}

PyObject* Decoder::port() {
  etf::Reader reader({at_ + 1, end_});
  const auto node = reader.atom();
  if (!node) {
    return refuse(
        node.error().code == ErrorCode::kWrongType ? ErrorCode::kMalformed : node.error().code,
        at_);
  }
  const etf::Bytes rest = reader.rest();
  const std::size_t id_size = *at_ == etf::kV4Port ? 8 : 4;
  const std::size_t creation_size = *at_ == etf::kPort ? 1 : 4;
  if (rest.size() < id_size + creation_size) return truncated();
  const std::uint64_t id = id_size == 8 ? read_u64(rest.data()) : read_u32(rest.data());
  const std::uint32_t creation =
      creation_size == 1 ? rest[id_size] : read_u32(rest.data() + id_size);
  py::Ref name = codec_.atom(node->utf8());
  PyObject* value = classes_.port.make(name.release(), PyLong_FromUnsignedLongLong(id),
                                       PyLong_FromUnsignedLong(creation));
  at_ += 1 + reader.offset() + id_size + creation_size;
  return value;
}

PyObject* Decoder::exported() {
  etf::Reader whole({at_, end_});
  const auto checked = whole.term(depth_);
  if (!checked) return taken(checked.error());
  etf::Reader reader({at_ + 1, end_});
  const std::string module = reader.atom()->utf8();
  const std::string function = reader.atom()->utf8();
  const long arity = static_cast<long>(*reader.integer());
  py::Ref module_atom = codec_.atom(module);
  py::Ref function_atom = codec_.atom(function);
  PyObject* value = classes_.exported.make(module_atom.release(), function_atom.release(),
                                           PyLong_FromLong(arity));
  at_ += whole.offset();
  return value;
}

// A fun stays the bytes it came as: its environment means something only where it was made.
PyObject* Decoder::fun() {
  etf::Reader reader({at_, end_});
  const auto raw = reader.term(depth_);
  if (!raw) return taken(raw.error());
  PyObject* value = classes_.fun.make(PyBytes_FromStringAndSize(
      reinterpret_cast<const char*>(raw->data()), static_cast<Py_ssize_t>(raw->size())));
  at_ += reader.offset();
  return value;
}

PyObject* Decoder::bits() {
  etf::Reader reader({at_, end_});
  const auto raw = reader.term(depth_);
  if (!raw) return taken(raw.error());
  const std::size_t size = raw->size() - 6;
  const std::uint8_t used = at_[5];
  PyObject* value = nullptr;
  if (used == 0 || used == 8) {
    value = binary(at_ + 6, size);
  } else {
    // Made empty and then filled: a single byte given at once would be one that Python shares.
    py::Ref data = py::check(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    auto* copy = reinterpret_cast<std::uint8_t*>(PyBytes_AS_STRING(data.get()));
    std::memcpy(copy, at_ + 6, size);
    copy[size - 1] &= static_cast<std::uint8_t>(0xFF00u >> used);
    value = classes_.bits.make(data.release(), PyLong_FromLong(used));
  }
  if (value != nullptr) at_ += reader.offset();
  return value;
}

base::Result<py::Ref> Codec::decode(etf::Reader& in, const DecodeOptions& options) {
  Decoder decoder(*this, in.rest(), options);
  py::Ref value = py::Ref::steal(decoder.run());
  if (!value) {
    if (!decoder.refused()) py::throw_fetched();
    base::Error error = std::move(decoder.error());
    error.offset += in.offset();
    return error;
  }
  in.advance(decoder.consumed());
  return value;
}

namespace {

// Inflates into memory that grows with what really comes out, never to a size that was only
// promised.
base::Result<etf::Buffer> inflate_term(etf::Bytes compressed, std::size_t size) {
  const auto refuse = [](ErrorCode code, const char* detail) {
    return base::Error{code, 2, detail};
  };
  if (size > etf::kMaxMessage) return refuse(ErrorCode::kTooLarge, "a compressed term");
  z_stream stream{};
  stream.next_in = const_cast<std::uint8_t*>(compressed.data());
  stream.avail_in = static_cast<uInt>(compressed.size());
  if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
  struct End {
    z_stream* stream;
    ~End() { inflateEnd(stream); }
  } end{&stream};
  constexpr std::size_t kStep = 64u << 10;
  etf::Buffer out;
  for (;;) {
    // One byte more than was promised, to notice when there is more.
    const std::size_t room = std::min(kStep, size + 1 - out.size());
    stream.next_out = out.prepare(room);
    stream.avail_out = static_cast<uInt>(room);
    const int status = inflate(&stream, Z_NO_FLUSH);
    out.commit(room - stream.avail_out);
    if (out.size() > size)
      return refuse(ErrorCode::kMalformed, "a compressed term larger than it says");
    if (status == Z_STREAM_END) break;
    if (status == Z_MEM_ERROR) throw std::bad_alloc();
    if (status == Z_BUF_ERROR && stream.avail_in == 0)
      return refuse(ErrorCode::kTruncated, "a compressed term");
    if (status != Z_OK) return refuse(ErrorCode::kMalformed, "a compressed term");
  }
  if (out.size() != size)
    return refuse(ErrorCode::kMalformed, "a compressed term smaller than it says");
  if (stream.avail_in != 0) return refuse(ErrorCode::kMalformed, "bytes after a compressed term");
  return out;
}

}  // namespace

base::Result<py::Ref> Codec::decode_external(etf::Bytes bytes, const DecodeOptions& options) {
  etf::Reader reader(bytes);
  if (const auto version = reader.version(); !version) return version.error();
  if (bytes.size() > etf::kMaxMessage) return base::Error{ErrorCode::kTooLarge, 0, "a term"};
  if (!reader.at_end() && *reader.peek() == etf::kCompressed) {
    if (reader.remaining() < 5) return base::Error{ErrorCode::kTruncated, reader.offset(), {}};
    auto inflated = inflate_term(reader.rest().subspan(5), read_u32(reader.rest().data() + 1));
    if (!inflated) return inflated.error();
    etf::Reader inner(inflated->bytes());
    auto value = decode(inner, options);
    if (value && !inner.at_end())
      return base::Error{ErrorCode::kMalformed, inner.offset(), "bytes after the term"};
    return value;
  }
  auto value = decode(reader, options);
  if (value && !reader.at_end())
    return base::Error{ErrorCode::kMalformed, reader.offset(), "bytes after the term"};
  return value;
}

}  // namespace term
