// Frames of one link, as a peer may send them: [framing] then any number of [length:16 frame].
// Whatever comes, the assembler's bounds hold, and every control tuple lies within its frame.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "cnode/dist/control.hpp"
#include "cnode/dist/fragments.hpp"
#include "cnode/dist/frame.hpp"
#include "cnode/etf/reader.hpp"

namespace {

const dist::FragmentLimits kLimits{
    .message = 4096, .total = 8192, .sequences = 8, .control = 256, .beginning = 64};

void require(bool holds) {
  if (!holds) std::abort();
}

void dispatch(etf::Bytes body, bool has_versions) {
  etf::Reader reader(body);
  if (has_versions && !reader.version()) return;
  auto control = dist::parse_control(reader);
  if (!control) return;
  require(reader.offset() <= body.size());
  require(control->has_payload == !reader.at_end());
  if (control->op == dist::Op::kSpawnRequest) {
    (void)dist::parse_spawn_options(control->options).ok();
  }
  if (!control->has_payload || (has_versions && !reader.version())) return;
  (void)reader.term().ok();
}

// False when the link would close.
bool take(dist::Assembler& assembler, const dist::Frame& frame) {
  using Kind = dist::Frame::Kind;
  if (frame.kind == Kind::kTick) return true;
  if (frame.kind == Kind::kWhole || frame.kind == Kind::kPassThrough) {
    dispatch(frame.body, frame.kind == Kind::kPassThrough);
    return true;
  }
  auto whole = frame.kind == Kind::kFirstFragment
                   ? assembler.on_first(frame.sequence, frame.fragment, frame.body)
                   : assembler.on_next(frame.sequence, frame.fragment, frame.body);
  require(assembler.held() <= kLimits.total + kLimits.total / 8);
  require(assembler.open() <= kLimits.sequences);
  if (!whole) return false;
  if (!whole->has_value()) return true;
  require((*whole)->bytes.size() <= kLimits.message);
  if (!(*whole)->bytes.empty()) dispatch((*whole)->bytes.bytes(), false);
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto framing =
      (data[0] & 1) != 0 ? dist::Framing::kPassThrough : dist::Framing::kDistHeader;
  dist::Assembler assembler(kLimits);
  etf::Bytes rest{data + 1, size - 1};
  while (rest.size() >= 2) {
    const std::size_t length = std::min<std::size_t>(etf::read_u16(rest.data()), rest.size() - 2);
    // A copy of its own, so that a sanitizer sees a step into the next frame.
    const std::vector<std::uint8_t> bytes(rest.begin() + 2,
                                          rest.begin() + 2 + static_cast<std::ptrdiff_t>(length));
    rest = rest.subspan(2 + length);
    auto frame = dist::parse_frame(bytes, framing);
    if (!frame || !take(assembler, *frame)) break;
  }
  if ((data[0] & 2) != 0) {
    assembler.drop_idle(dist::Assembler::Clock::time_point::max());
    require(assembler.held() == 0);
  }
  return 0;
}
