// Terms: the reader and the decoder agree on any bytes, and what was decoded comes back the same.
// The seeds are the golden terms: make_term_corpus.py.
#include <cstdio>
#include <cstdlib>

#include "cnode/etf/reader.hpp"
#include "tests/cpp/python_home.hpp"

namespace {

using base::ErrorCode;
using etf::Bytes;
using python_home::codec;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

// What a decoded object is encoded as; false when it is one of the few that cannot go back.
bool encode(PyObject* object, etf::Buffer& out) {
  etf::Writer writer(out);
  try {
    codec().encode(object, writer);
    return true;
  } catch (const py::Error& error) {
    require(error.matches(PyExc_ValueError),
            "only a ValueError keeps a decoded value from going back");
    require(out.empty(), "a failed encoding leaves nothing behind");
    return false;
  }
}

void decode_and_return(Bytes bytes, term::BinaryPolicy policy) {
  etf::Reader reader(bytes);
  etf::Reader decoder(bytes);
  const auto term = reader.term();
  const auto value = codec().decode(decoder, {policy});
  require(PyErr_Occurred() == nullptr, "no exception is left behind");
  if (!value && value.error().code == ErrorCode::kUnsupported) return;  // it looked no further
  require(term.ok() == value.ok(), "reader and decoder agree on what is a term");
  if (!value) return;
  require(reader.offset() == decoder.offset(), "reader and decoder agree on where it ends");

  etf::Buffer first;
  if (!encode(value->get(), first)) return;
  etf::Reader again(first.bytes());
  require(again.term().ok() && again.at_end(), "what is encoded is one term");
  etf::Reader back(first.bytes());
  const auto second_value = codec().decode(back, {policy});
  require(second_value.ok(), "what is encoded can be decoded");
  etf::Buffer second;
  require(encode(second_value->get(), second), "what came back can go again");
  const Bytes left = first.bytes();
  const Bytes right = second.bytes();
  // {bytes, {bytes, B}} loses a wrapper each time, as documented.
  const std::string_view text(reinterpret_cast<const char*>(left.data()), left.size());
  if (text.find("bytes") != std::string_view::npos) return;
  require(std::equal(left.begin(), left.end(), right.begin(), right.end()),
          "it is the same term again");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  codec();
  static_cast<void>(codec().decode_external({data, size}));
  const Bytes bytes =
      size > 0 && data[0] == etf::kVersion ? Bytes{data + 1, size - 1} : Bytes{data, size};
  decode_and_return(bytes, term::BinaryPolicy::kAuto);
  decode_and_return(bytes, term::BinaryPolicy::kBytes);
  return 0;
}
