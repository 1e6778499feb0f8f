// Frames: what stands between two lengths once the handshake is over.
//
//   fragments negotiated     131 68 0            control [message]        whole
//                            131 69 seq frag 0   control [message ...     first fragment
//                            131 70 seq frag     ... message ...          next fragment; frag
//                            counts down to 1
//   not negotiated           112             131 control [131 message]    pass-through
//   either                   nothing                                      tick
//
// seq and frag are 64 bits, big-endian. The third byte of a header counts atom cache references; we
// never negotiate the cache, so it is 0 both ways.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cnode/base/result.hpp"
#include "cnode/etf/writer.hpp"

namespace dist {

inline constexpr std::size_t kFrameLengthSize = 4;
inline constexpr std::size_t kPassThroughHeaderSize = 1;
inline constexpr std::size_t kWholeHeaderSize = 3;
inline constexpr std::size_t kFirstFragmentHeaderSize = 19;
inline constexpr std::size_t kFragmentHeaderSize = 18;
inline constexpr std::size_t kFragmentSize =
    64 * 1024;  // payload of one fragment, as a BEAM cuts them

struct Frame {
  enum class Kind { kTick, kPassThrough, kWhole, kFirstFragment, kFragment };
  Kind kind = Kind::kTick;
  std::uint64_t sequence = 0;
  std::uint64_t fragment = 0;
  etf::Bytes
      body;  // control [message]; in a pass-through frame each starts with the version byte 131
};

enum class Framing { kPassThrough, kDistHeader };

// One frame without its length. An error means that the stream cannot be trusted any more.
base::Result<Frame> parse_frame(etf::Bytes bytes, Framing framing);
inline base::Result<Frame> parse_frame(etf::Bytes bytes, bool fragments_negotiated) {
  return parse_frame(bytes, fragments_negotiated ? Framing::kDistHeader : Framing::kPassThrough);
}

// Headers, without the length in front.
void write_pass_through_header(etf::Buffer& out);
void write_whole_header(etf::Buffer& out);
void write_first_fragment_header(etf::Buffer& out, std::uint64_t sequence, std::uint64_t fragment);
void write_fragment_header(etf::Buffer& out, std::uint64_t sequence, std::uint64_t fragment);

// Into how many fragments a control tuple and its message go: the control tuple lies whole in the
// first one.
std::uint64_t fragment_count(std::size_t control_size, std::size_t message_size,
                             std::size_t fragment_size = kFragmentSize);

}  // namespace dist
