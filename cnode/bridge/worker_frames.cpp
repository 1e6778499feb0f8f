#include "cnode/bridge/worker_frames.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace bridge {
namespace {

constexpr std::size_t kHead = 5;
constexpr std::size_t kRead = 64 * 1024;
constexpr std::size_t kLarge = 64 * 1024;  // such a body gets a buffer of its own
constexpr std::size_t kLargeStep = std::size_t{1} << 20;

}  // namespace

// --- writing
// -----------------------------------------------------------------------------------------------------

FrameWriter::FrameWriter(etf::Buffer& out, std::uint8_t kind) : out_(out), start_(out.size()) {
  out_.prepare(kHead);
  out_.commit(kHead);
  out_.data()[start_ + 4] = kind;
}

FrameWriter& FrameWriter::u8(std::uint8_t value) {
  out_.append(value);
  return *this;
}

FrameWriter& FrameWriter::u16(std::uint16_t value) {
  etf::write_u16(out_.prepare(2), value);
  out_.commit(2);
  return *this;
}

FrameWriter& FrameWriter::u64(std::uint64_t value) {
  etf::write_u64(out_.prepare(8), value);
  out_.commit(8);
  return *this;
}

FrameWriter& FrameWriter::sized(etf::Bytes bytes) {
  const std::size_t size = std::min<std::size_t>(bytes.size(), UINT16_MAX);
  return u16(static_cast<std::uint16_t>(size)).raw(bytes.first(size));
}

FrameWriter& FrameWriter::sized(std::string_view text) {
  return sized(etf::Bytes{reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
}

FrameWriter& FrameWriter::raw(etf::Bytes bytes) {
  out_.append(bytes);
  return *this;
}

FrameWriter& FrameWriter::head(const CallHead& head) {
  return u64(head.number)
      .u8(head.kind)
      .u8(head.on_loop ? 1 : 0)
      .sized(head.from)
      .sized(head.module)
      .sized(head.function)
      .sized(head.peer);
}

void FrameWriter::end(std::size_t following) {
  const std::size_t length = out_.size() - start_ - 4 + following;
  etf::write_u32(out_.data() + start_, static_cast<std::uint32_t>(length));
}

// --- reading
// -----------------------------------------------------------------------------------------------------

std::optional<etf::Bytes> FrameFields::take(std::size_t count) {
  if (left_.size() < count) {
    left_ = {};
    return std::nullopt;
  }
  const etf::Bytes taken = left_.first(count);
  left_ = left_.subspan(count);
  return taken;
}

std::optional<std::uint8_t> FrameFields::u8() {
  auto bytes = take(1);
  if (!bytes) return std::nullopt;
  return (*bytes)[0];
}

std::optional<std::uint16_t> FrameFields::u16() {
  auto bytes = take(2);
  if (!bytes) return std::nullopt;
  return etf::read_u16(bytes->data());
}

std::optional<std::uint64_t> FrameFields::u64() {
  auto bytes = take(8);
  if (!bytes) return std::nullopt;
  return etf::read_u64(bytes->data());
}

std::optional<etf::Bytes> FrameFields::sized() {
  auto size = u16();
  if (!size) return std::nullopt;
  return take(*size);
}

std::optional<CallHead> FrameFields::head() {
  const auto text = [](etf::Bytes bytes) {
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  auto number = u64();
  auto kind = u8();
  auto on_loop = u8();
  auto from = sized();
  auto module = sized();
  auto function = sized();
  auto peer = sized();
  if (!number || !kind || !on_loop || !from || !module || !function || !peer) return std::nullopt;
  return CallHead{*number,       *kind,           *on_loop != 0, *from,
                  text(*module), text(*function), text(*peer)};
}

std::span<std::uint8_t> FrameReader::room() {
  if (wanted_ > 0) {
    const std::size_t step = std::min(wanted_ - large_.size(), kLargeStep);
    return {large_.prepare(step), step};
  }
  if (at_ > 0) {
    const std::size_t left = small_.size() - at_;
    if (left > 0) std::memmove(small_.data(), small_.data() + at_, left);
    small_.truncate(left);
    at_ = 0;
  }
  return {small_.prepare(kRead), kRead};
}

void FrameReader::filled(std::size_t count) {
  if (wanted_ > 0)
    large_.commit(count);
  else
    small_.commit(count);
}

base::Result<std::optional<FrameReader::Frame>> FrameReader::next() {
  if (wanted_ > 0) {
    if (large_.size() < wanted_) return std::optional<Frame>();
    wanted_ = 0;
    return std::optional(Frame{large_kind_, large_.bytes(), &large_});
  }
  const etf::Bytes left = small_.bytes().subspan(at_);
  if (left.size() < kHead) return std::optional<Frame>();
  const std::size_t length = etf::read_u32(left.data());
  if (length == 0) return base::Error{base::ErrorCode::kMalformed, 0, "an empty frame"};
  if (length - 1 > limit_) return base::Error{base::ErrorCode::kTooLarge, 0, "a frame"};
  const std::size_t size = length - 1;
  const std::uint8_t kind = left[4];
  const etf::Bytes here = left.subspan(kHead);
  if (here.size() >= size) {
    at_ += kHead + size;
    return std::optional(Frame{kind, here.first(size), nullptr});
  }
  if (size < kLarge) return std::optional<Frame>();
  large_ = etf::Buffer();
  large_.append(here);
  wanted_ = size;
  large_kind_ = kind;
  at_ = small_.size();
  return std::optional<Frame>();
}

}  // namespace bridge
