// The codec inside an embedded interpreter, with ei as the other opinion.
#include <ei.h>

#include <memory>
#include <random>

#include "cnode/py/integer.hpp"
#include "cnode/term/codec.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/golden.hpp"
#include "tests/cpp/python_home.hpp"

using etf::Bytes;
using etf::Reader;
using python_home::codec;

namespace {

etf::Buffer encoded(PyObject* object) {
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  codec().encode(object, writer);
  return buffer;
}

// One random term, as a description that both codecs are asked about.
struct Tree {
  enum Kind {
    kInteger,
    kBig,
    kFloat,
    kAtom,
    kBinary,
    kText,
    kPid,
    kPort,
    kRef,
    kList,
    kImproper,
    kTuple,
    kMap,
    kCharacters
  };
  explicit Tree(Kind which) : kind(which) {}

  Kind kind;
  long long integer = 0;
  std::vector<unsigned short> digits;
  double real = 0;
  std::string text;
  std::array<unsigned, 5> words{};
  std::vector<Tree> children;
};

class Forest {
 public:
  explicit Forest(unsigned seed) : random_(seed) {}

  Tree grow(int depth) {
    Tree tree(static_cast<Tree::Kind>(pick(depth > 0 ? 14 : 9)));
    switch (tree.kind) {
      case Tree::kInteger:
        tree.integer = static_cast<long long>(bits() >> pick(64)) * (pick(2) == 0 ? 1 : -1);
        break;
      case Tree::kBig:
        for (unsigned i = 5 + pick(6); i > 0; --i) {
          tree.digits.push_back(static_cast<unsigned short>(1 + pick(65535)));
        }
        tree.integer = pick(2);
        break;
      case Tree::kFloat:
        tree.real = (static_cast<double>(bits()) - 1e18) / 3.0;
        break;
      case Tree::kAtom:
        tree.text = "a" + text(20);
        break;
      case Tree::kBinary:
        tree.text = text(300) + "\xFF";
        break;
      case Tree::kText:
        tree.text = text(300);
        break;
      case Tree::kPid:
      case Tree::kPort:
      case Tree::kRef:
        for (unsigned& word : tree.words) word = static_cast<unsigned>(bits());
        tree.words[0] &= 0x3FFFF;
        break;
      case Tree::kCharacters:
        tree.text = text(30);
        break;
      case Tree::kMap:
        for (unsigned i = 0, count = pick(5); i < count; ++i) {
          Tree key(Tree::kText);
          key.text = std::to_string(i) + text(10);
          tree.children.push_back(key);
          tree.children.push_back(grow(depth - 1));
        }
        break;
      default:
        for (unsigned i = tree.kind == Tree::kImproper ? 2 : 0, count = i + pick(5); i < count;
             ++i) {
          tree.children.push_back(grow(depth - 1));
        }
        if (tree.kind == Tree::kImproper) {
          Tree tail(Tree::kAtom);
          tail.text = "tail";
          while (tree.children.size() < 2) tree.children.push_back(tail);
          tree.children.back() = tail;
        }
    }
    return tree;
  }

 private:
  unsigned pick(unsigned below) { return static_cast<unsigned>(random_() % below); }
  std::uint64_t bits() { return random_(); }
  std::string text(unsigned below) {
    static constexpr const char* kLetters[] = {"a",  "b",      "z",      " ",
                                               "\n", "\u00e4", "\u4e16", "\U0001F600"};
    std::string out;
    for (unsigned i = pick(below); i > 0; --i) out += kLetters[pick(8)];
    return out;
  }

  std::mt19937_64 random_;
};

void fill(erlang_pid& pid, const Tree& tree) {
  std::strcpy(pid.node, "a@host");
  pid.num = tree.words[1];
  pid.serial = tree.words[2];
  pid.creation = tree.words[3];
}

void fill(erlang_port& port, const Tree& tree) {
  std::strcpy(port.node, "a@host");
  port.id = (std::uint64_t{tree.words[1]} << 28) | tree.words[2];
  port.creation = tree.words[3];
}

void fill(erlang_ref& reference, const Tree& tree) {
  std::strcpy(reference.node, "a@host");
  reference.len = 3;
  reference.creation = tree.words[3];
  for (std::size_t i = 0; i < 3; ++i) reference.n[i] = tree.words[i];
}

// Writes a tree with ei.
void write(ei_x_buff& out, const Tree& tree) {
  const auto length = static_cast<int>(tree.text.size());
  const auto count = static_cast<long>(tree.children.size());
  switch (tree.kind) {
    case Tree::kInteger:
      ei_x_encode_longlong(&out, tree.integer);
      return;
    case Tree::kBig: {
      erlang_big* big = ei_alloc_big(static_cast<unsigned>(tree.digits.size()) * 2);
      std::copy(tree.digits.begin(), tree.digits.end(), static_cast<unsigned short*>(big->digits));
      big->is_neg = tree.integer != 0;
      ei_x_encode_big(&out, big);
      ei_free_big(big);
      return;
    }
    case Tree::kFloat:
      ei_x_encode_double(&out, tree.real);
      return;
    case Tree::kAtom:
      ei_x_encode_atom_len_as(&out, tree.text.data(), length, ERLANG_UTF8, ERLANG_UTF8);
      return;
    case Tree::kBinary:
    case Tree::kText:
      ei_x_encode_binary(&out, tree.text.data(), length);
      return;
    case Tree::kPid: {
      erlang_pid pid{};
      fill(pid, tree);
      ei_x_encode_pid(&out, &pid);
      return;
    }
    case Tree::kPort: {
      erlang_port port{};
      fill(port, tree);
      ei_x_encode_port(&out, &port);
      return;
    }
    case Tree::kRef: {
      erlang_ref reference{};
      fill(reference, tree);
      ei_x_encode_ref(&out, &reference);
      return;
    }
    case Tree::kCharacters:
      ei_x_encode_string_len(&out, tree.text.data(), length);
      return;
    case Tree::kTuple:
      ei_x_encode_tuple_header(&out, count);
      break;
    case Tree::kMap:
      ei_x_encode_map_header(&out, count / 2);
      break;
    case Tree::kList:
      ei_x_encode_list_header(&out, count);
      break;
    case Tree::kImproper:
      ei_x_encode_list_header(&out, count - 1);
      break;
  }
  for (const Tree& child : tree.children) write(out, child);
  if (tree.kind == Tree::kList && count > 0) ei_x_encode_empty_list(&out);
}

// Whether ei reads the tree at `index` of bytes that our reader has found whole.
bool matches(const char* bytes, int* index, const Tree& tree) {
  int count = 0;
  switch (tree.kind) {
    case Tree::kInteger: {
      long long value = 0;
      return ei_decode_longlong(bytes, index, &value) == 0 && value == tree.integer;
    }
    case Tree::kBig: {
      int type = 0;
      int size = 0;
      if (ei_get_type(bytes, index, &type, &size) != 0) return false;
      erlang_big* big = ei_alloc_big(static_cast<unsigned>(size));
      bool same = ei_decode_big(bytes, index, big) == 0 && big->is_neg == (tree.integer != 0);
      const auto* digits = static_cast<unsigned short*>(big->digits);
      for (std::size_t i = 0; same && i < tree.digits.size(); ++i)
        same = digits[i] == tree.digits[i];
      same = same && (big->arity + 1) / 2 == tree.digits.size();
      ei_free_big(big);
      return same;
    }
    case Tree::kFloat: {
      double value = 0;
      return ei_decode_double(bytes, index, &value) == 0 && value == tree.real;
    }
    case Tree::kAtom: {
      char atom[MAXATOMLEN_UTF8];
      return ei_decode_atom_as(bytes, index, atom, sizeof atom, ERLANG_UTF8, nullptr, nullptr) ==
                 0 &&
             tree.text == atom;
    }
    case Tree::kBinary:
    case Tree::kText: {
      std::string binary(tree.text.size() + 1, '\0');
      long size = 0;
      int type = 0;
      int announced = 0;
      if (ei_get_type(bytes, index, &type, &announced) != 0 || type != ERL_BINARY_EXT) return false;
      if (static_cast<std::size_t>(announced) != tree.text.size()) return false;
      if (ei_decode_binary(bytes, index, binary.data(), &size) != 0) return false;
      binary.resize(static_cast<std::size_t>(size));
      return binary == tree.text;
    }
    case Tree::kPid: {
      erlang_pid wanted{};
      erlang_pid pid{};
      fill(wanted, tree);
      return ei_decode_pid(bytes, index, &pid) == 0 && ei_cmp_pids(&pid, &wanted) == 0;
    }
    case Tree::kPort: {
      erlang_port wanted{};
      erlang_port port{};
      fill(wanted, tree);
      return ei_decode_port(bytes, index, &port) == 0 && ei_cmp_ports(&port, &wanted) == 0;
    }
    case Tree::kRef: {
      erlang_ref wanted{};
      erlang_ref reference{};
      fill(wanted, tree);
      return ei_decode_ref(bytes, index, &reference) == 0 && ei_cmp_refs(&reference, &wanted) == 0;
    }
    case Tree::kCharacters: {
      if (ei_decode_list_header(bytes, index, &count) != 0) return false;
      if (static_cast<std::size_t>(count) != tree.text.size()) return false;
      for (const char c : tree.text) {
        long value = 0;
        if (ei_decode_long(bytes, index, &value) != 0) return false;
        if (value != static_cast<unsigned char>(c)) return false;
      }
      return tree.text.empty() || (ei_decode_list_header(bytes, index, &count) == 0 && count == 0);
    }
    case Tree::kTuple:
      if (ei_decode_tuple_header(bytes, index, &count) != 0) return false;
      break;
    case Tree::kMap:
      if (ei_decode_map_header(bytes, index, &count) != 0) return false;
      count *= 2;
      break;
    case Tree::kList:
      if (ei_decode_list_header(bytes, index, &count) != 0) return false;
      break;
    case Tree::kImproper:
      if (ei_decode_list_header(bytes, index, &count) != 0) return false;
      ++count;
      break;
  }
  if (static_cast<std::size_t>(count) != tree.children.size()) return false;
  for (const Tree& child : tree.children) {
    if (!matches(bytes, index, child)) return false;
  }
  if (tree.kind != Tree::kList || count == 0) return true;
  return ei_decode_list_header(bytes, index, &count) == 0 && count == 0;
}

}  // namespace

TEST_CASE("a term that ei wrote is, read and written by us, the same term to ei", "[term]") {
  codec();
  for (unsigned seed = 0; seed < 20; ++seed) {
    Forest forest(seed);
    for (int i = 0; i < 500; ++i) {
      const Tree tree = forest.grow(5);
      ei_x_buff written;
      ei_x_new(&written);
      write(written, tree);
      const Bytes theirs{reinterpret_cast<const std::uint8_t*>(written.buff),
                         static_cast<std::size_t>(written.index)};
      Reader reader(theirs);
      auto value = codec().decode(reader);
      INFO("seed " << seed << ", term " << i);
      REQUIRE(value);
      REQUIRE(reader.at_end());

      const etf::Buffer ours = encoded(value->get());
      Reader check(ours.bytes());
      REQUIRE(check.term());
      REQUIRE(check.at_end());
      int index = 0;
      REQUIRE(matches(reinterpret_cast<const char*>(ours.data()), &index, tree));
      REQUIRE(static_cast<std::size_t>(index) == ours.size());
      ei_x_free(&written);
    }
  }
}

TEST_CASE("the reader and the decoder agree on what is a term", "[term]") {
  std::mt19937 random(7);
  std::size_t accepted = 0;
  std::size_t refused = 0;
  for (const Golden& golden : golden_terms()) {
    if (golden.is_compressed()) continue;
    std::vector<std::uint8_t> bytes(golden.term().begin(), golden.term().end());
    for (std::size_t place = 0; place < std::min<std::size_t>(bytes.size(), 120); ++place) {
      for (int i = 0; i < 8; ++i) {
        const std::uint8_t before = bytes[place];
        bytes[place] = static_cast<std::uint8_t>(random());
        const std::vector<std::uint8_t> alone(bytes);
        Reader reader{Bytes(alone)};
        Reader decoder{Bytes(alone)};
        const auto term = reader.term();
        const auto value = codec().decode(decoder);
        INFO(golden.name << ", byte " << place << " is " << int{bytes[place]});
        const bool unsupported = !value && value.error().code == base::ErrorCode::kUnsupported;
        REQUIRE((unsupported || term.ok() == value.ok()));  // unsupported: it looked no further
        if (value) REQUIRE(decoder.offset() == reader.offset());
        (value ? accepted : refused) += 1;
        bytes[place] = before;
      }
    }
  }
  CHECK(accepted > 1000);
  CHECK(refused > 1000);
}

TEST_CASE("an error of decoding tells where in the reader's bytes it is", "[term]") {
  const std::uint8_t bytes[] = {97, 1, 104, 2, 97, 1, 0};
  Reader reader{Bytes(bytes)};
  REQUIRE(codec().decode(reader));
  const auto value = codec().decode(reader);
  REQUIRE_FALSE(value);
  CHECK(value.error().code == base::ErrorCode::kUnknownTag);
  CHECK(value.error().offset == 6);
  CHECK(reader.offset() == 2);
}

TEST_CASE("what could not be encoded leaves nothing in the buffer", "[term]") {
  codec();
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  writer.atom("before");
  const std::size_t before = buffer.size();
  const py::Ref bad = python_home::evaluate("[1, {'x': object()}]");
  try {
    codec().encode(bad.get(), writer, "result");
    FAIL("an object was encoded");
  } catch (const py::Error& error) {
    CHECK(error.matches(PyExc_TypeError));
    CHECK(error.describe().message == "result[1]['x']: cannot encode 'object' object");
    CHECK(error.describe().type == "TypeError");
  }
  CHECK(buffer.size() == before);
  CHECK(PyErr_Occurred() == nullptr);
}

TEST_CASE("identifiers go to Python and come back as they were", "[term]") {
  codec();
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  const etf::Pid pid{"a@h", 1, UINT32_MAX, 3};
  const etf::Ref reference{"ö@h", 9, 5, {7, 8, 9, 10, 11}};
  writer.pid(pid).reference(reference);
  Reader reader(buffer.bytes());
  const py::Ref python_pid = codec().pid(*reader.pid());
  const py::Ref python_reference = codec().reference(*reader.reference());

  etf::Pid pid_back;
  etf::Ref reference_back;
  CHECK(codec().as_pid(python_pid.get(), pid_back));
  CHECK(pid_back == pid);
  CHECK(codec().as_reference(python_reference.get(), reference_back));
  CHECK(reference_back == reference);
  CHECK_FALSE(codec().as_pid(python_reference.get(), pid_back));
  CHECK_FALSE(codec().as_pid(Py_None, pid_back));
  CHECK_FALSE(codec().as_pid(python_home::evaluate("Pid.__new__(Pid)").get(), pid_back));
  CHECK_FALSE(
      codec().as_reference(python_home::evaluate("Ref.__new__(Ref)").get(), reference_back));
  CHECK(python_home::equal(python_pid.get(),
                           python_home::evaluate("Pid('a@h', 1, 2**32 - 1, 3)").get()));
}

TEST_CASE("an atom is made once, and by name always an Atom", "[term]") {
  codec();
  const py::Ref ok = codec().atom("ok");
  const py::Ref again = codec().atom("ok");
  const py::Ref none = codec().atom("none");
  CHECK(ok.get() == again.get());
  CHECK(codec().is_atom(none.get()));
  CHECK_FALSE(codec().is_atom(Py_None));
  CHECK_FALSE(codec().is_atom(python_home::evaluate("'ok'").get()));
}

TEST_CASE("more atoms and keys than any cache holds are still the right ones", "[term]") {
  codec();
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 20000; ++i) {
      const std::string name = "name" + std::to_string(i);
      const py::Ref atom = codec().atom(name);
      REQUIRE(PyUnicode_CompareWithASCIIString(atom.get(), name.c_str()) == 0);
    }
  }
}

TEST_CASE("an exception tells its type, text and traceback whatever it does", "[py]") {
  codec();
  const auto failure = [](const char* code) {
    const py::Ref globals = py::check(PyDict_New());
    py::Ref result =
        py::Ref::steal(PyRun_String(code, Py_file_input, globals.get(), globals.get()));
    REQUIRE_FALSE(result);
    return py::Error::fetch().describe();
  };
  const py::Description plain = failure("def f(): raise ValueError('no \\ud800')\nf()");
  CHECK(plain.type == "ValueError");
  CHECK(plain.message == "no ?");
  CHECK(plain.traceback.find("in f") != std::string::npos);
  const py::Description own = failure(
      "class E(Exception):\n  __module__ = 'm.n'\n  def __str__(self): raise RuntimeError\nraise "
      "E()");
  CHECK(own.type == "m.n.E");
  CHECK(own.message == "<no text: its __str__ failed>");
  CHECK(PyErr_Occurred() == nullptr);
}

TEST_CASE("integers of any size become bytes and come back", "[py]") {
  codec();
  for (const char* text :
       {"0", "1", "255", "256", "2**64 - 1", "2**64", "2**1000 - 1", "2**1000"}) {
    const py::Ref number = python_home::evaluate(text);
    std::vector<std::uint8_t> bytes(py::integer_byte_room(number.get()) + 1, 0xAA);
    const std::size_t size = py::integer_to_bytes(number.get(), bytes.data(), bytes.size() - 1);
    CHECK(bytes.back() == 0xAA);
    CHECK((size == 0 || bytes[size - 1] != 0));
    CHECK(
        python_home::equal(py::integer_from_bytes(bytes.data(), size, false).get(), number.get()));
    const py::Ref negative = py::check(PyNumber_Negative(number.get()));
    CHECK(
        python_home::equal(py::integer_from_bytes(bytes.data(), size, true).get(), negative.get()));
  }
}
