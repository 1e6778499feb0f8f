#include <vector>

#include "cnode/dist/frame.hpp"
#include "tests/cpp/catch.hpp"

using base::ErrorCode;
using dist::Frame;
using dist::Framing;
using Bytes = std::vector<std::uint8_t>;

namespace {

const Bytes kFirst{131, 69, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 'c'};
const Bytes kNext{131, 70, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 2, 'd', 'e'};

Bytes bytes_of(const etf::Buffer& buffer) { return {buffer.data(), buffer.data() + buffer.size()}; }
Bytes bytes_of(etf::Bytes bytes) { return {bytes.begin(), bytes.end()}; }

Bytes with(Bytes bytes, std::size_t at, std::uint8_t value) {
  bytes[at] = value;
  return bytes;
}

}  // namespace

TEST_CASE("nothing between two lengths is a tick in either framing", "[dist][frame]") {
  CHECK(dist::parse_frame({}, Framing::kDistHeader)->kind == Frame::Kind::kTick);
  CHECK(dist::parse_frame({}, Framing::kPassThrough)->kind == Frame::Kind::kTick);
}

TEST_CASE("a pass-through frame's body keeps its version byte", "[dist][frame]") {
  const Bytes bytes{112, 131, 104, 0};
  auto frame = dist::parse_frame(bytes, Framing::kPassThrough);
  REQUIRE(frame.ok());
  CHECK(frame->kind == Frame::Kind::kPassThrough);
  CHECK(bytes_of(frame->body) == Bytes{131, 104, 0});
}

TEST_CASE("a whole frame's body starts behind its header", "[dist][frame]") {
  const Bytes bytes{131, 68, 0, 104, 0};
  auto frame = dist::parse_frame(bytes, Framing::kDistHeader);
  REQUIRE(frame.ok());
  CHECK(frame->kind == Frame::Kind::kWhole);
  CHECK(bytes_of(frame->body) == Bytes{104, 0});
}

TEST_CASE("fragments carry their sequence, their number and their data", "[dist][frame]") {
  auto first = dist::parse_frame(kFirst, Framing::kDistHeader);
  REQUIRE(first.ok());
  CHECK(first->kind == Frame::Kind::kFirstFragment);
  CHECK(first->sequence == 0x102);
  CHECK(first->fragment == 3);
  CHECK(bytes_of(first->body) == Bytes{'c'});

  auto next = dist::parse_frame(kNext, Framing::kDistHeader);
  REQUIRE(next.ok());
  CHECK(next->kind == Frame::Kind::kFragment);
  CHECK(next->sequence == 0x102);
  CHECK(next->fragment == 2);
  CHECK(bytes_of(next->body) == Bytes{'d', 'e'});
}

TEST_CASE("a header cut anywhere is an error, not a read past the end", "[dist][frame]") {
  for (std::size_t size = 1; size < dist::kFirstFragmentHeaderSize; ++size) {
    CHECK(dist::parse_frame(etf::Bytes(kFirst).first(size), Framing::kDistHeader).error().code ==
          ErrorCode::kTruncated);
  }
  for (std::size_t size = 1; size < dist::kFragmentHeaderSize; ++size) {
    CHECK(dist::parse_frame(etf::Bytes(kNext).first(size), Framing::kDistHeader).error().code ==
          ErrorCode::kTruncated);
  }
  CHECK(dist::parse_frame(Bytes{131, 68}, Framing::kDistHeader).error().code ==
        ErrorCode::kTruncated);
}

TEST_CASE("fragments may be empty", "[dist][frame]") {
  CHECK(dist::parse_frame(etf::Bytes(kFirst).first(19), Framing::kDistHeader)->body.empty());
  CHECK(dist::parse_frame(etf::Bytes(kNext).first(18), Framing::kDistHeader)->body.empty());
}

TEST_CASE("atom cache references were not negotiated and are an error", "[dist][frame]") {
  CHECK(dist::parse_frame(Bytes{131, 68, 1, 0, 0, 104, 0}, Framing::kDistHeader).error().code ==
        ErrorCode::kUnsupported);
  CHECK(dist::parse_frame(with(kFirst, 18, 2), Framing::kDistHeader).error().code ==
        ErrorCode::kUnsupported);
}

TEST_CASE("a fragment numbered 0 is an error", "[dist][frame]") {
  CHECK(dist::parse_frame(with(kFirst, 17, 0), Framing::kDistHeader).error().code ==
        ErrorCode::kMalformed);
  CHECK(dist::parse_frame(with(kNext, 17, 0), Framing::kDistHeader).error().code ==
        ErrorCode::kMalformed);
}

TEST_CASE("a frame of the framing that was not negotiated is an error", "[dist][frame]") {
  CHECK(dist::parse_frame(Bytes{112, 131, 104, 0}, true).error().code == ErrorCode::kUnknownTag);
  CHECK(dist::parse_frame(Bytes{131, 68, 0, 104, 0}, false).error().code == ErrorCode::kUnknownTag);
  CHECK(dist::parse_frame(Bytes{131, 71, 0}, true).error().code == ErrorCode::kUnknownTag);
  CHECK(dist::parse_frame(Bytes{131, 104, 0}, true).error().code == ErrorCode::kUnknownTag);
}

TEST_CASE("headers are written as they are read, and as large as they say", "[dist][frame]") {
  etf::Buffer out;
  dist::write_first_fragment_header(out, 0x102, 3);
  CHECK(out.size() == dist::kFirstFragmentHeaderSize);
  CHECK(bytes_of(out) == Bytes(kFirst.begin(), kFirst.begin() + 19));

  out.clear();
  dist::write_fragment_header(out, 0x102, 2);
  CHECK(out.size() == dist::kFragmentHeaderSize);
  CHECK(bytes_of(out) == Bytes(kNext.begin(), kNext.begin() + 18));

  out.clear();
  dist::write_whole_header(out);
  CHECK(out.size() == dist::kWholeHeaderSize);
  CHECK(bytes_of(out) == Bytes{131, 68, 0});

  out.clear();
  dist::write_pass_through_header(out);
  CHECK(out.size() == dist::kPassThroughHeaderSize);
  CHECK(bytes_of(out) == Bytes{112});
}

TEST_CASE("a control tuple and its message are counted into fragments", "[dist][frame]") {
  CHECK(dist::fragment_count(10, 0, 100) == 1);
  CHECK(dist::fragment_count(10, 90, 100) == 1);
  CHECK(dist::fragment_count(10, 91, 100) == 2);
  CHECK(dist::fragment_count(10, 190, 100) == 2);
  CHECK(dist::fragment_count(10, 191, 100) == 3);
  CHECK(dist::fragment_count(150, 0, 100) == 1);  // the control tuple is never cut
  CHECK(dist::fragment_count(150, 1, 100) == 2);
}
