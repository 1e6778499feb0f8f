// Channel: a process of the node that carries messages between Erlang and Python under credit.
//
//   BEAM: py_channel_link ── {send, Ch, Cost, {M}} ──▶ in  (ChannelQueue) ──▶ Python consumers
//                         ◀── {credit, Ch, Bytes}  ── Credit ◀── consumed
//   BEAM: whoever receives ── {recv, Ch, …} ──▶ demands ◀── out ◀── Python senders
//
// Towards Python the bound is kept by the senders themselves, who hold credit; towards Erlang by
// the queue `out`, out of which each demand takes what there is, in one message.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cnode/bridge/answers.hpp"
#include "cnode/dist/node.hpp"
#include "cnode/mailbox/channel_queue.hpp"
#include "cnode/mailbox/credit.hpp"
#include "cnode/mailbox/fifo.hpp"

namespace bridge {

class Channel {
 public:
  enum class Kind : std::uint8_t { kTerms, kBytes };

  // Who may wait or take part at once; more are answered as if the channel were closed, or empty.
  static constexpr std::size_t kMaxWaiting = 100'000;
  static constexpr std::size_t kMaxSenders = 10'000;

  Channel(dist::ProcessId id, etf::Bytes pid, Kind kind, std::uint64_t bound, Answers& answers);
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  dist::ProcessId id() const { return id_; }
  etf::Bytes pid() const { return dist::view(pid_); }
  Kind kind() const { return kind_; }
  std::uint64_t bound() const { return bound_; }  // 0: none
  mailbox::ChannelQueue& in() { return in_; }

  // --- Erlang to Python. Reactor.
  struct SenderKey {
    std::uint64_t link = 0;
    etf::PidView pid;
  };
  // A py_channel_link; one object for all its channels.
  struct Peer {
    OutboxPtr outbox;
    std::uint64_t link = 0;
    dist::Raw8 pid;
  };
  using PeerPtr = std::shared_ptr<const Peer>;
  // Another one takes part and is told its first grant in the item that `answer` writes: before
  // anything else that concerns its credit. One that does already is granted nothing. False, and
  // nothing is told, when there are too many.
  struct Grant {
    std::uint64_t bytes = 0;
    std::uint64_t share = 0;  // what it may hold while nobody else comes
  };
  using Answer = std::function<void(etf::Writer&, Grant)>;
  bool attach(const PeerPtr& peer, const Answer& answer);
  // It is out of credit and wants to hear of every byte.
  void want(const SenderKey& key);
  // False when it was not asked for so much.
  bool returned(const SenderKey& key, std::uint64_t bytes);
  // Of a sender that is attached; anybody else's messages count as sent outside the credit.
  mailbox::Credit::Sender sender(const SenderKey& key) const;
  // What may wait at most, whoever sends it.
  std::uint64_t hard_bound() const;
  // Writes {'$py_channel', [Item]} to every sender.
  void tell_senders(const std::function<void(etf::Writer&)>& item);
  // A message came and is in `in`.
  void count_received(std::uint64_t messages) { received_ += messages; }
  // Tells the sender when all that came so far is consumed: {flushed, Id, ok}.
  void flushed(const SenderKey& key, std::uint64_t id);

  // --- Python consumers: so much has been handed out. Any thread.
  void consumed(mailbox::Credit::Sender sender, std::uint32_t cost);

  // --- Python to Erlang.
  struct Demand {
    OutboxPtr outbox;
    std::uint64_t link = 0;
    dist::Raw8 to;           // pid
    dist::Raw8 tag;          // [alias | Ref]
    std::uint32_t most = 0;  // bytes
  };
  enum class Sent { kSent, kFull, kClosed };
  Sent send(etf::Buffer& message);  // any thread; taken when the answer is kSent
  // Reactor. Answers at once with what there is; else the demand waits, unless it may not: then the
  // answer is `empty`.
  enum class Patience { kWait, kNone };
  // True when this receiver was not known: it is to be watched.
  bool demand(Demand demand, Patience patience);
  // A demand is taken back; true when it still waited.
  bool take_back(std::uint64_t link, etf::Bytes to, etf::Bytes tag);
  // Everybody of that process: it ended.
  void forget_receiver(etf::Bytes pid);
  // Waits for room in `out`. The waiter is woken once, when some of it was taken.
  enum class Wait { kWaiting, kTryAgain };
  Wait wait_for_room(const mailbox::WaiterPtr& waiter, std::size_t bytes);
  void stop_waiting_for_room(const mailbox::WaiterPtr& waiter);

  // --- The end.
  // Nothing comes in any more; what came is still consumed, and what Python sent received. False
  // when it was closed already. Reactor or any thread; telling the world is the registry's
  // business.
  bool close(std::string reason);
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // The first half of it: nothing comes in any more, but Python may still send.
  void end_input(std::string reason);
  bool input_ended() const { return in_.closed(); }
  // Messages of Python that nobody has received yet.
  bool has_outgoing() const;
  std::string reason() const;
  bool drained() const;
  // The link to a sender or receiver is gone. True when the channel is to close for it: it was its
  // owner's.
  bool link_down(std::uint64_t link);
  bool sender_down(const SenderKey& key);

  struct Info {
    std::uint64_t size, max_size, received, consumed, consumed_bytes, sent, waiting_out;
    bool closed;
  };
  Info info() const;

  // What the consumers share: DecodedValues. Under the GIL.
  std::shared_ptr<void> consumer_state;

 private:
  struct Sender {
    PeerPtr peer;  // null: gone
    mailbox::Credit::Sender number = 0;
    std::uint64_t pending = 0;  // consumed and not told yet
  };
  struct Flush {
    PeerPtr peer;
    std::uint64_t id = 0;
    std::uint64_t until = 0;  // received by then
  };
  struct Receiver {
    dist::Raw8 pid;
    std::size_t window = 1;  // messages it is given at once; doubles each time
  };
  struct Outgoing {
    OutboxPtr outbox;
    dist::Message message;
  };

  Sender* find(const SenderKey& key);
  const Sender* find(const SenderKey& key) const;
  void settle(Sender& sender, std::vector<Outgoing>& out);
  void carry_out(const mailbox::Credit::Changes& changes, std::vector<Outgoing>& out);
  Outgoing message_to(const OutboxPtr& outbox, etf::Bytes pid,
                      const std::function<void(etf::Writer&)>& item) const;
  Outgoing answer(const Demand& demand, const std::function<void(etf::Writer&)>& reply) const;
  Outgoing answer_with_messages(const Demand& demand, std::size_t count);
  bool has_room(std::size_t bytes) const;  // lock held
  std::size_t portion(const Demand& demand, bool& is_new);
  Outgoing message_to(const Peer& peer, const std::function<void(etf::Writer&)>& item) const {
    return message_to(peer.outbox, dist::view(peer.pid), item);
  }
  void answer_flushes(std::vector<Outgoing>& out);
  // Lock held, so that nothing overtakes: credit that comes before the answer that a sender is
  // attached would be lost.
  static void add(std::vector<Outgoing>& out);
  // No lock held.
  static void flush(std::vector<Outgoing>& out);

  const dist::ProcessId id_;
  const dist::Raw8 pid_;
  const Kind kind_;
  const std::uint64_t bound_;
  Answers& answers_;
  mailbox::ChannelQueue in_;
  std::atomic<bool> closed_{false};
  std::atomic<std::uint64_t> received_{0};

  mutable std::mutex mutex_;
  mailbox::Credit credit_;
  std::vector<Sender> senders_;
  std::uint64_t consumed_ = 0;
  std::uint64_t consumed_bytes_ = 0;
  std::vector<Flush> flushes_;
  mailbox::Fifo<etf::Buffer> out_;
  std::uint64_t out_bytes_ = 0;
  std::uint64_t sent_ = 0;
  mailbox::Fifo<Demand> demands_;
  std::vector<Receiver> receivers_;
  mailbox::Fifo<mailbox::WaiterPtr> room_;
  std::string reason_;
};

using ChannelPtr = std::shared_ptr<Channel>;

}  // namespace bridge
