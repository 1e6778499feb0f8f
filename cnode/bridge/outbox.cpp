#include "cnode/bridge/outbox.hpp"

#include "cnode/dist/control.hpp"
#include "cnode/dist/node.hpp"

namespace bridge {
namespace {

constexpr std::size_t kFlushBytes = 64 * 1024;
constexpr std::uint32_t kFlushReplies = 256;
constexpr std::size_t kFlushMessages = 32;

}  // namespace

Outbox::Added Outbox::add(dist::Message message) {
  const std::lock_guard lock(mutex_);
  if (batch_count_ > 0 && message.lane == batch_.lane)
    close_batch();  // same receiver: keep the order
  bytes_ += message.size();
  messages_.push_back(std::move(message));
  return messages_.size() >= kFlushMessages || bytes_ >= kFlushBytes ? Added::kFlushNow
                                                                     : Added::kMore;
}

Outbox::Added Outbox::add_reply(const etf::PidView& to, etf::Bytes reply) {
  const std::lock_guard lock(mutex_);
  const std::string_view raw(reinterpret_cast<const char*>(to.raw.data()), to.raw.size());
  const bool alone = reply.size() > dist::kFragmentSize / 2;
  if (batch_count_ > 0 && (alone || batch_to_ != raw)) close_batch();
  if (batch_count_ == 0) {
    batch_ = dist::Message(alone ? reply.size() + 256 : 1024);
    etf::Writer out(batch_.bytes);
    if (link_->has(dist::kSendSender)) {
      dist::append_send_sender(out, {our_pid_.data(), our_pid_.size()}, to.raw);
    } else {
      dist::append_send(out, to.raw);
    }
    batch_.end_control();
    batch_.lane = dist::lane_of(to);
    out.tuple(2).atom("$py_replies").list(1);
    batch_count_at_ = batch_.bytes.size() - 4;
    batch_to_ = raw;
  }
  batch_.bytes.append(reply);
  ++batch_count_;
  if (alone) {
    // Replies carry their id, so their order does not matter: a lane of its own keeps others from
    // waiting.
    batch_.lane = next_lane_ += 2;
    close_batch();
    return Added::kFlushNow;
  }
  return batch_count_ >= kFlushReplies || batch_.size() >= kFlushBytes / 2 ? Added::kFlushNow
                                                                           : Added::kMore;
}

void Outbox::close_batch() {
  etf::write_u32(batch_.bytes.data() + batch_count_at_, batch_count_);
  etf::Writer(batch_.bytes).nil();
  bytes_ += batch_.size();
  messages_.push_back(std::move(batch_));
  batch_count_ = 0;
}

void Outbox::flush() {
  const std::lock_guard lock(
      mutex_);  // held while sending: two flushes must not swap what they took
  if (batch_count_ > 0) close_batch();
  bytes_ = 0;
  if (messages_.empty()) return;
  link_->send_all(messages_);
}

}  // namespace bridge
