// Outbox: answers on their way to one link, gathered so that many leave in one write.
//
//   workers, loop ── add ──▶ [ frames | open batch for py_link ] ── flush ──▶ Link::send_all
//
// Whoever adds flushes when it runs out of work or the outbox is well filled; a sentinel on the
// reactor flushes what somebody busy has left lying. So an idle node answers at once, and a busy
// one in bulk.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cnode/dist/link.hpp"
#include "cnode/etf/writer.hpp"

namespace bridge {

class Outbox {
 public:
  Outbox(dist::LinkPtr link, etf::Bytes our_pid)
      : link_(std::move(link)), our_pid_(our_pid.begin(), our_pid.end()) {}
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  enum class Added { kMore, kFlushNow };

  // A whole message, ready to go. Any thread.
  Added add(dist::Message message);
  // One {Id, Result} for the py_link process `to`. Any thread. Large ones leave on their own, so
  // that they hold up nobody else's answer.
  Added add_reply(const etf::PidView& to, etf::Bytes reply);
  void flush();
  // True for the one who finds it unlisted, and lists it for flushing.
  bool list() { return !listed_.exchange(true, std::memory_order_acq_rel); }
  void unlist() { listed_.store(false, std::memory_order_release); }

  const dist::LinkPtr& link() const { return link_; }

 private:
  void close_batch();

  const dist::LinkPtr link_;
  std::atomic<bool> listed_{false};
  const std::vector<std::uint8_t> our_pid_;
  std::mutex mutex_;
  std::vector<dist::Message> messages_;
  std::size_t bytes_ = 0;
  // The open batch: its control tuple, {'$py_replies', and a list whose length is filled in at the
  // end.
  dist::Message batch_;
  std::string batch_to_;
  std::size_t batch_count_at_ = 0;
  std::uint32_t batch_count_ = 0;
  std::uint64_t next_lane_ = 2;
};

using OutboxPtr = std::shared_ptr<Outbox>;

}  // namespace bridge
