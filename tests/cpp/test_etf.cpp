// The reader and the writer of terms, by themselves.
#include <random>

#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/golden.hpp"

using base::ErrorCode;
using etf::Bytes;
using etf::Reader;

namespace {

// The bytes alone in memory of their own, so that a sanitizer sees a step beyond their end.
struct Alone {
  explicit Alone(Bytes bytes) : size(bytes.size()), data(new std::uint8_t[size]) {
    std::copy(bytes.begin(), bytes.end(), data.get());
  }
  Bytes bytes() const { return {data.get(), size}; }

  std::size_t size;
  std::unique_ptr<std::uint8_t[]> data;
};

std::vector<std::uint8_t> nested(std::size_t depth, std::initializer_list<std::uint8_t> header) {
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i < depth; ++i) bytes.insert(bytes.end(), header);
  bytes.insert(bytes.end(), {97, 1});
  return bytes;
}

ErrorCode code_of(std::initializer_list<int> bytes) {
  const std::vector<std::uint8_t> copy(bytes.begin(), bytes.end());
  const Alone alone{Bytes(copy)};
  Reader reader(alone.bytes());
  const auto term = reader.term();
  REQUIRE_FALSE(term);
  CHECK(reader.offset() == 0);
  return term.error().code;
}

}  // namespace

TEST_CASE("a golden term is one term, to its last byte", "[etf]") {
  for (const Golden& golden : golden_terms()) {
    if (golden.is_compressed()) continue;
    INFO(golden.name);
    const Alone alone(golden.term());
    Reader reader(alone.bytes());
    const auto term = reader.term();
    REQUIRE(term);
    CHECK(reader.at_end());
    CHECK(term->size() == golden.term().size());
  }
}

TEST_CASE("a term cut anywhere is truncated, and the cursor stays", "[etf]") {
  for (const Golden& golden : golden_terms()) {
    if (golden.is_compressed()) continue;
    INFO(golden.name);
    for (std::size_t size = 0; size < std::min<std::size_t>(golden.term().size(), 600); ++size) {
      const Alone alone(golden.term().first(size));
      Reader reader(alone.bytes());
      REQUIRE_FALSE(reader.term());
      REQUIRE(reader.offset() == 0);
    }
  }
}

TEST_CASE("a corrupt byte never leads past the end", "[etf]") {
  std::size_t accepted = 0;
  std::size_t refused = 0;
  for (const Golden& golden : golden_terms()) {
    if (golden.is_compressed()) continue;
    const Alone alone(golden.term());
    for (std::size_t place = 0; place < std::min<std::size_t>(alone.size, 300); ++place) {
      const std::uint8_t before = alone.data[place];
      for (const int change : {1, 2, 0x10, 0x80, 0xFF}) {
        alone.data[place] = static_cast<std::uint8_t>(before ^ change);
        Reader reader(alone.bytes());
        (reader.term() ? accepted : refused) += 1;
      }
      alone.data[place] = before;
    }
  }
  CHECK(accepted > 100);
  CHECK(refused > 1000);
}

TEST_CASE("random bytes never lead past the end", "[etf]") {
  std::mt19937 random(1);
  const std::uint8_t tags[] = {70,  77,  88,  89,  90,  97,  98,  99,  100, 102, 103, 104, 105,
                               106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 116, 118, 119};
  std::size_t accepted = 0;
  for (int round = 0; round < 200000; ++round) {
    std::uint8_t bytes[48];
    for (std::uint8_t& byte : bytes) {
      const auto roll = random() % 4;
      byte = roll == 0   ? tags[random() % sizeof tags]
             : roll == 1 ? static_cast<std::uint8_t>(random())
                         : static_cast<std::uint8_t>(random() % 4);
    }
    const Alone alone(Bytes(bytes).first(random() % sizeof bytes));
    Reader reader(alone.bytes());
    accepted += reader.term() ? 1 : 0;
  }
  CHECK(accepted > 100);
}

TEST_CASE("what no BEAM would send is refused by what is wrong with it", "[etf]") {
  CHECK(code_of({}) == ErrorCode::kTruncated);
  CHECK(code_of({0}) == ErrorCode::kUnknownTag);
  CHECK(code_of({82, 0}) == ErrorCode::kUnknownTag);                // atom cache
  CHECK(code_of({108, 0, 0, 0, 0, 106}) == ErrorCode::kMalformed);  // a list of nothing
  CHECK(code_of({108, 255, 255, 255, 255, 97, 1}) == ErrorCode::kTruncated);
  CHECK(code_of({105, 255, 255, 255, 255, 97, 1}) == ErrorCode::kTruncated);
  CHECK(code_of({116, 128, 0, 0, 0, 97, 1, 97, 1}) == ErrorCode::kTruncated);
  CHECK(code_of({109, 255, 255, 255, 255, 1}) == ErrorCode::kTruncated);
  CHECK(code_of({110, 1, 2, 1}) == ErrorCode::kMalformed);                      // a third sign
  CHECK(code_of({77, 0, 0, 0, 1, 9, 1}) == ErrorCode::kMalformed);              // nine bits
  CHECK(code_of({70, 0x7F, 0xF8, 0, 0, 0, 0, 0, 0}) == ErrorCode::kMalformed);  // NaN
  CHECK(code_of({119, 2, 0xC3, 0x28}) == ErrorCode::kMalformed);                // no UTF-8
  CHECK(code_of({90, 0, 6, 119, 1, 97, 0, 0, 0, 0}) == ErrorCode::kMalformed);  // six words
}

TEST_CASE("a thousand levels are read and one more is not", "[etf]") {
  for (const auto& header :
       {std::initializer_list<std::uint8_t>{104, 1}, {105, 0, 0, 0, 1}, {116, 0, 0, 0, 1, 97, 1}}) {
    const auto most = nested(1000, header);
    const auto more = nested(1001, header);
    CHECK(Reader(Bytes(most)).term());
    const auto refused = Reader(Bytes(more)).term();
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::kTooDeep);
  }
  const auto half = nested(500, {104, 1});
  CHECK(Reader(Bytes(half)).term(500));
  CHECK_FALSE(Reader(Bytes(half)).term(501));
}

TEST_CASE("what the writer wrote the reader reads", "[etf]") {
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  const etf::Pid pid{"a@h", 1, 2, 3};
  const etf::Ref reference{"a@h", 9, 3, {7, 8, 9, 0, 0}};
  writer.tuple(8).atom("ö").integer(INT64_MIN).unsigned_integer(UINT64_MAX).binary("x");
  writer.pid(pid).reference(reference).real(1.5).list(1).nil().nil();

  Reader reader(buffer.bytes());
  CHECK(*reader.tuple() == 8);
  CHECK(reader.atom()->utf8() == "ö");
  CHECK(*reader.integer() == INT64_MIN);
  CHECK(*reader.unsigned_integer() == UINT64_MAX);
  CHECK(reader.binary()->size() == 1);
  CHECK(reader.pid()->value() == pid);
  CHECK(reader.reference()->value() == reference);
  CHECK(reader.term()->size() == 9);
  CHECK(*reader.list() == 1);
  CHECK(reader.nil());
  CHECK(reader.nil());
  CHECK(reader.at_end());
}

TEST_CASE("a step on a term of another type fails and moves nothing", "[etf]") {
  const std::uint8_t bytes[] = {97, 1};
  Reader reader{Bytes(bytes)};
  CHECK_FALSE(reader.tuple());
  CHECK_FALSE(reader.map());
  CHECK_FALSE(reader.list());
  CHECK_FALSE(reader.atom());
  CHECK_FALSE(reader.pid());
  CHECK_FALSE(reader.reference());
  CHECK_FALSE(reader.binary());
  CHECK_FALSE(reader.nil());
  CHECK_FALSE(reader.version());
  CHECK(reader.offset() == 0);
  reader.advance(100);
  CHECK(reader.at_end());
}

TEST_CASE("integers are read as far as they fit", "[etf]") {
  const auto read = [](std::initializer_list<int> bytes) {
    const std::vector<std::uint8_t> copy(bytes.begin(), bytes.end());
    return Reader(Bytes(copy)).integer();
  };
  CHECK(*read({98, 255, 255, 255, 255}) == -1);
  CHECK(*read({110, 8, 1, 0, 0, 0, 0, 0, 0, 0, 128}) == INT64_MIN);
  CHECK_FALSE(read({110, 8, 0, 0, 0, 0, 0, 0, 0, 0, 128}));
  CHECK_FALSE(read({110, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}));
}

TEST_CASE("only well-formed UTF-8 is UTF-8", "[etf]") {
  for (const char* good : {"", "plain text of some length", "\u00e4\u03bb\u4e16\U0001F600"}) {
    CHECK(etf::is_utf8(good));
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC3", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xF8\x88\x80\x80\x80", "long enough for a word \xFF"}) {
    CHECK_FALSE(etf::is_utf8(bad));
  }
  CHECK(etf::is_utf8("exactly sixteen!", 16));
  CHECK_FALSE(etf::is_utf8("exactly sixteen!", 15));
}

TEST_CASE("a term of any depth can be stepped over, and a truncated one cannot", "[etf]") {
  std::vector<std::uint8_t> bytes;
  for (int i = 0; i < 100'000; ++i) bytes.insert(bytes.end(), {etf::kSmallTuple, 1});
  bytes.push_back(etf::kNil);
  const std::size_t size = bytes.size();
  bytes.push_back(etf::kNil);

  etf::Reader in({bytes.data(), bytes.size()});
  CHECK(in.term().error().code == base::ErrorCode::kTooDeep);
  REQUIRE(in.skip().ok());
  CHECK(in.offset() == size);
  etf::Reader cut({bytes.data(), size - 1});
  CHECK(cut.skip().error().code == base::ErrorCode::kTruncated);
}
