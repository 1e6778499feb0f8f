#include "cnode/bridge/channels.hpp"

#include <algorithm>

#include "cnode/base/log.hpp"
#include "cnode/bridge/processes.hpp"

namespace bridge {
namespace {

// What is left in a closed channel may be consumed so long.
constexpr auto kKeepClosed = std::chrono::seconds(60);
constexpr std::size_t kLeeway = 64;          // bytes of a message that need not be in its cost
constexpr std::size_t kMaxOpen = 1'000'000;  // a gigabyte of idle ones

std::string text_of(etf::Bytes reason) {
  etf::Reader in(reason);
  auto word = in.atom();
  return word ? word->utf8() : "exit";
}

// What the sender counted for all messages together differs from their sizes here by so much. It is
// spread over them so that every byte of credit finds its way back, each with its own message.
void spread(std::vector<mailbox::Slice>& slices, std::int64_t excess) {
  auto left = static_cast<std::int64_t>(slices.size());
  for (mailbox::Slice& slice : slices) {
    const std::int64_t own = std::max<std::int64_t>(excess / left--, -std::int64_t{slice.cost});
    slice.cost = static_cast<std::uint32_t>(slice.cost + own);
    excess -= own;
  }
}

dist::ProcessId id_of(const etf::PidView& pid) {
  return (std::uint64_t{pid.serial} << 32) | pid.id;
}

}  // namespace

ChannelPtr Channels::find(dist::ProcessId id) const {
  const std::lock_guard lock(mutex_);
  auto found = channels_.find(id);
  return found == channels_.end() ? nullptr : found->second;
}

ChannelPtr Channels::find(const etf::PidView& pid) const {
  return pid.creation == node_->creation() ? find(id_of(pid)) : nullptr;
}

// --- items
// -------------------------------------------------------------------------------------------------------

bool Channels::on_batch(dist::Link& link, const etf::PidView& sender, const Payload& payload,
                        etf::Bytes bytes) {
  etf::Reader in(bytes);
  const auto whole = in.tuple();
  if (!whole) return false;
  if (auto label = in.atom(); !label) return false;
  etf::PidView from = sender;
  if (*whole == 3) {
    // A carrier sends for the py_channel_link that started it.
    auto pid = in.pid();
    if (!pid) return false;
    from = *pid;
  }
  // Answers go back over this link, and this link's end is the sender's.
  if (from.node.utf8() != link.peer().name) return false;
  const Origin origin{link, from, answers_.outbox(link.id())};
  if (!origin.outbox) return true;
  auto count = in.list();
  if (!count) return false;
  for (std::uint32_t i = 0; i < *count; ++i) {
    auto arity = in.tuple();
    auto verb = in.atom();
    if (!arity || *arity == 0 || !verb) return false;
    // An item's fields are read one by one: it is not known to be whole until they are.
    Item item{verb->text, etf::Reader(in.rest()), *arity - 1};
    std::size_t fields = item.arity;
    etf::Reader after = in;
    if (verb->text == "send" && fields == 3) {
      // Its messages are checked as they are taken apart: once, not twice.
      auto pid = after.pid();
      auto cost = after.unsigned_integer();
      if (!pid || !cost) return false;
      if (!accept(origin, find(*pid), payload, *cost, after)) return false;
    } else {
      for (; fields > 0; --fields) {
        if (auto field = after.term(); !field) return false;
      }
      if (!on_item(origin, payload, item)) return false;
    }
    in = after;
  }
  return true;
}

bool Channels::on_item(const Origin& origin, const Payload&, Item item) {
  etf::Reader& in = item.in;
  const std::string_view verb = item.verb;
  if (verb == "new" && item.arity == 3) {
    auto id = in.unsigned_integer();
    auto kind = in.atom();
    auto bound = in.unsigned_integer();
    if (!id || !kind || !bound) return false;
    make(origin, *id, kind->text, *bound);
    return true;
  }
  std::uint64_t id = 0;
  if (verb == "attach" || verb == "info" || verb == "flush") {
    auto number = in.unsigned_integer();
    if (!number) return false;
    id = *number;
  }
  auto pid = in.pid();
  if (!pid) return false;
  const ChannelPtr channel = find(*pid);
  if (verb == "attach") {
    attach_sender(origin, id, channel);
  } else if (verb == "info") {
    reply(origin, [&](etf::Writer& out) {
      out.tuple(3).atom("info").unsigned_integer(id);
      if (!channel) {
        out.atom("closed");
        return;
      }
      const Channel::Info info = channel->info();
      out.map(8);
      out.atom("size").unsigned_integer(info.size);
      out.atom("max_size").unsigned_integer(info.max_size);
      out.atom("closed").atom(info.closed ? "true" : "false");
      out.atom("received").unsigned_integer(info.received);
      out.atom("consumed").unsigned_integer(info.consumed);
      out.atom("consumed_bytes").unsigned_integer(info.consumed_bytes);
      out.atom("sent").unsigned_integer(info.sent);
      out.atom("size_out").unsigned_integer(info.waiting_out);
    });
  } else if (verb == "flush") {
    if (channel && !channel->closed()) {
      channel->flushed(origin.key(), id);
    } else {
      reply(origin, [&](etf::Writer& out) {
        out.tuple(3).atom("flushed").unsigned_integer(id).atom("closed");
      });
    }
  } else if (verb == "close" && item.arity == 2) {
    auto reason = in.term();
    if (reason && channel) close_with(channel, *reason);
  } else if (verb == "want") {
    if (channel) channel->want(origin.key());
  } else if (verb == "returned") {
    auto bytes = in.unsigned_integer();
    if (!bytes) return false;
    if (channel && !channel->returned(origin.key(), *bytes)) return false;
  } else if (verb == "recv" || verb == "try_recv") {
    auto tag = in.term();
    auto most = in.unsigned_integer();
    if (!tag || !most) return false;
    receive(origin, channel, *tag,
            static_cast<std::uint32_t>(std::min<std::uint64_t>(*most, 1 << 20)),
            verb == "recv" ? Channel::Patience::kWait : Channel::Patience::kNone);
  } else if (verb == "unrecv") {
    auto tag = in.term();
    if (!tag) return false;
    // Answered either way: by the messages that were quicker, or so.
    if (!channel || channel->take_back(origin.link.id(), origin.from.raw, *tag)) {
      dist::Message message =
          dist::begin_gen_reply(origin.link, answers_.py_pid(), origin.from, *tag);
      etf::Writer(message.bytes).atom("cancelled");
      origin.outbox->add(std::move(message));
      origin.outbox->flush();
    }
  } else {
    spdlog::debug("{}: an item '{}' for channels that is not known", origin.link.peer().name, verb);
  }
  return true;
}

void Channels::reply(const Origin& origin, const std::function<void(etf::Writer&)>& item) {
  dist::Message message;
  etf::Writer out(message.bytes);
  if (origin.link.has(dist::kSendSender)) {
    dist::append_send_sender(out, answers_.py_pid(), origin.from.raw);
  } else {
    dist::append_send(out, origin.from.raw);
  }
  message.lane = dist::lane_of(origin.from);
  message.end_control();
  out.tuple(2).atom("$py_channel").list(1);
  item(out);
  out.nil();
  origin.outbox->add(std::move(message));
  origin.outbox->flush();
}

void Channels::make(const Origin& origin, std::uint64_t id, std::string_view kind,
                    std::uint64_t bound) {
  const auto refuse = [&](std::string_view why) {
    reply(origin, [&](etf::Writer& out) {
      out.tuple(4).atom("new").unsigned_integer(id).tuple(2).atom("error").atom(why);
      out.integer(0);
    });
  };
  if (draining_) return refuse("draining");
  if (open() >= kMaxOpen) return refuse("overloaded");
  sweep();
  if (bound > (std::uint64_t{1} << 40) || (kind != "terms" && kind != "bytes"))
    return refuse("badarg");
  dist::Process& process = node_->create_process();
  auto channel = std::make_shared<Channel>(
      process.id, dist::view(process.pid),
      kind == "bytes" ? Channel::Kind::kBytes : Channel::Kind::kTerms, bound, answers_);
  {
    const std::lock_guard lock(mutex_);
    channels_[process.id] = channel;
  }
  ++open_;
  // The first is never refused.
  channel->attach(peer_of(origin), [&](etf::Writer& out, Channel::Grant grant) {
    out.tuple(4).atom("new").unsigned_integer(id).tuple(2).atom("ok").raw(channel->pid());
    out.unsigned_integer(grant.bytes);
  });
}

void Channels::attach_sender(const Origin& origin, std::uint64_t id, const ChannelPtr& channel) {
  const auto attached = [&](etf::Writer& out, Channel::Grant grant) {
    out.tuple(3).atom("attached").unsigned_integer(id).tuple(4);
    out.atom(channel->kind() == Channel::Kind::kBytes ? "bytes" : "terms");
    out.unsigned_integer(channel->bound());
    out.unsigned_integer(grant.bytes).unsigned_integer(grant.share);
  };
  if (channel && !channel->input_ended() && channel->attach(peer_of(origin), attached)) return;
  reply(origin, [&](etf::Writer& out) {
    out.tuple(3).atom("attached").unsigned_integer(id).atom("closed");
  });
}

// Watched: should a BEAM's py_channel_link end though the link stands, its credit is not lost.
Channel::PeerPtr Channels::peer_of(const Origin& origin) {
  Channel::PeerPtr& known = peers_[dist::keep(origin.from.raw)];
  if (known && known->link == origin.link.id()) return known;
  // Of its own: should the link just go, monitor() itself may forget the sender.
  Channel::PeerPtr peer = known = std::make_shared<const Channel::Peer>(
      Channel::Peer{origin.outbox, origin.link.id(), dist::keep(origin.from.raw)});
  if (watcher_ == 0) watcher_ = node_->create_process({}, true).id;
  dist::Process* watcher = node_->processes().find(watcher_);
  node_->monitor(*watcher, origin.from.node.utf8(), origin.from.raw, node_->make_ref());
  return peer;
}

// The messages of one {send, Ch, Cost, {M1, M2, …}}: views into the payload.
bool Channels::accept(const Origin& origin, const ChannelPtr& channel, const Payload& payload,
                      std::uint64_t cost, etf::Reader& in) {
  auto count = in.tuple();
  if (!count) return false;
  mailbox::Batch batch;
  batch.bytes = payload;
  batch.slices.reserve(std::min<std::size_t>(*count, in.remaining()));
  const std::uint8_t* base = payload->data();
  std::int64_t excess = static_cast<std::int64_t>(std::min<std::uint64_t>(cost, UINT32_MAX));
  std::uint64_t bytes = 0;
  for (std::uint32_t i = 0; i < *count; ++i) {
    auto message = in.term();
    if (!message && message.error().code == base::ErrorCode::kTooDeep) message = in.skip();
    if (!message) return false;
    const auto size = static_cast<std::uint32_t>(message->size());
    batch.slices.push_back({static_cast<std::uint32_t>(message->data() - base), size, size});
    excess -= size;
    bytes += size;
  }
  // What a message costs and what it takes are about the same. Else the bound would bound nothing.
  if (bytes > 2 * std::min<std::uint64_t>(cost, UINT32_MAX) + kLeeway * *count) return false;
  spread(batch.slices, excess);
  if (!channel || channel->input_ended()) return true;
  batch.sender = channel->sender(origin.key());
  if (channel->in().bytes() + cost > channel->hard_bound()) {
    spdlog::warn("{}: a channel was flooded past its bound; closing it", origin.link.peer().name);
    close_with(channel, dist::encode_atom("overflow").bytes());
    return true;
  }
  channel->count_received(*count);
  channel->in().push(std::move(batch));
  return true;
}

bool Channels::on_message(dist::ProcessId to, dist::Incoming message) {
  const ChannelPtr channel = find(to);
  if (!channel) return false;
  // A large one stands in a buffer of its own, behind its control tuple.
  if (message.whole != nullptr) {
    deliver(channel, std::make_shared<const etf::Buffer>(std::move(*message.whole)), message.bytes);
  } else {
    const auto copy = std::make_shared<const etf::Buffer>(Processes::copy(message.bytes));
    deliver(channel, copy, copy->bytes());
  }
  return true;
}

void Channels::deliver(const ChannelPtr& channel, const Payload& payload, etf::Bytes message) {
  const auto size = static_cast<std::uint32_t>(message.size());
  if (channel->input_ended()) return;
  if (channel->in().bytes() + size > channel->hard_bound()) {
    spdlog::warn("a channel was flooded past its bound; closing it");
    return close(channel, "overflow");
  }
  mailbox::Batch batch;
  batch.bytes = payload;
  batch.slices.push_back(
      {static_cast<std::uint32_t>(message.data() - payload->data()), size, size});
  channel->count_received(1);
  channel->in().push(std::move(batch));
}

void Channels::receive(const Origin& origin, const ChannelPtr& channel, etf::Bytes tag,
                       std::uint32_t most, Channel::Patience patience) {
  if (!channel) {
    dist::Message message = dist::begin_gen_reply(origin.link, answers_.py_pid(), origin.from, tag);
    etf::Writer(message.bytes).atom("closed");
    origin.outbox->add(std::move(message));
    return origin.outbox->flush();
  }
  Channel::Demand demand{origin.outbox, origin.link.id(), dist::keep(origin.from.raw),
                         dist::keep(tag), most};
  const bool is_new = channel->demand(std::move(demand), patience);
  if (channel->closed() && channel->drained()) return retire(channel);
  dist::Process* process = node_->processes().find(channel->id());
  if (is_new && process != nullptr)
    node_->monitor(*process, origin.from.node.utf8(), origin.from.raw, node_->make_ref());
}

void Channels::drain() {
  draining_ = true;
  for (const auto& channel : all()) {
    channel->end_input("draining");
    tell_closed(*channel, dist::encode_atom("draining").bytes());
  }
}

bool Channels::has_outgoing() const {
  const auto channels = all();
  return std::ranges::any_of(channels,
                             [](const ChannelPtr& channel) { return channel->has_outgoing(); });
}

std::vector<ChannelPtr> Channels::all() const {
  std::vector<ChannelPtr> channels;
  const std::lock_guard lock(mutex_);
  channels.reserve(channels_.size());
  for (const auto& [id, channel] : channels_) channels.push_back(channel);
  return channels;
}

// --- the end
// -----------------------------------------------------------------------------------------------------

void Channels::close(const ChannelPtr& channel, std::string_view reason) {
  if (!channel->close(std::string(reason))) return;
  answers_.post([this, channel, reason = std::string(reason)](dist::Node&) {
    finish_close(channel, dist::encode_atom(reason).bytes());
  });
}

void Channels::close_with(const ChannelPtr& channel, etf::Bytes reason) {
  if (channel->close(text_of(reason))) finish_close(channel, reason);
}

void Channels::tell_closed(Channel& channel, etf::Bytes reason) {
  const std::uint64_t consumed = channel.info().consumed;
  channel.tell_senders([&](etf::Writer& out) {
    out.tuple(4).atom("closed").raw(channel.pid()).raw(reason).unsigned_integer(consumed);
  });
}

void Channels::finish_close(const ChannelPtr& channel, etf::Bytes reason) {
  --open_;
  tell_closed(*channel, reason);
  node_->exit_process(channel->id(), reason);
  sweep();
  if (channel->drained()) return retire(channel);
  const std::lock_guard lock(mutex_);
  closed_.push_back({channel, std::chrono::steady_clock::now()});
}

// Nobody finds it any more; those who have it may still consume.
void Channels::retire(const ChannelPtr& channel) {
  const std::lock_guard lock(mutex_);
  channels_.erase(channel->id());
}

void Channels::sweep() {
  std::vector<ChannelPtr> gone;
  {
    const std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    std::erase_if(closed_, [&](const Closed& one) {
      const bool drained = one.channel->drained();
      if (!drained && now - one.since < kKeepClosed) return false;
      if (!drained)
        spdlog::warn("a closed channel is given up with {} messages that nobody consumed",
                     one.channel->in().available());
      gone.push_back(one.channel);
      return true;
    });
  }
  for (const auto& channel : gone) retire(channel);
}

bool Channels::on_exit(dist::ProcessId to, etf::Bytes reason) {
  const ChannelPtr channel = find(to);
  if (!channel) return false;
  close_with(channel, reason);
  return true;
}

bool Channels::on_down(dist::ProcessId owner, etf::Bytes pid) {
  if (owner == watcher_ && watcher_ != 0) {
    peers_.erase(dist::keep(pid));
    etf::Reader in(pid);
    const auto view = in.pid();
    const auto link = node_->link_to(view->node.utf8());
    for (const auto& channel : all()) {
      if (link && channel->sender_down({link->id(), *view}))
        close_with(channel, dist::encode_atom("noproc").bytes());
    }
    return true;
  }
  const ChannelPtr channel = find(owner);
  if (!channel) return false;
  channel->forget_receiver(pid);
  return true;
}

void Channels::on_link_down(std::uint64_t link) {
  for (const auto& channel : all()) {
    if (channel->link_down(link)) close_with(channel, dist::encode_atom("noconnection").bytes());
  }
}

}  // namespace bridge
