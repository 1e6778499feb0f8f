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
  // Same receiver: keep the order.
  if (replies_.count > 0 && message.lane == replies_.message.lane) close(replies_);
  if (calls_.count > 0 && message.lane == calls_.message.lane) close(calls_);
  bytes_ += message.size();
  messages_.push_back(std::move(message));
  return messages_.size() >= kFlushMessages || bytes_ >= kFlushBytes ? Added::kFlushNow
                                                                     : Added::kMore;
}

Outbox::Added Outbox::add_item(Batch& batch, std::string_view label, const etf::PidView& to,
                               etf::Bytes item, std::uint32_t items) {
  const std::lock_guard lock(mutex_);
  const std::string_view raw(reinterpret_cast<const char*>(to.raw.data()), to.raw.size());
  const bool alone = item.size() > dist::kFragmentSize / 2;
  if (batch.count > 0 && (alone || batch.to != raw)) close(batch);
  if (batch.count == 0) {
    batch.message = dist::Message(alone ? item.size() + 256 : 1024);
    etf::Writer out(batch.message.bytes);
    if (link_->has(dist::kSendSender)) {
      dist::append_send_sender(out, {our_pid_.data(), our_pid_.size()}, to.raw);
    } else {
      dist::append_send(out, to.raw);
    }
    batch.message.end_control();
    batch.message.lane = dist::lane_of(to);
    out.tuple(2).atom(label).list(1);
    batch.count_at = batch.message.bytes.size() - 4;
    batch.to = raw;
  }
  batch.message.bytes.append(item);
  batch.count += items;
  if (alone) {
    // Items carry their id, so their order does not matter: a lane of its own keeps others from
    // waiting.
    batch.message.lane = next_lane_ += 2;
    close(batch);
    return Added::kFlushNow;
  }
  return batch.count >= kFlushReplies || batch.message.size() >= kFlushBytes / 2 ? Added::kFlushNow
                                                                                 : Added::kMore;
}

void Outbox::close(Batch& batch) {
  etf::write_u32(batch.message.bytes.data() + batch.count_at, batch.count);
  etf::Writer(batch.message.bytes).nil();
  bytes_ += batch.message.size();
  messages_.push_back(std::move(batch.message));
  batch.count = 0;
}

void Outbox::flush() {
  const std::lock_guard lock(
      mutex_);  // held while sending: two flushes must not swap what they took
  if (replies_.count > 0) close(replies_);
  if (calls_.count > 0) close(calls_);
  bytes_ = 0;
  if (messages_.empty()) return;
  link_->send_all(messages_);
}

}  // namespace bridge
