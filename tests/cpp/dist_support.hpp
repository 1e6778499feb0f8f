// What the tests of links and nodes share: descriptors that close themselves, messages to send, and
// the far end of a link that reads frames as a BEAM would.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cnode/dist/fragments.hpp"
#include "cnode/dist/frame.hpp"
#include "cnode/dist/message.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"

namespace dist_support {

using Bytes = std::vector<std::uint8_t>;
using namespace std::chrono_literals;

// No wait of a test takes longer: what was awaited is then taken for lost.
inline constexpr std::chrono::milliseconds kDeadline{20'000};

class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() { reset(); }
  int get() const { return number_; }
  int release() { return std::exchange(number_, -1); }
  void reset() {
    if (number_ >= 0) ::close(std::exchange(number_, -1));
  }

 private:
  int number_;
};

inline Bytes bytes_of(etf::Bytes bytes) { return {bytes.begin(), bytes.end()}; }
inline Bytes bytes_of(const etf::Buffer& buffer) { return bytes_of(buffer.bytes()); }

inline Bytes joined(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

// Waits until `condition` holds, looking again every millisecond; false when the deadline passes.
template <class Condition>
bool eventually(Condition condition, std::chrono::milliseconds deadline = kDeadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::usleep(1000);
  }
  return true;
}

// Waits for bytes to read, or for the end of the stream.
inline bool readable(int descriptor, std::chrono::milliseconds deadline = kDeadline) {
  pollfd entry{descriptor, POLLIN, 0};
  return ::poll(&entry, 1, static_cast<int>(deadline.count())) == 1;
}

// Writes all of it; false when the other side is gone.
inline bool write_all(int descriptor, etf::Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(descriptor, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
  return true;
}

// Exactly `size` bytes, fewer at the end of the stream; throws when they do not come in time.
inline Bytes read_exactly(int descriptor, std::size_t size) {
  Bytes bytes(size);
  std::size_t done = 0;
  while (done < size) {
    if (!readable(descriptor)) throw std::runtime_error("nothing to read in time");
    const ssize_t count = ::recv(descriptor, bytes.data() + done, size - done, 0);
    if (count <= 0) break;
    done += static_cast<std::size_t>(count);
  }
  bytes.resize(done);
  return bytes;
}

// One frame without its length; nothing at the end of the stream.
inline std::optional<Bytes> read_frame(int descriptor) {
  const Bytes head = read_exactly(descriptor, 4);
  if (head.size() < 4) return std::nullopt;
  const std::size_t length = etf::read_u32(head.data());
  Bytes frame = read_exactly(descriptor, length);
  if (frame.size() < length) return std::nullopt;
  return frame;
}

inline Bytes framed(const Bytes& body) {
  Bytes bytes(4);
  etf::write_u32(bytes.data(), static_cast<std::uint32_t>(body.size()));
  return joined(std::move(bytes), body);
}

inline dist::Message message_of(const Bytes& control, const Bytes& payload = {},
                                std::uint64_t lane = 0) {
  dist::Message message(control.size() + payload.size());
  message.bytes.append(control);
  message.end_control();
  message.bytes.append(payload);
  message.lane = lane;
  return message;
}

// A control tuple {2, '', ''}: for tests to whom its insides do not matter.
inline const Bytes kControl{104, 3, 97, 2, 119, 0, 119, 0};

// A numbered message: {2, '', ''} and a binary that says who sent it, in which lane, as which, and
// is padded to `size` with bytes that follow from the number.
struct Numbered {
  std::uint32_t sender = 0;
  std::uint32_t lane = 0;
  std::uint32_t number = 0;
  std::size_t size = 0;
};

inline dist::Message numbered_message(const Numbered& what) {
  constexpr std::size_t kHead = 12;
  dist::Message message(what.size + 64);
  message.bytes.append(kControl);
  message.end_control();
  Bytes body(std::max(kHead, what.size));
  etf::write_u32(body.data(), what.sender);
  etf::write_u32(body.data() + 4, what.lane);
  etf::write_u32(body.data() + 8, what.number);
  for (std::size_t i = kHead; i < body.size(); ++i)
    body[i] = static_cast<std::uint8_t>(what.number + i);
  etf::Writer(message.bytes).binary(etf::Bytes(body));
  message.lane = what.lane;
  return message;
}

// The number again; throws when a byte of it is wrong.
inline Numbered numbered(etf::Bytes control_and_message) {
  etf::Reader in(control_and_message);
  auto control = in.term();
  if (!control || bytes_of(*control) != kControl)
    throw std::runtime_error("the control tuple is damaged");
  auto body = in.binary();
  if (!body || body->size() < 12 || !in.at_end())
    throw std::runtime_error("the message is damaged");
  const std::uint8_t* at = body->data();
  const Numbered what{etf::read_u32(at), etf::read_u32(at + 4), etf::read_u32(at + 8),
                      body->size()};
  for (std::size_t i = 12; i < body->size(); ++i) {
    if (at[i] != static_cast<std::uint8_t>(what.number + i))
      throw std::runtime_error("a message's bytes are damaged");
  }
  return what;
}

// Puts a stream of frames with distribution headers together again: one entry a message, in order
// of completion.
class Stream {
 public:
  void append(etf::Bytes bytes) {
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
    std::size_t at = 0;
    while (pending_.size() - at >= 4) {
      const std::size_t length = etf::read_u32(pending_.data() + at);
      if (pending_.size() - at - 4 < length) break;
      on_frame({pending_.data() + at + 4, length});
      at += 4 + length;
    }
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  std::vector<Bytes> messages;
  std::vector<dist::Frame::Kind> kinds;  // of every frame
  std::vector<std::uint64_t> sequences;  // of every frame; 0 where it has none
  std::size_t left() const { return pending_.size(); }

 private:
  void on_frame(etf::Bytes bytes) {
    auto frame = dist::parse_frame(bytes, dist::Framing::kDistHeader);
    if (!frame) throw std::runtime_error("not a frame: " + frame.error().message());
    kinds.push_back(frame->kind);
    sequences.push_back(frame->sequence);
    switch (frame->kind) {
      case dist::Frame::Kind::kTick:
        return;
      case dist::Frame::Kind::kFirstFragment:
        return on_whole(assembler_.on_first(frame->sequence, frame->fragment, frame->body));
      case dist::Frame::Kind::kFragment:
        return on_whole(assembler_.on_next(frame->sequence, frame->fragment, frame->body));
      default:
        messages.push_back(bytes_of(frame->body));
    }
  }
  void on_whole(dist::Assembler::Outcome whole) {
    if (!whole) throw std::runtime_error("fragments do not fit: " + whole.error().message());
    if (*whole) messages.push_back(bytes_of((*whole)->bytes));
  }

  dist::Assembler assembler_;
  Bytes pending_;
};

}  // namespace dist_support
