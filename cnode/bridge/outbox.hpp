// Outbox: answers on their way to one link, gathered so that many leave in one write.
//
//   workers, loop ── add ──▶ [ frames | open batches ] ── flush ──▶ Link::send_all
//
// Two batches may be open: answers for a py_link, and calls for a py_callback_link.
//
// Whoever adds flushes when it runs out of work or the outbox is well filled; a sentinel on the
// reactor flushes what somebody busy has left lying. So an idle node answers at once, and a busy
// one in bulk.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
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
  // that they hold up nobody else's.
  Added add_reply(const etf::PidView& to, etf::Bytes reply) {
    return add_item(replies_, "$py_replies", to, reply);
  }
  // One item for the py_callback_link process `to`; likewise. It may be several, one behind the
  // other, which stay together.
  Added add_call(const etf::PidView& to, etf::Bytes item, std::uint32_t items = 1) {
    return add_item(calls_, "$py_calls", to, item, items);
  }
  void flush();
  // True for the one who finds it unlisted, and lists it for flushing.
  bool list() { return !listed_.exchange(true, std::memory_order_acq_rel); }
  void unlist() { listed_.store(false, std::memory_order_release); }

  const dist::LinkPtr& link() const { return link_; }

 private:
  // Its control tuple, {Label, and a list whose length is filled in at the end.
  struct Batch {
    dist::Message message;
    std::string to;
    std::size_t count_at = 0;
    std::uint32_t count = 0;
  };

  Added add_item(Batch& batch, std::string_view label, const etf::PidView& to, etf::Bytes item,
                 std::uint32_t items = 1);
  void close(Batch& batch);

  const dist::LinkPtr link_;
  std::atomic<bool> listed_{false};
  const std::vector<std::uint8_t> our_pid_;
  std::mutex mutex_;
  std::vector<dist::Message> messages_;
  std::size_t bytes_ = 0;
  Batch replies_, calls_;
  std::uint64_t next_lane_ = 2;
};

using OutboxPtr = std::shared_ptr<Outbox>;

}  // namespace bridge
