#include "cnode/dist/frame.hpp"

#include "cnode/etf/reader.hpp"

namespace dist {

using base::Error;
using base::ErrorCode;
using base::Result;

namespace {

constexpr std::uint8_t kPassThrough = 112;
constexpr std::uint8_t kDistHeader = 68;
constexpr std::uint8_t kFirstFragment = 69;
constexpr std::uint8_t kFragment = 70;

Error fail(ErrorCode code, std::size_t offset, std::string detail) {
  return {code, offset, std::move(detail)};
}

// Reads a header's sequence and fragment number, and moves `offset` past them.
base::Status take_numbers(etf::Bytes bytes, Frame& frame) {
  if (bytes.size() < kFragmentHeaderSize)
    return fail(ErrorCode::kTruncated, bytes.size(), "a fragment's header is cut");
  frame.sequence = etf::read_u64(bytes.data() + 2);
  frame.fragment = etf::read_u64(bytes.data() + 10);
  if (frame.fragment == 0)
    return fail(ErrorCode::kMalformed, 10, "fragments are numbered down to 1, not 0");
  return base::Done{};
}

base::Status check_no_cache_references(etf::Bytes bytes, std::size_t at) {
  if (bytes.size() <= at)
    return fail(ErrorCode::kTruncated, bytes.size(), "a distribution header is cut");
  if (bytes[at] != 0)
    return fail(ErrorCode::kUnsupported, at, "atom cache references, which were not negotiated");
  return base::Done{};
}

}  // namespace

Result<Frame> parse_frame(etf::Bytes bytes, Framing framing) {
  Frame frame;
  if (bytes.empty()) return frame;
  if (framing == Framing::kPassThrough) {
    if (bytes[0] != kPassThrough)
      return fail(ErrorCode::kUnknownTag, 0, "not a pass-through frame");
    frame.kind = Frame::Kind::kPassThrough;
    frame.body = bytes.subspan(kPassThroughHeaderSize);
    return frame;
  }
  if (bytes[0] != etf::kVersion)
    return fail(ErrorCode::kUnknownTag, 0, "not a distribution header");
  if (bytes.size() < 2) return fail(ErrorCode::kTruncated, 1, "a distribution header is cut");
  switch (bytes[1]) {
    case kDistHeader: {
      if (auto status = check_no_cache_references(bytes, 2); !status) return status.error();
      frame.kind = Frame::Kind::kWhole;
      frame.body = bytes.subspan(kWholeHeaderSize);
      return frame;
    }
    case kFirstFragment: {
      if (auto status = take_numbers(bytes, frame); !status) return status.error();
      if (auto status = check_no_cache_references(bytes, 18); !status) return status.error();
      frame.kind = Frame::Kind::kFirstFragment;
      frame.body = bytes.subspan(kFirstFragmentHeaderSize);
      return frame;
    }
    case kFragment: {
      if (auto status = take_numbers(bytes, frame); !status) return status.error();
      frame.kind = Frame::Kind::kFragment;
      frame.body = bytes.subspan(kFragmentHeaderSize);
      return frame;
    }
    default:
      return fail(ErrorCode::kUnknownTag, 1, "an unknown kind of distribution header");
  }
}

void write_pass_through_header(etf::Buffer& out) { out.append(kPassThrough); }

void write_whole_header(etf::Buffer& out) {
  std::uint8_t* at = out.prepare(kWholeHeaderSize);
  at[0] = etf::kVersion;
  at[1] = kDistHeader;
  at[2] = 0;
  out.commit(kWholeHeaderSize);
}

void write_fragment_header(etf::Buffer& out, std::uint64_t sequence, std::uint64_t fragment) {
  std::uint8_t* at = out.prepare(kFragmentHeaderSize);
  at[0] = etf::kVersion;
  at[1] = kFragment;
  etf::write_u64(at + 2, sequence);
  etf::write_u64(at + 10, fragment);
  out.commit(kFragmentHeaderSize);
}

void write_first_fragment_header(etf::Buffer& out, std::uint64_t sequence, std::uint64_t fragment) {
  const std::size_t start = out.size();
  write_fragment_header(out, sequence, fragment);
  out.data()[start + 1] = kFirstFragment;
  out.append(std::uint8_t{0});  // atom cache references
}

std::uint64_t fragment_count(std::size_t control_size, std::size_t message_size,
                             std::size_t fragment_size) {
  const std::size_t first = control_size < fragment_size ? fragment_size - control_size
                                                         : 0;  // message bytes in the first
  if (message_size <= first) return 1;
  return 1 + (message_size - first + fragment_size - 1) / fragment_size;
}

}  // namespace dist
