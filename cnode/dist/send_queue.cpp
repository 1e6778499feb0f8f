#include "cnode/dist/send_queue.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace dist {
namespace {

constexpr std::size_t kBatchParts = 64;
constexpr std::size_t kBatchBytes = 256 * 1024;
constexpr std::uint8_t kPassThrough = 112;
constexpr std::uint8_t kWhole = 68;
constexpr std::uint8_t kFirstFragment = 69;
constexpr std::uint8_t kFragment = 70;

}  // namespace

SendQueue::Pushed SendQueue::wake() {
  if (writing_ || wake_pending_) return Pushed::kDone;
  wake_pending_ = true;
  return Pushed::kWake;
}

bool SendQueue::may_write() const {
  return descriptor_ >= 0 && !writing_ && !wake_pending_ && small_.empty() && large_.empty();
}

SendQueue::Pushed SendQueue::push(Message message) {
  const std::lock_guard lock(mutex_);
  if (closed_) return Pushed::kClosed;
  if (queued_bytes_ > kMaxQueuedBytes) return Pushed::kOverBudget;
  const bool direct = may_write();
  enqueue(std::move(message));
  if (direct) write_directly();
  return small_.empty() && large_.empty() ? Pushed::kDone : wake();
}

SendQueue::Pushed SendQueue::push_all(std::vector<Message>& messages) {
  const std::lock_guard lock(mutex_);
  if (closed_) return Pushed::kClosed;
  if (queued_bytes_ > kMaxQueuedBytes) return Pushed::kOverBudget;
  const bool direct = may_write();
  for (auto& message : messages) enqueue(std::move(message));
  messages.clear();
  if (direct) write_directly();
  return small_.empty() && large_.empty() ? Pushed::kDone : wake();
}

void SendQueue::enqueue(Message message) {
  if (message.lane != 0) {
    if (auto lane = lanes_.find(message.lane); lane != lanes_.end()) {
      queued_bytes_ += message.size();
      lane->second->followers.push_back(std::move(message));
      return;
    }
  }
  queued_bytes_ += message.size();
  if (fragments_ && message.size() > kFragmentSize) return enqueue_large(std::move(message));
  enqueue_small(std::move(message));
}

// Hands the kernel what it takes at once. An error is left to the writer, who meets it again and
// closes the link.
void SendQueue::write_directly() {
  std::array<iovec, kBatchParts> parts{};
  std::size_t count = 0;
  for (auto held = small_.begin(); held != small_.end() && count < parts.size(); ++held) {
    parts[count++] = {held->buffer.data() + held->begin, held->buffer.size() - held->begin};
  }
  if (count == 0) return;
  msghdr header{};
  header.msg_iov = parts.data();
  header.msg_iovlen = count;
  const ssize_t sent = ::sendmsg(descriptor_, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent <= 0) return;
  bytes_sent_ += static_cast<std::uint64_t>(sent);
  auto left = static_cast<std::size_t>(sent);
  while (left > 0) {
    auto& held = small_.front();
    const std::size_t size = held.buffer.size() - held.begin;
    const std::size_t taken = std::min(size, left);
    left -= taken;
    queued_bytes_ -= std::min(queued_bytes_, taken);
    if (taken < size) {
      held.begin += taken;
      return;
    }
    small_.pop_front();
    ++small_taken_;
  }
}

SendQueue::Pushed SendQueue::push_tick() {
  const std::lock_guard lock(mutex_);
  if (closed_) return Pushed::kClosed;
  if (writing_ || !small_.empty() || !large_.empty()) return Pushed::kDone;
  etf::Buffer tick(4);
  std::memset(tick.prepare(4), 0, 4);
  tick.commit(4);
  if (descriptor_ >= 0 && !wake_pending_) {
    if (::send(descriptor_, tick.data(), 4, MSG_DONTWAIT | MSG_NOSIGNAL) == 4) {
      bytes_sent_ += 4;
      return Pushed::kDone;
    }
  }
  queued_bytes_ += 4;
  small_.push_back({std::move(tick), 0});
  ++small_pushed_;
  return wake();
}

std::size_t SendQueue::write_head(Message& message) {
  std::uint8_t* bytes = message.bytes.data();
  if (fragments_) {
    const std::size_t begin = 1;
    etf::write_u32(bytes + begin, static_cast<std::uint32_t>(message.size() + 3));
    bytes[5] = etf::kVersion;
    bytes[6] = kWhole;
    bytes[7] = 0;
    return begin;
  }
  // The pass-through form puts a version byte in front of each of the two terms: the control tuple
  // moves one byte to the left and makes room for the payload's.
  const bool payload = message.has_payload();
  const std::size_t shift = payload ? 1 : 0;
  const std::size_t begin = Message::kHeadroom - 6 - shift;
  if (payload) {
    std::memmove(bytes + Message::kHeadroom - 1, bytes + Message::kHeadroom, message.control_size);
    bytes[Message::kHeadroom - 1 + message.control_size] = etf::kVersion;
  }
  etf::write_u32(bytes + begin, static_cast<std::uint32_t>(message.size() + 2 + shift));
  bytes[begin + 4] = kPassThrough;
  bytes[begin + 5] = etf::kVersion;
  return begin;
}

void SendQueue::enqueue_small(Message message) {
  const std::size_t begin = write_head(message);
  small_.push_back({std::move(message.bytes), begin});
  ++small_pushed_;
}

void SendQueue::enqueue_large(Message message) {
  auto large = std::make_shared<Large>();
  large->sequence = next_sequence_++;
  large->not_before = small_pushed_;
  large->fragments_left = (message.size() + kFragmentSize - 1) / kFragmentSize;
  large->message = std::move(message);
  if (large->message.lane != 0) lanes_[large->message.lane] = large;
  large_.push_back(std::move(large));
}

void SendQueue::take_fragment(Batch& batch, const std::shared_ptr<Large>& large) {
  auto& head = batch.heads.emplace_back();
  const etf::Buffer& bytes = large->message.bytes;
  const std::size_t size = std::min(kFragmentSize, bytes.size() - large->offset);
  const std::size_t head_size = large->first ? 4 + 19 : 4 + 18;
  etf::write_u32(head.data(), static_cast<std::uint32_t>(head_size - 4 + size));
  head[4] = etf::kVersion;
  head[5] = large->first ? kFirstFragment : kFragment;
  etf::write_u64(head.data() + 6, large->sequence);
  etf::write_u64(head.data() + 14, large->fragments_left);
  head[22] = 0;  // a first fragment also counts its (absent) atom cache references
  batch.parts.push_back({head.data(), head_size});
  batch.parts.push_back(
      {const_cast<std::uint8_t*>(bytes.data()) + large->offset, size});  // NOLINT: iovec
  batch.bytes += head_size + size;
  batch.kept.push_back(large);
  large->offset += size;
  large->first = false;
  --large->fragments_left;
}

void SendQueue::finish_large(const std::shared_ptr<Large>& large) {
  queued_bytes_ -= std::min(queued_bytes_, large->message.size());
  if (large->message.lane == 0) return;
  lanes_.erase(large->message.lane);
  auto followers = std::move(large->followers);
  for (auto& follower : followers) {
    queued_bytes_ -= std::min(queued_bytes_, follower.size());
    enqueue(std::move(follower));
  }
}

bool SendQueue::take(Batch& batch) {
  batch = Batch{};
  const std::lock_guard lock(mutex_);
  wake_pending_ = false;
  if (closed_ || (small_.empty() && large_.empty())) {
    writing_ = false;
    return false;
  }
  writing_ = true;
  while (!small_.empty() && batch.parts.size() < kBatchParts && batch.bytes < kBatchBytes) {
    auto& held = batch.held.emplace_back(std::move(small_.front()));
    small_.pop_front();
    ++small_taken_;
    const std::size_t size = held.buffer.size() - held.begin;
    batch.parts.push_back({held.buffer.data() + held.begin, size});
    batch.bytes += size;
    queued_bytes_ -= std::min(queued_bytes_, size);
  }
  // One fragment of as many large messages as fit, each in its turn.
  for (std::size_t turns = large_.size(); turns > 0 && batch.bytes < kBatchBytes; --turns) {
    auto large = large_.front();
    if (large->not_before > small_taken_)
      break;  // an older message of its lane may still wait; so may the next one's
    large_.pop_front();
    take_fragment(batch, large);
    if (large->fragments_left > 0) {
      large_.push_back(large);
    } else {
      finish_large(large);
    }
  }
  bytes_sent_ += batch.bytes;
  return true;
}

void SendQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  small_.clear();
  large_.clear();
  lanes_.clear();
  queued_bytes_ = 0;
}

bool SendQueue::idle() const {
  const std::lock_guard lock(mutex_);
  return closed_ || (!writing_ && !wake_pending_ && small_.empty() && large_.empty());
}

std::uint64_t SendQueue::bytes_sent() const {
  const std::lock_guard lock(mutex_);
  return bytes_sent_;
}

}  // namespace dist
