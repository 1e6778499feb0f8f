#include "cnode/bridge/router.hpp"

#include "cnode/base/log.hpp"
#include "cnode/bridge/asker.hpp"
#include "cnode/bridge/channels.hpp"
#include "cnode/bridge/processes.hpp"

namespace bridge {
namespace {

constexpr std::string_view kServer = "py";
constexpr std::size_t kMaxGreeters = 16;  // of one link; the oldest goes

// The message kept: `bytes` are the same in the payload. A large one is not copied.
Payload keep(dist::Incoming message, etf::Bytes& bytes) {
  if (message.whole != nullptr) {
    bytes = message.bytes;
    return std::make_shared<const etf::Buffer>(std::move(*message.whole));
  }
  Payload payload = std::make_shared<const etf::Buffer>(Processes::copy(message.bytes));
  bytes = payload->bytes();
  return payload;
}

// A request, which counts as in flight.
Payload keep_request(const dist::Link& link, dist::Incoming message, etf::Bytes& bytes) {
  if (message.whole != nullptr) {
    bytes = message.bytes;
    return keep_charged(std::move(*message.whole),
                        message.charge != nullptr ? std::move(*message.charge) : base::Charge());
  }
  Payload payload = keep_charged(Processes::copy(message.bytes),
                                 base::Charge(link.budget(), message.bytes.size()));
  bytes = payload->bytes();
  return payload;
}

// The reference in a reply tag: [alias | Ref] or Ref.
std::optional<etf::RefView> reference_in(etf::Bytes tag) {
  etf::Reader in(tag);
  if (auto ref = in.reference()) return *ref;
  auto count = in.list();
  if (!count || *count != 1) return std::nullopt;
  if (auto word = in.atom(); !word) return std::nullopt;
  if (auto ref = in.reference()) return *ref;
  return std::nullopt;
}

struct GenCall {
  etf::PidView from;
  etf::Bytes tag;
  etf::Bytes request;  // not checked
};

// {Label, {Pid, Tag}, Request}
std::optional<GenCall> parse_gen_call(etf::Bytes message) {
  etf::Reader in(message);
  auto arity = in.tuple();
  if (!arity || *arity != 3) return std::nullopt;
  auto label = in.atom();
  if (!label || !(*label == "$gen_call")) return std::nullopt;
  auto from = in.tuple();
  if (!from || *from != 2) return std::nullopt;
  auto pid = in.pid();
  if (!pid) return std::nullopt;
  auto tag = in.term();
  if (!tag) return std::nullopt;
  return GenCall{*pid, *tag, in.rest()};
}

dist::RefKey batch_key(std::uint64_t link, const etf::PidView& from, std::uint64_t id) {
  return {link,
          from.creation,
          {from.id, from.serial, static_cast<std::uint32_t>(id),
           static_cast<std::uint32_t>(id >> 32), 0x70795F62}};
}

}  // namespace

Router::Router(CallRunner& pool, Answers& answers, Processes& processes, Channels& channels,
               Asker& asker, CallMetrics& metrics, AllowList allow, Hooks hooks)
    : pool_(pool),
      answers_(answers),
      processes_(processes),
      channels_(channels),
      asker_(asker),
      metrics_(metrics),
      allow_(std::move(allow)),
      hooks_(std::move(hooks)) {}

void Router::attach(dist::Node& node) {
  node_ = &node;
  py_ = node.create_process(std::string(kServer), true).id;
  channels_.attach(node);
  asker_.attach(node);
}

void Router::drain() {
  draining_ = true;
  last_refused_ = std::chrono::steady_clock::now();
  channels_.drain();
  for (const auto& [id, pids] : greeters_) {
    const dist::LinkPtr link = node_->find_link(id);
    if (!link) continue;
    for (const dist::Raw8& pid : pids) tell_greeter(*link, dist::view(pid), "draining");
  }
}

void Router::on_link_up(const dist::LinkPtr& link) {
  answers_.link_up(link, dist::view(node_->processes().find(py_)->pid));
  asker_.link_up(link);
  tell_watchers("nodeup", link->peer().name);
}

void Router::on_link_down(dist::Link& link) {
  std::vector<CallPtr> lost;
  std::erase_if(in_flight_, [&](const auto& entry) {
    if (entry.first.link != link.id()) return false;
    lost.push_back(entry.second);
    return true;
  });
  for (const auto& call : lost) cancel(call);
  greeters_.erase(link.id());
  channels_.on_link_down(link.id());
  asker_.link_down(link);
  answers_.link_down(link.id());
  tell_watchers("nodedown", link.peer().name);
}

void Router::watch_nodes(dist::ProcessId process, bool on) {
  std::erase(node_watchers_, process);
  if (on) node_watchers_.push_back(process);
}

void Router::tell_watchers(std::string_view what, const std::string& node) {
  std::erase_if(node_watchers_, [&](dist::ProcessId id) { return !processes_.find(id); });
  for (const dist::ProcessId id : node_watchers_) {
    etf::Buffer message;
    etf::Writer(message).tuple(2).atom(what).atom(node);
    processes_.deliver(id, message.bytes());
  }
}

// --- messages
// ----------------------------------------------------------------------------------------------------

void Router::on_message(dist::Link& link, dist::Process& to, const etf::PidView* from,
                        dist::Incoming message) {
  if (to.id != py_) {
    if (asker_.owns(to.id)) {
      asker_.on_reply(link.id(), message.bytes);
      return;
    }
    if (channels_.on_message(to.id, message)) return;
    if (processes_.deliver(to.id, message.bytes)) return;
    spdlog::warn("{}: the mailbox of process {} is full; dropped a message", link.peer().name,
                 to.name.empty() ? std::to_string(to.id) : to.name);
    auto call = parse_gen_call(message.bytes);
    if (!call) return;
    Call refused;
    refused.link = link.shared_from_this();
    refused.from = call->from;
    refused.tag = call->tag;
    return answers_.refuse(refused, "overloaded");
  }
  etf::Reader in(message.bytes);
  auto arity = in.tuple();
  auto label = in.atom();
  if (arity && label) {
    if (*label == "$py_batch" && *arity == 2 && from != nullptr) {
      if (has_memory_for(link, from, message)) on_batch(link, *from, message);
      return;
    }
    if (*label == "$py_channel" && (*arity == 2 || *arity == 3) && from != nullptr)
      return on_channels(link, *from, message);
    if (*label == "$gen_call" && *arity == 3) {
      if (has_memory_for(link, from, message)) on_request(link, message);
      return;
    }
    if (*label == "$py_results" && *arity == 2) return on_results(link, message);
    if (*label == "$py_callback" && *arity == 2) {
      if (!asker_.on_coordinator(link, message.bytes))
        spdlog::warn("{}: its py_callback says what cannot be understood", link.peer().name);
      return;
    }
    if (*label == "io_request" && *arity == 4) return on_io_request(link, message.bytes);
    if (*label == "$gen_cast" && *arity == 2) {
      if (has_memory_for(link, from, message)) on_cast(link, message);
      return;
    }
  }
  if (asker_.on_reply(link.id(), message.bytes)) return;
  spdlog::debug("{}: ignored a message to py that is neither call nor cast", link.peer().name);
}

void Router::on_results(dist::Link& link, dist::Incoming message) {
  etf::Bytes bytes;
  const Payload payload = keep(message, bytes);
  if (asker_.on_results(link, payload, bytes)) return;
  spdlog::warn("{}: results that cannot be understood; closing the link", link.peer().name);
  link.close("results that cannot be understood");
}

// {io_request, From, ReplyAs, Request}: a function that erlang.erpc runs has `py` for its group
// leader. What it writes is taken and not shown; a request for anything else is refused, so that
// nobody waits for ever.
void Router::on_io_request(dist::Link& link, etf::Bytes message) {
  etf::Reader in(message);
  if (auto arity = in.tuple(); !arity) return;
  if (auto label = in.atom(); !label) return;
  auto from = in.pid();
  if (!from || from->node.utf8() != link.peer().name) return;
  auto reply_as = in.term();
  if (!reply_as) return;
  auto arity = in.tuple();
  auto verb = in.atom();
  const bool writes = arity && verb && *verb == "put_chars";
  dist::Message reply;
  etf::Writer out(reply.bytes);
  if (link.has(dist::kSendSender))
    dist::append_send_sender(out, answers_.py_pid(), from->raw);
  else
    dist::append_send(out, from->raw);
  reply.end_control();
  reply.lane = dist::lane_of(*from);
  out.tuple(3).atom("io_reply").raw(*reply_as);
  if (writes)
    out.atom("ok");
  else
    out.tuple(2).atom("error").atom("enotsup");
  link.send(std::move(reply));
}

void Router::on_request(dist::Link& link, dist::Incoming message) {
  etf::Bytes bytes;
  Payload payload = keep_request(link, message, bytes);
  auto parsed = parse_gen_call(bytes);
  if (!parsed) {
    spdlog::warn("{}: a call whose sender cannot be made out was dropped", link.peer().name);
    return;
  }
  auto call = std::make_shared<Call>();
  call->kind = Call::Kind::kRequest;
  call->received = CallMetrics::Clock::now();
  call->link = link.shared_from_this();
  // A call may have been passed on by another node than the caller's own: the answer goes to the
  // caller's.
  if (const std::string home = parsed->from.node.utf8(); home != link.peer().name) {
    if (auto direct = node_->link_to(home)) call->link = std::move(direct);
  }
  call->outbox = answers_.outbox(call->link->id());
  call->payload = std::move(payload);
  call->from = parsed->from;
  call->tag = parsed->tag;
  call->request = parsed->request;
  if (auto ref = reference_in(call->tag)) call->key = dist::RefKey::of(link.id(), *ref);
  etf::Reader in(call->request);
  auto arity = in.tuple();
  auto verb = in.atom();
  if (arity && *arity == 2 && verb && *verb == "hello") return answer_hello(*call, in.rest());
  if (arity && *arity == 2 && verb && *verb == "report" && answer_report(*call, in.rest())) return;
  remember(call);
  submit(std::move(call));
}

namespace {

// Whether #{events => true} stands in the map of a hello.
bool wants_events(etf::Bytes map) {
  etf::Reader in(map);
  auto pairs = in.map();
  for (std::uint32_t i = 0; pairs && i < *pairs; ++i) {
    auto key = in.term();
    auto value = in.term();
    if (!key || !value) return false;
    etf::Reader name(*key), word(*value);
    auto atom = name.atom();
    if (!atom || !(*atom == "events")) continue;
    auto yes = word.atom();
    return yes && *yes == "true";
  }
  return false;
}

}  // namespace

void Router::answer_hello(const Call& call, etf::Bytes about) {
  Reply reply(call, answers_);
  reply.begin_ok();
  reply.out().raw(hello_.bytes());
  reply.finish(true);
  answers_.flush();
  dist::Link& link = *call.link;
  if (!wants_events(about) || call.from.node.utf8() != link.peer().name) return;
  auto& pids = greeters_[link.id()];
  dist::Raw8 pid = dist::keep(call.from.raw);
  std::erase(pids, pid);
  if (pids.size() >= kMaxGreeters) pids.erase(pids.begin());
  pids.push_back(std::move(pid));
  if (draining_) tell_greeter(link, call.from.raw, "draining");
}

// {report, summary | functions}
bool Router::answer_report(const Call& call, etf::Bytes about) {
  etf::Reader in(about);
  auto what = in.atom();
  if (!what || !(*what == "summary" || *what == "functions")) return false;
  Reply reply(call, answers_);
  reply.begin_ok();
  hooks_.report(reply.out(), *what == "functions");
  reply.finish(true);
  answers_.flush();
  return true;
}

// {'$py_node', Event}
void Router::tell_greeter(dist::Link& link, etf::Bytes pid, std::string_view event) {
  dist::Message message;
  etf::Writer out(message.bytes);
  if (link.has(dist::kSendSender))
    dist::append_send_sender(out, answers_.py_pid(), pid);
  else
    dist::append_send(out, pid);
  message.end_control();
  etf::Reader in(pid);
  if (auto to = in.pid()) message.lane = dist::lane_of(*to);
  out.tuple(2).atom("$py_node").atom(event);
  link.send(std::move(message));
}

void Router::on_cast(dist::Link& link, dist::Incoming message) {
  auto call = std::make_shared<Call>();
  call->kind = Call::Kind::kCast;
  call->received = CallMetrics::Clock::now();
  call->link = link.shared_from_this();
  etf::Bytes bytes;
  call->payload = keep_request(link, message, bytes);
  etf::Reader in(bytes);
  if (auto arity = in.tuple(); !arity) return;
  if (auto label = in.atom(); !label) return;
  call->request = in.rest();
  submit(std::move(call));
}

void Router::on_channels(dist::Link& link, const etf::PidView& from, dist::Incoming message) {
  etf::Bytes bytes;
  const Payload payload = keep(message, bytes);
  if (channels_.on_batch(link, from, payload, bytes)) return;
  spdlog::warn("{}: items for channels that cannot be understood; closing the link",
               link.peer().name);
  link.close("items for channels that cannot be understood");
}

void Router::on_batch(dist::Link& link, const etf::PidView& sender, dist::Incoming message) {
  // The sender's pid stands in the control tuple: in front of the message where its buffer was
  // taken over, else kept behind it.
  etf::Bytes bytes;
  Payload payload;
  etf::PidView from = sender;
  if (message.whole != nullptr) {
    payload = keep_request(link, message, bytes);
  } else {
    etf::Buffer copy(message.bytes.size() + sender.raw.size());
    copy.append(message.bytes);
    copy.append(sender.raw);
    base::Charge charge(link.budget(), copy.size());
    payload = keep_charged(std::move(copy), std::move(charge));
    bytes = payload->bytes().first(message.bytes.size());
    etf::Reader pid_in(payload->bytes().subspan(message.bytes.size()));
    from = *pid_in.pid();
  }

  const auto broken = [&](const base::Error& error) {
    spdlog::warn("{}: a batch that cannot be understood ({}); closing the link", link.peer().name,
                 error.message());
    link.close("a batch that cannot be understood");
  };
  etf::Reader in(bytes);
  if (auto arity = in.tuple(); !arity) return broken(arity.error());
  if (auto label = in.atom(); !label) return broken(label.error());
  auto count = in.list();
  if (!count) return broken(count.error());
  const dist::LinkPtr self = link.shared_from_this();
  const OutboxPtr outbox = answers_.outbox(link.id());
  const auto now = CallMetrics::Clock::now();
  std::vector<CallPtr> calls;
  for (std::uint32_t i = 0; i < *count; ++i) {
    auto item = in.term();
    if (!item && item.error().code == base::ErrorCode::kTooDeep) {
      // That one call is refused; the others of the batch, and the link, are not to suffer.
      const std::string why = item.error().message();
      item = in.skip();
      if (item) {
        refuse_item(self, from, *item, why);
        continue;
      }
    }
    if (!item) {
      broken(item.error());
      break;
    }
    etf::Reader head(*item);
    auto arity = head.tuple();
    auto verb = head.atom();
    if (!arity || !verb) continue;
    auto call = std::make_shared<Call>();
    call->received = now;
    call->link = self;
    call->outbox = outbox;
    call->payload = payload;
    call->request = *item;
    call->from = from;
    if (*verb == "cast") {
      call->kind = Call::Kind::kCast;
    } else {
      auto id = head.unsigned_integer();
      if (!id) continue;
      const dist::RefKey key = batch_key(link.id(), from, *id);
      if (*verb == "cancel") {
        // It may stand in this very batch.
        if (!calls.empty()) {
          std::vector<CallPtr> before;
          before.swap(calls);
          for (auto& one : before) submit(std::move(one));
        }
        cancel_item(link, from, *id);
        continue;
      }
      call->kind = Call::Kind::kBatchItem;
      call->id = *id;
      call->key = key;
      remember(call);
    }
    calls.push_back(std::move(call));
  }
  if (draining_) {
    for (const auto& call : calls) refuse(*call, "draining");
    note_draining(calls.size());
    return answers_.flush();
  }
  const std::size_t taken = pool_.push_all(calls);
  if (taken == calls.size()) return;
  metrics_.refused(CallMetrics::Refusal::kQueue, calls.size() - taken);
  for (std::size_t i = taken; i < calls.size(); ++i) refuse(*calls[i], "overloaded");
  answers_.flush();
}

// {error, {bad_term, Text}} for an item whose head can be read though the whole cannot.
void Router::refuse_item(const dist::LinkPtr& link, const etf::PidView& from, etf::Bytes item,
                         const std::string& why) {
  etf::Reader head(item);
  if (auto arity = head.tuple(); !arity) return;
  if (auto verb = head.atom(); !verb) return;
  auto id = head.unsigned_integer();
  if (!id) return;
  Call refused;
  refused.kind = Call::Kind::kBatchItem;
  refused.link = link;
  refused.from = from;
  refused.id = *id;
  Reply reply(refused, answers_);
  reply.begin_error();
  reply.out().tuple(2).atom("bad_term").binary(why);
  reply.finish(false);
  answers_.flush();
}

void Router::note_draining(std::size_t calls) {
  metrics_.refused(CallMetrics::Refusal::kDraining, calls);
  last_refused_ = std::chrono::steady_clock::now();
}

// One that nobody else has; what it holds is not kept for as long as it is remembered.
void Router::refuse(const Call& call, std::string_view reason) {
  answers_.refuse(call, reason);
  call.payload.reset();
}

void Router::submit(CallPtr call) {
  if (draining_ && call->kind != Call::Kind::kFreeNamespace) {
    note_draining(1);
    refuse(*call, "draining");
    return answers_.flush();
  }
  if (pool_.push(call)) return;
  metrics_.refused(CallMetrics::Refusal::kQueue);
  if (call->kind == Call::Kind::kCast)
    spdlog::warn("{}: overloaded; dropped a cast", call->link->peer().name);
  refuse(*call, "overloaded");
  answers_.flush();
}

void Router::on_too_large(dist::Link& link, const etf::PidView* from, etf::Bytes beginning) {
  spdlog::warn("{}: a message over the limit was dropped", link.peer().name);
  refuse_unread(link, from, beginning, "too_large", CallMetrics::Refusal::kTooLarge);
}

void Router::on_no_memory(dist::Link& link, const etf::PidView* from, etf::Bytes beginning) {
  refuse_unread(link, from, beginning, "overloaded", CallMetrics::Refusal::kMemory);
}

// Calls and batches of them; everything else has bounds of its own, or nobody to tell.
bool Router::can_refuse(etf::Bytes first_fragment) const {
  etf::Reader in(first_fragment);
  // Past the control tuple. What cannot be read is nobody's call: the link decides about it.
  if (auto control = in.skip(); !control) return false;
  if (auto arity = in.tuple(); !arity) return false;
  auto label = in.atom();
  return label && (*label == "$gen_call" || *label == "$py_batch");
}

// What was put together from fragments has been let in already.
bool Router::has_memory_for(dist::Link& link, const etf::PidView* from,
                            const dist::Incoming& message) {
  if (message.charge != nullptr && message.charge->bytes() > 0) return true;
  if (!link.budget() || link.budget()->admits(message.bytes.size())) return true;
  refuse_unread(link, from, message.bytes, "overloaded", CallMetrics::Refusal::kMemory);
  return false;
}

// {error, Reason} for every call of a message of which only the beginning may be there.
void Router::refuse_unread(dist::Link& link, const etf::PidView* from, etf::Bytes beginning,
                           std::string_view reason, CallMetrics::Refusal why) {
  const dist::LinkPtr self = link.shared_from_this();
  if (auto call = parse_gen_call(beginning)) {
    Call refused;
    refused.link = self;
    refused.from = call->from;
    refused.tag = call->tag;
    metrics_.refused(why);
    answers_.refuse(refused, reason);
    return answers_.flush();
  }
  // {'$py_batch', [Item, …: every call whose head is still there.
  etf::Reader in(beginning);
  if (auto arity = in.tuple(); !arity || *arity != 2) return;
  auto label = in.atom();
  if (label && *label == "$gen_cast") {
    metrics_.refused(why);
    return spdlog::warn("{}: {}; dropped a cast", link.peer().name, reason);
  }
  if (!label || !(*label == "$py_batch") || from == nullptr) return;
  auto count = in.list();
  for (std::uint32_t i = 0; count && i < *count; ++i) {
    etf::Reader head(in.rest());
    if (auto arity = head.tuple(); !arity) break;
    auto verb = head.atom();
    if (!verb) break;
    auto id = head.unsigned_integer();
    if (*verb == "cancel" && id) {
      cancel_item(link, *from, *id);
    } else if (id) {
      Call refused;
      refused.kind = Call::Kind::kBatchItem;
      refused.link = self;
      refused.from = *from;
      refused.id = *id;
      metrics_.refused(why);
      answers_.refuse(refused, reason);
    }
    if (auto item = in.skip(); !item) break;
  }
  answers_.flush();
}

void Router::cancel_item(dist::Link& link, const etf::PidView& from, std::uint64_t id) {
  auto found = in_flight_.find(batch_key(link.id(), from, id));
  if (found == in_flight_.end()) return;
  const CallPtr victim = found->second;
  in_flight_.erase(found);
  cancel(victim);
}

void Router::on_alias_message(dist::Link& link, const etf::RefView&, etf::Bytes message) {
  if (asker_.on_reply(link.id(), message)) return;
  spdlog::debug("{}: a message to an alias nobody holds", link.peer().name);
}

// --- in flight
// ---------------------------------------------------------------------------------------------------

void Router::remember(const CallPtr& call) {
  if (call->key.link == 0) return;
  in_flight_[call->key] = call;
  if (in_flight_.size() >= sweep_at_) sweep();
}

// Answered calls are not taken out one by one: a worker cannot touch the map. They go when it has
// doubled.
void Router::sweep() {
  std::erase_if(in_flight_, [](const auto& entry) {
    return entry.second->done.load(std::memory_order_acquire);
  });
  sweep_at_ = std::max<std::size_t>(512, 2 * in_flight_.size());
}

std::size_t Router::in_flight() {
  sweep();
  return in_flight_.size();
}

void Router::cancel(const CallPtr& call) {
  if (call->done.load(std::memory_order_acquire)) return;
  call->cancelled.store(true, std::memory_order_relaxed);
  pool_.cancel(call);
  hooks_.cancel_task(call);
}

void Router::on_demonitor(const dist::RefKey& ref, dist::Process*) {
  auto found = in_flight_.find(ref);
  if (found == in_flight_.end()) return;
  const CallPtr call = found->second;
  in_flight_.erase(found);
  // A process that was merely watched lives on; an erpc request or a call that nobody awaits does
  // not.
  if (call->kind != Call::Kind::kSpawn) cancel(call);
}

// --- processes
// ---------------------------------------------------------------------------------------------------

std::optional<std::string_view> Router::refuse_spawn(dist::Link& link,
                                                     const dist::SpawnRequest& request) {
  if (draining_) {
    note_draining(1);
    return "draining";
  }
  if (pool_.full()) {
    metrics_.refused(CallMetrics::Refusal::kQueue);
    return "system_limit";
  }
  if (link.budget() && !link.budget()->admits(request.arguments.size())) {
    metrics_.refused(CallMetrics::Refusal::kMemory);
    return "system_limit";
  }
  if (request.module == "erpc") {
    const bool call = request.function == "execute_call" && request.arity == 4;
    const bool cast = request.function == "execute_cast" && request.arity == 3;
    if (!call && !cast) return "notsup";
    return std::nullopt;
  }
  if (!allow_.allows(request.module, request.function)) {
    spdlog::warn("{}: may not spawn {}.{}", link.peer().name, request.module, request.function);
    return "not_allowed";
  }
  return std::nullopt;
}

void Router::on_spawn(dist::Link& link, const dist::SpawnRequest& request) {
  auto call = std::make_shared<Call>();
  call->received = CallMetrics::Clock::now();
  call->link = link.shared_from_this();
  call->process = request.process;
  etf::Buffer copy(request.arguments.size() + request.from.raw.size() + request.module.size() +
                   request.function.size());
  copy.append(request.arguments);
  const auto text = [&](std::string_view value) {
    copy.append(etf::Bytes{reinterpret_cast<const std::uint8_t*>(value.data()), value.size()});
  };
  text(request.module);
  text(request.function);
  copy.append(request.from.raw);
  base::Charge charge(link.budget(), copy.size());
  call->payload = keep_charged(std::move(copy), std::move(charge));
  const etf::Bytes bytes = call->payload->bytes();
  const std::size_t args_size = request.arguments.size();
  const std::string_view names(reinterpret_cast<const char*>(bytes.data()) + args_size,
                               request.module.size() + request.function.size());
  etf::Reader from_in(bytes.subspan(args_size + names.size()));
  call->from = *from_in.pid();
  call->key = dist::RefKey::of(link.id(), request.request);

  const auto fail = [&] { answers_.exit_process(request.process, dist::encode_atom("badarg")); };
  if (request.module == "erpc") {
    etf::Reader in(bytes.first(args_size));
    const bool is_call = request.arity == 4;
    call->kind = is_call ? Call::Kind::kErpc : Call::Kind::kErpcCast;
    auto count = in.list();
    if (!count || *count != request.arity) return fail();
    if (is_call) {
      auto tag = in.term();
      if (!tag) return fail();
      call->result_tag = *tag;
    }
    auto module = in.atom();
    if (!module) return fail();
    auto function = in.atom();
    if (!function) return fail();
    auto arguments = in.term();
    if (!arguments) {
      if (!is_call) return fail();
      Reply reply(*call, answers_);
      reply.begin_error();
      reply.out().tuple(2).atom("bad_term").binary(arguments.error().message());
      return reply.finish(false);
    }
    call->module = module->text;
    call->function = function->text;
    call->request = *arguments;
  } else {
    call->kind = Call::Kind::kSpawn;
    call->module = names.substr(0, request.module.size());
    call->function = names.substr(request.module.size());
    call->request = bytes.first(args_size);
  }
  remember(call);
  by_process_[request.process] = call;
  if (by_process_.size() >= processes_sweep_at_) {
    std::erase_if(by_process_, [&](const auto& entry) {
      return node_->processes().find(entry.first) == nullptr;
    });
    processes_sweep_at_ = std::max<std::size_t>(256, 2 * by_process_.size());
  }
  if (call->kind == Call::Kind::kErpcCast) {
    // Nobody hears of its end, so its process may end at once.
    answers_.exit_process(request.process, dist::encode_atom("normal"));
  }
  if (!pool_.push(call)) {
    metrics_.refused(CallMetrics::Refusal::kQueue);
    refuse(*call, call->kind == Call::Kind::kSpawn ? "system_limit" : "overloaded");
  }
}

void Router::on_exit(dist::Process& process, etf::Bytes from, etf::Bytes reason,
                     dist::ExitKind kind) {
  if (process.system) return;  // the node's own cannot be killed from outside
  etf::Reader in(reason);
  auto word = in.atom();
  const bool normal = word && *word == "normal";
  const bool kill = word && *word == "kill" && kind == dist::ExitKind::kSignal;
  auto python = processes_.find(process.id);
  if (python && !kill && python->trap_exit) {
    etf::Buffer message(64 + from.size() + reason.size());
    etf::Writer(message).tuple(3).atom("EXIT").raw(from).raw(reason);
    processes_.deliver(python, std::move(message));
    return;
  }
  if (normal) return;
  const etf::Buffer killed = dist::encode_atom("killed");
  const etf::Bytes why = kill ? killed.bytes() : reason;
  if (python) processes_.end(python, why);
  if (channels_.on_exit(process.id, why)) return;
  if (auto found = by_process_.find(process.id); found != by_process_.end()) {
    const CallPtr call = found->second;
    by_process_.erase(found);
    cancel(call);
  }
  node_->exit_process(process.id, why);
}

void Router::on_down(dist::Process& owner, const dist::RefKey& ref, const dist::Monitor& monitor,
                     etf::Bytes reason) {
  if (owner.id == py_) {
    if (asker_.on_down(monitor.link, ref, reason)) return;
    // A caller with a namespace ended.
    auto call = std::make_shared<Call>();
    call->kind = Call::Kind::kFreeNamespace;
    call->caller = monitor.target;
    return pool_.push_internal(std::move(call));
  }
  if (channels_.on_down(owner.id, dist::view(monitor.target))) return;
  auto python = processes_.find(owner.id);
  if (!python) return;
  etf::Buffer message(96 + monitor.target.size() + reason.size());
  etf::Writer out(message);
  out.tuple(5).atom("DOWN").raw(dist::view(monitor.ref)).atom("process");
  etf::Reader in(dist::view(monitor.target));
  if (auto name = in.atom()) {
    out.tuple(2).raw(dist::view(monitor.target)).atom(monitor.node);
  } else {
    out.raw(dist::view(monitor.target));
  }
  out.raw(reason);
  processes_.deliver(python, std::move(message));
}

void Router::on_own_down(dist::Link& link, dist::Process& owner, const dist::RefKey& ref,
                         etf::Bytes reason) {
  if (owner.id == py_) asker_.on_down(link.id(), ref, reason);
}

void Router::on_spawn_refused(dist::Link& link, const dist::RefKey& ref, std::string_view reason) {
  asker_.on_spawn_refused(link.id(), ref, reason);
}

void Router::watch_caller(const std::string& pid) {
  dist::Process* py = node_->processes().find(py_);
  etf::Reader in(dist::view(pid));
  auto caller = in.pid();
  if (py == nullptr || !caller) return;
  node_->monitor(*py, caller->node.utf8(), dist::view(pid), node_->make_ref());
}

}  // namespace bridge
