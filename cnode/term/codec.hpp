// Codec: terms as bytes to Python objects and back. docs/types.md is its one table.
//
// One per interpreter, made and used under the GIL. It keeps the classes of erlang.terms, the atoms
// and map keys it met lately, and the settings. Neither direction recurses, so no depth of nesting
// can exhaust the stack.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cnode/base/result.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/values.hpp"
#include "cnode/etf/writer.hpp"
#include "cnode/py/ref.hpp"

namespace term {

// What an Erlang binary becomes. kAuto: `str` if it is valid UTF-8, else `bytes`. {bytes, B} is
// `bytes` always.
enum class BinaryPolicy : std::uint8_t { kAuto, kStr, kBytes };

struct DecodeOptions {
  BinaryPolicy binary = BinaryPolicy::kAuto;
};

struct Classes;
class TextCache;

class Codec {
 public:
  // Imports erlang.terms. Throws py::Error.
  static std::unique_ptr<Codec> create();
  ~Codec();
  Codec(const Codec&) = delete;
  Codec& operator=(const Codec&) = delete;

  // Decodes the one term at the reader's cursor and steps over it. An error means that the peer's
  // bytes are at fault, or (kUnsupported) that a term has no Python value: a map key that is
  // unhashable or equal to another, a binary that is no text though text was asked for. Then the
  // bytes behind that place were not looked at, the cursor stays, and Reader::term() tells whether
  // and where the term ends. Throws py::Error when Python fails (no memory).
  base::Result<py::Ref> decode(etf::Reader& in, const DecodeOptions& options = {});

  // The same for a whole external term: 131 and the term, or 131, 80 and the term compressed;
  // nothing after it.
  base::Result<py::Ref> decode_external(etf::Bytes bytes, const DecodeOptions& options = {});

  // Appends one object. Throws py::Error: TypeError for a value that has no term and ValueError for
  // one that is too deep or too large, both naming the path to it, which starts with `root`.
  // Whatever was appended is taken back then.
  void encode(PyObject* object, etf::Writer& out, std::string_view root = "result");

  // Values by themselves. Throw py::Error.
  py::Ref atom(std::string_view utf8);
  py::Ref pid(const etf::PidView& view);
  py::Ref reference(const etf::RefView& view);

  // Whether `object` is such a value (a whole one), and if so its fields. Never leaves an exception
  // set.
  bool as_pid(PyObject* object, etf::Pid& out) const;
  bool as_reference(PyObject* object, etf::Ref& out) const;
  bool is_atom(PyObject* object) const;

  // What None is sent as, and which atoms arrive as None. Throw py::Error (ValueError) for `true`,
  // `false` and what is no atom.
  void set_none_atom(std::string_view utf8);
  void set_none_atoms(const std::vector<std::string>& names);

 private:
  friend class Decoder;
  friend class Encoder;

  Codec();
  // What an atom means to Python: a bool, None or an Atom. A new reference, or null with an
  // exception set.
  PyObject* atom_value(std::string_view utf8);
  PyObject* new_atom(std::string_view utf8);

  std::unique_ptr<Classes> classes_;
  std::unique_ptr<TextCache> values_;  // atoms as what they mean
  std::unique_ptr<TextCache> atoms_;   // atoms as Atom
  std::unique_ptr<TextCache> keys_;    // binaries that were map keys, as str
  std::string none_atom_ = "none";
  std::vector<std::string> none_atoms_{"undefined", "nil", "none"};
};

// Adds encode, decode, set_none_atom and set_none_atoms to a module, and the Codec they share. -1
// with an exception set when it fails.
int add_to_module(PyObject* module);

// The Codec of a module that add_to_module filled. Throws py::Error.
Codec& codec_of(PyObject* module);

}  // namespace term
