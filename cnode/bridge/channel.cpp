#include "cnode/bridge/channel.hpp"

#include <algorithm>

#include "cnode/dist/control.hpp"

namespace bridge {
namespace {

using Lock = std::lock_guard<std::mutex>;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kUnboundedLimit = std::uint64_t{256} << 20;
constexpr std::uint64_t kSlackLimit = std::uint64_t{1} << 20;
// So much is consumed before a sender hears of it, so that a fast consumer costs few messages.
constexpr std::uint64_t kLargeReport = 256 * 1024;
constexpr std::size_t kMostAtOnce = 1024;  // messages towards Erlang

}  // namespace

Channel::Channel(dist::ProcessId id, etf::Bytes pid, Kind kind, std::uint64_t bound,
                 Answers& answers)
    : id_(id),
      pid_(dist::keep(pid)),
      kind_(kind),
      bound_(bound),
      answers_(answers),
      credit_(bound) {}

std::uint64_t Channel::hard_bound() const {
  return bound_ == 0 ? kUnboundedLimit : 2 * bound_ + kSlackLimit;
}

// --- senders
// -----------------------------------------------------------------------------------------------------

Channel::Sender* Channel::find(const SenderKey& key) {
  return const_cast<Sender*>(std::as_const(*this).find(key));
}

const Channel::Sender* Channel::find(const SenderKey& key) const {
  const auto found = std::find_if(senders_.begin(), senders_.end(), [&](const Sender& sender) {
    return sender.peer && sender.peer->link == key.link &&
           std::ranges::equal(dist::view(sender.peer->pid), key.pid.raw);
  });
  return found == senders_.end() ? nullptr : &*found;
}

bool Channel::attach(const PeerPtr& peer, const Answer& answer) {
  std::vector<Outgoing> out;
  {
    const Lock lock(mutex_);
    Grant grant;
    std::size_t present = 0;
    bool known = false;
    for (const Sender& sender : senders_) {
      if (sender.peer == peer) known = true;
      if (sender.peer) ++present;
    }
    mailbox::Credit::Changes changes;
    if (!known) {
      if (present >= kMaxSenders) return false;
      const auto number = credit_.add(Clock::now(), changes);
      if (number >= senders_.size()) senders_.resize(number + 1);
      senders_[number] = {peer, number, 0};
      grant = {changes.front().grant, changes.front().share};
      changes.erase(changes.begin());
    }
    out.push_back(message_to(*peer, [&](etf::Writer& item) { answer(item, grant); }));
    carry_out(changes, out);
    add(out);
  }
  flush(out);
  return true;
}

void Channel::want(const SenderKey& key) {
  std::vector<Outgoing> out;
  {
    const Lock lock(mutex_);
    Sender* sender = find(key);
    if (sender == nullptr || bound_ == 0) return;
    mailbox::Credit::Changes changes;
    credit_.want(sender->number, std::exchange(sender->pending, 0), Clock::now(), changes);
    carry_out(changes, out);
    // What of theirs is consumed they need not give back.
    for (const auto& change : changes) {
      if (change.reclaim > 0) settle(senders_[change.sender], out);
    }
    add(out);
  }
  flush(out);
}

bool Channel::returned(const SenderKey& key, std::uint64_t bytes) {
  std::vector<Outgoing> out;
  {
    const Lock lock(mutex_);
    const Sender* sender = find(key);
    if (sender == nullptr) return true;
    mailbox::Credit::Changes changes;
    if (!credit_.returned(sender->number, bytes, changes)) return false;
    carry_out(changes, out);
    add(out);
  }
  flush(out);
  return true;
}

mailbox::Credit::Sender Channel::sender(const SenderKey& key) const {
  const Lock lock(mutex_);
  const Sender* found = find(key);
  return found == nullptr ? mailbox::Batch::kUncounted : found->number;
}

void Channel::flushed(const SenderKey& key, std::uint64_t id) {
  std::vector<Outgoing> out;
  {
    const Lock lock(mutex_);
    const Sender* sender = find(key);
    if (sender == nullptr) return;
    if (flushes_.size() >= kMaxWaiting) {
      out.push_back(message_to(*sender->peer, [&](etf::Writer& item) {
        item.tuple(3).atom("flushed").unsigned_integer(id).atom("closed");
      }));
    } else {
      flushes_.push_back({sender->peer, id, received_});
      answer_flushes(out);
    }
    add(out);
  }
  flush(out);
}

void Channel::answer_flushes(std::vector<Outgoing>& out) {
  std::erase_if(flushes_, [&](const Flush& flush) {
    if (flush.until > consumed_) return false;
    out.push_back(message_to(*flush.peer, [&](etf::Writer& item) {
      item.tuple(3).atom("flushed").unsigned_integer(flush.id).atom("ok");
    }));
    return true;
  });
}

void Channel::consumed(mailbox::Credit::Sender number, std::uint32_t cost) {
  std::vector<Outgoing> out;
  {
    const Lock lock(mutex_);
    ++consumed_;
    consumed_bytes_ += cost;
    if (!flushes_.empty()) answer_flushes(out);
    if (bound_ > 0 && number != mailbox::Batch::kUncounted) {
      Sender& sender = senders_[number];
      sender.pending += cost;
      if (credit_.wants(number) ||
          sender.pending >= std::min(kLargeReport, credit_.level(number) / 4))
        settle(sender, out);
    }
    add(out);
  }
  flush(out);
}

void Channel::settle(Sender& sender, std::vector<Outgoing>& out) {
  if (sender.pending == 0) return;
  mailbox::Credit::Changes changes;
  credit_.consumed(sender.number, std::exchange(sender.pending, 0), Clock::now(), changes);
  carry_out(changes, out);
}

void Channel::carry_out(const mailbox::Credit::Changes& changes, std::vector<Outgoing>& out) {
  for (const auto& change : changes) {
    const Sender& sender = senders_[change.sender];
    if (!sender.peer) continue;
    out.push_back(message_to(*sender.peer, [&](etf::Writer& item) {
      item.tuple(4).atom(change.reclaim > 0 ? "reclaim" : "credit").raw(pid());
      item.unsigned_integer(change.reclaim > 0 ? change.reclaim : change.grant);
      item.unsigned_integer(change.share);
    }));
  }
}

// --- messages to BEAMs
// -------------------------------------------------------------------------------------------

Channel::Outgoing Channel::message_to(const OutboxPtr& outbox, etf::Bytes to,
                                      const std::function<void(etf::Writer&)>& item) const {
  Outgoing one{outbox, dist::Message()};
  etf::Writer out(one.message.bytes);
  if (outbox->link()->has(dist::kSendSender)) {
    dist::append_send_sender(out, answers_.py_pid(), to);
  } else {
    dist::append_send(out, to);
  }
  etf::Reader in(to);
  one.message.lane = dist::lane_of(*in.pid());
  one.message.end_control();
  out.tuple(2).atom("$py_channel").list(1);
  item(out);
  out.nil();
  return one;
}

Channel::Outgoing Channel::answer(const Demand& demand,
                                  const std::function<void(etf::Writer&)>& reply) const {
  etf::Reader in(dist::view(demand.to));
  Outgoing one{demand.outbox, dist::begin_gen_reply(*demand.outbox->link(), answers_.py_pid(),
                                                    *in.pid(), dist::view(demand.tag))};
  etf::Writer out(one.message.bytes);
  reply(out);
  return one;
}

void Channel::add(std::vector<Outgoing>& out) {
  for (auto& one : out) one.outbox->add(std::move(one.message));
}

void Channel::flush(std::vector<Outgoing>& out) {
  for (auto& one : out) one.outbox->flush();
  out.clear();
}

void Channel::tell_senders(const std::function<void(etf::Writer&)>& item) {
  std::vector<Outgoing> out;
  {
    const Lock lock(mutex_);
    for (const Sender& sender : senders_) {
      if (sender.peer) out.push_back(message_to(*sender.peer, item));
    }
    add(out);
  }
  flush(out);
}

// --- towards Erlang
// ----------------------------------------------------------------------------------------------

Channel::Sent Channel::send(etf::Buffer& message) {
  std::vector<Outgoing> out;
  {
    const Lock lock(mutex_);
    if (closed()) return Sent::kClosed;
    const std::size_t size = message.size();
    if (out_.empty() && !demands_.empty()) {
      out_bytes_ += size;
      out_.push(std::move(message));
      out.push_back(answer_with_messages(demands_.pop(), 1));
    } else {
      if (!has_room(size)) return Sent::kFull;
      out_bytes_ += size;
      out_.push(std::move(message));
    }
    ++sent_;
    add(out);
  }
  flush(out);
  return Sent::kSent;
}

bool Channel::has_room(std::size_t bytes) const {
  return out_.empty() || out_bytes_ + bytes <= (bound_ == 0 ? kUnboundedLimit : bound_);
}

// How many messages a receiver is given at once: few at first, so that others who come find some,
// and more each time; of what waits no more than half its share when there are others.
std::size_t Channel::portion(const Demand& demand, bool& is_new) {
  auto found = std::find_if(receivers_.begin(), receivers_.end(),
                            [&](const Receiver& one) { return one.pid == demand.to; });
  is_new = found == receivers_.end();
  if (is_new && receivers_.size() >= kMaxWaiting) {
    is_new = false;
    return 1;
  }
  if (is_new) {
    receivers_.push_back({demand.to, 1});
    found = receivers_.end() - 1;
  }
  const std::size_t window = found->window;
  found->window = std::min<std::size_t>(window * 2, kMostAtOnce);
  if (receivers_.size() == 1) return window;
  return std::clamp<std::size_t>(out_.size() / (2 * receivers_.size()), 1, window);
}

// So many messages, at least one, as far as their bytes are within the demand.
Channel::Outgoing Channel::answer_with_messages(const Demand& demand, std::size_t most) {
  return answer(demand, [&](etf::Writer& reply) {
    reply.tuple(2).atom("messages").list(1);
    etf::Buffer& bytes = reply.buffer();
    const std::size_t count_at = bytes.size() - 4;
    std::uint32_t count = 0;
    std::size_t size = 0;
    do {
      const etf::Buffer message = out_.pop();
      size += message.size();
      bytes.append(message.bytes());
      ++count;
    } while (count < most && !out_.empty() && size + out_.front().size() <= demand.most);
    out_bytes_ -= size;
    etf::write_u32(bytes.data() + count_at, count);
    reply.nil();
  });
}

bool Channel::demand(Demand demand, Patience patience) {
  std::vector<Outgoing> out;
  std::vector<mailbox::WaiterPtr> woken;
  bool is_new = false;
  {
    const Lock lock(mutex_);
    const std::size_t most = portion(demand, is_new);
    if (!out_.empty()) {
      out.push_back(answer_with_messages(demand, most));
      while (!room_.empty()) woken.push_back(room_.pop());
    } else if (closed()) {
      out.push_back(answer(demand, [](etf::Writer& reply) { reply.atom("closed"); }));
    } else if (patience == Patience::kNone || demands_.size() >= kMaxWaiting) {
      out.push_back(answer(demand, [](etf::Writer& reply) { reply.atom("empty"); }));
    } else {
      demands_.push(std::move(demand));
    }
    add(out);
  }
  flush(out);
  for (const auto& waiter : woken) waiter->wake();
  return is_new;
}

bool Channel::take_back(std::uint64_t link, etf::Bytes to, etf::Bytes tag) {
  const Lock lock(mutex_);
  return demands_.remove_if([&](const Demand& demand) {
    return demand.link == link && std::ranges::equal(dist::view(demand.to), to) &&
           std::ranges::equal(dist::view(demand.tag), tag);
  });
}

void Channel::forget_receiver(etf::Bytes pid) {
  const Lock lock(mutex_);
  demands_.remove_all_if(
      [&](const Demand& demand) { return std::ranges::equal(dist::view(demand.to), pid); });
  std::erase_if(receivers_,
                [&](const Receiver& one) { return std::ranges::equal(dist::view(one.pid), pid); });
}

Channel::Wait Channel::wait_for_room(const mailbox::WaiterPtr& waiter, std::size_t bytes) {
  const Lock lock(mutex_);
  if (closed() || has_room(bytes)) return Wait::kTryAgain;
  room_.push(waiter);
  return Wait::kWaiting;
}

void Channel::stop_waiting_for_room(const mailbox::WaiterPtr& waiter) {
  const Lock lock(mutex_);
  room_.remove_if([&](const mailbox::WaiterPtr& other) { return other == waiter; });
}

// --- the end
// -----------------------------------------------------------------------------------------------------

bool Channel::close(std::string reason) {
  std::vector<Outgoing> out;
  std::vector<mailbox::WaiterPtr> woken;
  {
    const Lock lock(mutex_);
    if (closed_.exchange(true, std::memory_order_acq_rel)) return false;
    reason_ = std::move(reason);
    while (!room_.empty()) woken.push_back(room_.pop());
    while (!demands_.empty()) {  // `out` is empty, else they would not wait
      out.push_back(answer(demands_.pop(), [](etf::Writer& reply) { reply.atom("closed"); }));
    }
    for (const Flush& flush : flushes_) {
      out.push_back(message_to(*flush.peer, [&](etf::Writer& item) {
        item.tuple(3).atom("flushed").unsigned_integer(flush.id).atom("closed");
      }));
    }
    flushes_.clear();
    add(out);
  }
  in_.close();
  flush(out);
  for (const auto& waiter : woken) waiter->wake();
  return true;
}

void Channel::end_input(std::string reason) {
  {
    const Lock lock(mutex_);
    if (closed()) return;
    reason_ = std::move(reason);
  }
  in_.close();
}

bool Channel::has_outgoing() const {
  const Lock lock(mutex_);
  return !out_.empty();
}

std::string Channel::reason() const {
  const Lock lock(mutex_);
  return reason_;
}

bool Channel::drained() const {
  const Lock lock(mutex_);
  return in_.available() == 0 && out_.empty();
}

bool Channel::link_down(std::uint64_t link) {
  std::vector<Outgoing> out;
  bool owners = false;
  {
    const Lock lock(mutex_);
    demands_.remove_all_if([&](const Demand& demand) { return demand.link == link; });
    std::erase_if(flushes_, [&](const Flush& flush) { return flush.peer->link == link; });
    for (Sender& sender : senders_) {
      if (!sender.peer || sender.peer->link != link) continue;
      owners = owners || sender.number == 0;
      sender.peer.reset();
      mailbox::Credit::Changes changes;
      credit_.remove(sender.number, changes);
      carry_out(changes, out);
    }
    add(out);
  }
  flush(out);
  return owners;
}

bool Channel::sender_down(const SenderKey& key) {
  std::vector<Outgoing> out;
  bool owners = false;
  {
    const Lock lock(mutex_);
    Sender* sender = find(key);
    if (sender == nullptr) return false;
    owners = sender->number == 0;
    sender->peer.reset();
    mailbox::Credit::Changes changes;
    credit_.remove(sender->number, changes);
    carry_out(changes, out);
    add(out);
  }
  flush(out);
  return owners;
}

Channel::Info Channel::info() const {
  const Lock lock(mutex_);
  return {in_.bytes(), bound_, received_, consumed_, consumed_bytes_, sent_, out_bytes_, closed()};
}

}  // namespace bridge
