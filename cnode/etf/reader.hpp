// Reader: a cursor over the bytes of terms that a peer wrote, and therefore over bytes nobody
// vouches for.
//
// Every step checks the bytes it needs before it reads them, nothing recurses, and no allocation
// follows from a length that the remaining bytes do not cover. A failed step leaves the cursor
// where it was.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cnode/base/result.hpp"
#include "cnode/etf/values.hpp"

namespace etf {

class Reader {
 public:
  explicit Reader(Bytes bytes)
      : begin_(bytes.data()), cursor_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  std::size_t offset() const { return static_cast<std::size_t>(cursor_ - begin_); }
  std::size_t remaining() const { return static_cast<std::size_t>(end_ - cursor_); }
  bool at_end() const { return cursor_ == end_; }
  Bytes rest() const { return {cursor_, end_}; }

  // The next term's tag, not consumed.
  base::Result<std::uint8_t> peek() const;

  base::Result<std::uint32_t> tuple();  // arity; its elements follow
  base::Result<std::uint32_t> map();    // number of pairs; key, value, key, value follow
  base::Result<std::uint32_t>
  list();  // number of elements; they and, unless it is 0, the tail follow
  base::Result<AtomView> atom();
  base::Result<std::int64_t> integer();            // kWrongType when it does not fit
  base::Result<std::uint64_t> unsigned_integer();  // likewise, and for negative ones
  base::Result<PidView> pid();
  base::Result<RefView> reference();
  base::Result<Bytes> binary();
  base::Status nil();
  base::Status version();  // the byte 131 in front of a whole term

  // Any one term, checked in depth: its exact bytes. `depth` says how many containers it already
  // stands in.
  base::Result<Bytes> term(std::size_t depth = 0) { return walk(depth, Nesting::kLimited); }

  // Any one term however deeply nested: for stepping over one that term() found too deep.
  base::Result<Bytes> skip() { return walk(0, Nesting::kAny); }

  // Steps over bytes that the caller has read by itself; never past the end.
  void advance(std::size_t count) { cursor_ += count < remaining() ? count : remaining(); }

 private:
  enum class Nesting { kLimited, kAny };
  base::Result<Bytes> walk(std::size_t outer_depth, Nesting nesting);
  base::Error fail(base::ErrorCode code) const { return {code, offset(), {}}; }
  base::Error fail(base::ErrorCode code, const std::uint8_t* at) const {
    return {code, static_cast<std::size_t>(at - begin_), {}};
  }

  const std::uint8_t* begin_;
  const std::uint8_t* cursor_;
  const std::uint8_t* end_;
};

// Whether `text` is well-formed UTF-8 of at most `max_characters` code points.
bool is_utf8(std::string_view text, std::size_t max_characters = SIZE_MAX);

// The value of FLOAT_EXT's 31 characters ("1.5e+00", then zeros); false when they are no finite
// number.
bool parse_float_text(const std::uint8_t* text, double& value);
inline constexpr std::size_t kFloatText = 31;

inline std::uint16_t read_u16(const std::uint8_t* at) {
  return static_cast<std::uint16_t>((at[0] << 8) | at[1]);
}
inline std::uint32_t read_u32(const std::uint8_t* at) {
  return (std::uint32_t{at[0]} << 24) | (std::uint32_t{at[1]} << 16) | (std::uint32_t{at[2]} << 8) |
         at[3];
}
inline std::uint64_t read_u64(const std::uint8_t* at) {
  return (std::uint64_t{read_u32(at)} << 32) | read_u32(at + 4);
}

}  // namespace etf
