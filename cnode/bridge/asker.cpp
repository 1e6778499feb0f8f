#include "cnode/bridge/asker.hpp"

#include <algorithm>
#include <future>

#include "cnode/base/log.hpp"
#include "cnode/bridge/processes.hpp"

namespace bridge {
namespace {

constexpr std::string_view kCallback = "py_callback";
constexpr std::chrono::seconds kPatience{5};  // with a peer that knows no monitors

constexpr std::chrono::microseconds kComeBack{200};  // for those who were answered together
constexpr std::size_t kRemembered = 64;              // links a thread asked over

dist::RefKey key_of(const etf::Ref& ref) { return {0, ref.creation, ref.words}; }

etf::Buffer encoded(const etf::Ref& ref) {
  etf::Buffer bytes;
  etf::Writer(bytes).reference(ref);
  return bytes;
}

std::uint64_t lane_of_process(etf::Bytes raw) {
  etf::Reader in(raw);
  if (auto pid = in.pid()) return dist::lane_of(*pid);
  if (auto name = in.atom()) return std::hash<std::string_view>{}(name->text) | 1;
  return 0;
}

// [alias | Ref], or a reference by itself.
std::optional<etf::RefView> reference_in(etf::Reader& in) {
  if (auto ref = in.reference()) return *ref;
  auto count = in.list();
  if (!count || *count != 1) return std::nullopt;
  if (auto word = in.atom(); !word) return std::nullopt;
  if (auto ref = in.reference()) return *ref;
  return std::nullopt;
}

}  // namespace

// --- telling
// -----------------------------------------------------------------------------------------------------

void write_trace(etf::Writer& out, Question& question, const base::TraceContext& trace) {
  out.tuple(4).atom("trace").unsigned_integer(question.id);
  out.binary(trace.parent()).binary(trace.state());
  question.items = 2;
}

void Asker::tell(Question& question, Question::Told told, Payload payload, etf::Bytes bytes) {
  question.payload = std::move(payload);
  question.bytes = bytes;
  question.told.store(told, std::memory_order_release);
  // Of its own: who asked may drop the question as soon as it is told.
  const mailbox::WaiterPtr waiter = question.waiter;
  if (waiter) waiter->wake();
}

void Asker::tell(Question& question, Question::Told told, etf::Bytes reason) {
  Payload payload = std::make_shared<const etf::Buffer>(Processes::copy(reason));
  const etf::Bytes bytes = payload->bytes();
  tell(question, told, std::move(payload), bytes);
}

// Into the books, unless the link has gone meanwhile.
bool Asker::enter(const QuestionPtr& question, std::uint64_t link) {
  const std::lock_guard lock(mutex_);
  if (closed_ || (link != 0 && !remotes_.contains(link))) return false;
  question->link = link;
  questions_[question->id] = question;
  if (question->kind != Question::Kind::kCall) by_ref_[key_of(question->ref)] = question->id;
  return true;
}

QuestionPtr Asker::take(std::uint64_t link, const dist::RefKey& ref,
                        std::optional<Question::Kind> kind) {
  const std::lock_guard lock(mutex_);
  auto known = by_ref_.find({0, ref.creation, ref.words});
  if (known == by_ref_.end()) return nullptr;
  auto found = questions_.find(known->second);
  if (found->second->link != link || (kind && found->second->kind != *kind)) return nullptr;
  QuestionPtr question = std::move(found->second);
  questions_.erase(found);
  by_ref_.erase(known);
  return question;
}

void Asker::close() {
  std::vector<QuestionPtr> lost;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    remotes_.clear();
    by_ref_.clear();
    for (auto& [id, question] : questions_) lost.push_back(std::move(question));
    questions_.clear();
  }
  for (const auto& question : lost) tell(*question, Question::Told::kNoConnection, {}, {});
}

std::size_t Asker::open() const {
  const std::lock_guard lock(mutex_);
  return questions_.size();
}

// --- links
// -------------------------------------------------------------------------------------------------------

Asker::RemotePtr Asker::find(std::uint64_t link) const {
  const std::lock_guard lock(mutex_);
  auto found = remotes_.find(link);
  return found == remotes_.end() ? nullptr : found->second;
}

void Asker::link_up(const dist::LinkPtr& link) {
  auto remote = std::make_shared<Remote>();
  remote->link = link->id();
  remote->name = link->peer().name;
  remote->outbox = answers_.outbox(link->id());
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    remotes_[remote->link] = remote;
  }
  greet(remote);
}

void Asker::link_down(dist::Link& link) {
  std::vector<QuestionPtr> lost;
  RemotePtr remote;
  {
    const std::lock_guard lock(mutex_);
    auto found = remotes_.find(link.id());
    if (found == remotes_.end()) return;
    remote = std::move(found->second);
    remotes_.erase(found);
    std::erase_if(questions_, [&](auto& entry) {
      if (entry.second->link != remote->link) return false;
      by_ref_.erase(key_of(entry.second->ref));
      lost.push_back(std::move(entry.second));
      return true;
    });
  }
  if (remote->monitor) watched_.erase(key_of(*remote->monitor));
  remote->patience.reset();
  for (const auto& question : lost) tell(*question, Question::Told::kNoConnection, {}, {});
}

// {'$py_hello', Pid} to py_callback there; who does not run the application drops it.
void Asker::greet(const RemotePtr& remote) {
  dist::Message message;
  etf::Writer out(message.bytes);
  dist::append_reg_send(out, answers_.py_pid(), kCallback);
  message.end_control();
  out.tuple(2).atom("$py_hello").raw(answers_.py_pid());
  remote->outbox->add(std::move(message));
  remote->outbox->flush();
}

void Asker::look_for_coordinator(const RemotePtr& remote) {
  {
    const std::lock_guard lock(mutex_);
    auto found = remotes_.find(remote->link);
    if (found == remotes_.end() || found->second != remote) return;
    if (remote->state != Remote::State::kAsking) return;  // it has introduced itself meanwhile
  }
  const etf::Buffer name = dist::encode_atom(kCallback);
  watch(remote, dist::keep(name.bytes()));
  greet(remote);
  remote->patience = std::make_unique<asio::steady_timer>(reactor_, kPatience);
  remote->patience->async_wait([self = shared_from_this(), remote](asio::error_code error) {
    if (!error) self->give_up(remote, dist::encode_atom("noproc").bytes());
  });
}

void Asker::watch(const RemotePtr& remote, dist::Raw8 process) {
  stop_watching(remote);
  remote->monitor = node_->make_ref();
  remote->monitored = std::move(process);
  watched_[key_of(*remote->monitor)] = remote;
  dist::Message message;
  etf::Writer out(message.bytes);
  dist::append_monitor_p(out, answers_.py_pid(), dist::view(remote->monitored),
                         encoded(*remote->monitor).bytes());
  message.end_control();
  remote->outbox->add(std::move(message));
  remote->outbox->flush();
}

void Asker::stop_watching(const RemotePtr& remote) {
  if (!remote->monitor) return;
  watched_.erase(key_of(*remote->monitor));
  dist::Message message;
  etf::Writer out(message.bytes);
  dist::append_demonitor_p(out, answers_.py_pid(), dist::view(remote->monitored),
                           encoded(*remote->monitor).bytes());
  message.end_control();
  remote->monitor.reset();
  remote->outbox->add(std::move(message));
  remote->outbox->flush();
}

// There is no coordinator, or none any more: who waits for it hears why, and the next call asks
// again.
void Asker::give_up(const RemotePtr& remote, etf::Bytes reason) {
  std::vector<QuestionPtr> lost;
  {
    const std::lock_guard lock(mutex_);
    remote->state = Remote::State::kUnknown;
    remote->coordinator.reset();
    remote->waiting.clear();
    std::erase_if(questions_, [&](auto& entry) {
      const Question& question = *entry.second;
      if (question.link != remote->link || question.kind != Question::Kind::kCall) return false;
      lost.push_back(std::move(entry.second));
      return true;
    });
  }
  stop_watching(remote);
  remote->patience.reset();
  for (const auto& question : lost) tell(*question, Question::Told::kDown, reason);
}

bool Asker::on_coordinator(dist::Link& link, etf::Bytes message) {
  etf::Reader in(message);
  if (auto arity = in.tuple(); !arity || *arity != 2) return false;
  if (auto label = in.atom(); !label) return false;
  auto pid = in.pid();
  if (!pid || pid->node.utf8() != link.peer().name) return false;
  const RemotePtr remote = find(link.id());
  if (!remote) return true;
  const auto coordinator = std::make_shared<const dist::Raw8>(dist::keep(pid->raw));
  if (remote->coordinator && *remote->coordinator == *coordinator) return true;
  // What the one before was asked it will not answer any more.
  if (remote->coordinator) give_up(remote, dist::encode_atom("killed").bytes());
  watch(remote, *coordinator);
  remote->patience.reset();
  // What waited goes first: a call that finds the coordinator known may be behind one of those.
  std::vector<std::pair<std::uint64_t, etf::Buffer>> waiting;
  {
    const std::lock_guard lock(mutex_);
    waiting.swap(remote->waiting);
    std::erase_if(waiting, [&](const auto& item) { return !questions_.contains(item.first); });
    for (const auto& [id, item] : waiting)
      send_item(*remote, *coordinator, item.bytes(), questions_.at(id)->items);
    remote->coordinator = coordinator;
    remote->state = Remote::State::kKnown;
    remote->known_since = ++greeted_;
  }
  remote->outbox->flush();
  return true;
}

std::string Asker::first_peer() const {
  const std::lock_guard lock(mutex_);
  const Remote* first = nullptr;
  for (const auto& [link, remote] : remotes_) {
    if (remote->state != Remote::State::kKnown) continue;
    if (first == nullptr || remote->known_since < first->known_since) first = remote.get();
  }
  return first == nullptr ? std::string() : first->name;
}

// --- calls
// -------------------------------------------------------------------------------------------------------

void Asker::send_item(Remote& remote, const dist::Raw8& coordinator, etf::Bytes item,
                      std::uint32_t items) {
  etf::Reader in(dist::view(coordinator));
  if (remote.outbox->add_call(*in.pid(), item, items) == Outbox::Added::kFlushNow)
    remote.outbox->flush();
}

void Asker::call(const QuestionPtr& question, std::string_view node, etf::Buffer item) {
  const auto link = node_->link_to(node);
  RemotePtr remote;
  std::shared_ptr<const dist::Raw8> coordinator;
  std::optional<etf::Buffer> now;
  bool look = false;
  {
    const std::lock_guard lock(mutex_);
    if (auto found = link ? remotes_.find(link->id()) : remotes_.end(); found != remotes_.end()) {
      remote = found->second;
      question->link = remote->link;
      questions_[question->id] = question;
      coordinator = remote->coordinator;
      if (coordinator) {
        now.emplace(std::move(item));
      } else {
        remote->waiting.emplace_back(question->id, std::move(item));
        look = std::exchange(remote->state, Remote::State::kAsking) == Remote::State::kUnknown;
      }
    }
  }
  if (!remote) return tell(*question, Question::Told::kNoConnection, {}, {});
  if (look) {
    answers_.post(
        [self = shared_from_this(), remote](dist::Node&) { self->look_for_coordinator(remote); });
  }
  if (!now) return;
  send_item(*remote, *coordinator, now->bytes(), question->items);
  answers_.touched(remote->outbox);
}

bool Asker::may_flush(bool was_expected) {
  std::size_t left = expected_.load(std::memory_order_relaxed);
  while (was_expected && left > 0 &&
         !expected_.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) {
  }
  return left <= (was_expected ? 1 : 0);
}

void Asker::expect(std::size_t threads) {
  expected_.fetch_add(threads, std::memory_order_relaxed);
  if (std::exchange(impatient_, true)) return;
  impatience_.expires_after(kComeBack);
  impatience_.async_wait([self = shared_from_this()](asio::error_code error) {
    self->impatient_ = false;
    self->expected_.store(0, std::memory_order_relaxed);
    if (!error) self->answers_.flush();
  });
}

bool Asker::tell_coordinator(std::string_view node, etf::Bytes item) {
  const auto link = node_->link_to(node);
  const RemotePtr remote = link ? find(link->id()) : nullptr;
  if (!remote) return false;
  std::shared_ptr<const dist::Raw8> coordinator;
  {
    const std::lock_guard lock(mutex_);
    coordinator = remote->coordinator;
  }
  if (!coordinator) return false;
  send_item(*remote, *coordinator, item);
  remote->outbox->flush();
  return true;
}

bool Asker::on_results(dist::Link& link, const Payload& payload, etf::Bytes message) {
  etf::Reader in(message);
  if (auto arity = in.tuple(); !arity || *arity != 2) return false;
  if (auto label = in.atom(); !label) return false;
  auto count = in.list();
  if (!count) return false;
  // Checked before the lock is taken: who asks meanwhile is not to wait for a large result.
  std::vector<std::pair<std::uint64_t, etf::Bytes>> results;
  bool understood = true;
  for (std::uint32_t i = 0; i < *count; ++i) {
    auto item = in.term();
    // Legal in a BEAM, and no reason to drop a link with the other answers: skip() checks the
    // bytes as term() does but for the limit, and whoever asked is told when it is decoded.
    if (!item && item.error().code == base::ErrorCode::kTooDeep) item = in.skip();
    understood = static_cast<bool>(item);
    if (!understood) break;
    etf::Reader head(*item);
    auto arity = head.tuple();
    auto id = head.unsigned_integer();
    understood = arity && *arity == 2 && id;
    if (!understood) break;
    results.emplace_back(*id, head.rest());
  }
  std::vector<std::pair<QuestionPtr, etf::Bytes>> told;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, bytes] : results) {
      auto found = questions_.find(id);
      if (found == questions_.end() || found->second->link != link.id() ||
          found->second->kind != Question::Kind::kCall)
        continue;
      told.emplace_back(std::move(found->second), bytes);
      questions_.erase(found);
    }
  }
  const auto threads = static_cast<std::size_t>(std::count_if(
      told.begin(), told.end(), [](const auto& entry) { return entry.first->from_thread; }));
  if (threads > 1) expect(threads);
  for (const auto& [question, bytes] : told) {
    question->expected_back = threads > 1 && question->from_thread;
    tell(*question, Question::Told::kAnswer, payload, bytes);
  }
  return understood;
}

// --- requests
// ----------------------------------------------------------------------------------------------------

void Asker::request(const QuestionPtr& question, const Target& target, etf::Buffer message) {
  if (target.node == node_->name()) return deliver_here(question, target, std::move(message));
  const auto link = node_->link_to(target.node);
  const OutboxPtr outbox = link ? answers_.outbox(link->id()) : nullptr;
  etf::Buffer process;
  if (target.pid)
    etf::Writer(process).pid(*target.pid);
  else
    etf::Writer(process).atom(target.name);
  question->target = dist::keep(process.bytes());
  if (!outbox || !enter(question, link->id()))
    return tell(*question, Question::Told::kNoConnection, {}, {});
  const std::uint64_t lane = lane_of_process(process.bytes());
  dist::Message monitor;
  {
    etf::Writer out(monitor.bytes);
    dist::append_monitor_p(out, answers_.py_pid(), process.bytes(), encoded(question->ref).bytes());
    monitor.end_control();
    monitor.lane = lane;
  }
  dist::Message asked(message.size() + 256);
  {
    etf::Writer out(asked.bytes);
    if (!target.pid)
      dist::append_reg_send(out, answers_.py_pid(), target.name);
    else if (link->has(dist::kSendSender))
      dist::append_send_sender(out, answers_.py_pid(), process.bytes());
    else
      dist::append_send(out, process.bytes());
    asked.end_control();
    asked.lane = lane;
    out.raw(message.bytes());
  }
  outbox->add(std::move(monitor));
  outbox->add(std::move(asked));
  outbox->flush();
}

void Asker::deliver_here(const QuestionPtr& question, const Target& target, etf::Buffer message) {
  if (!enter(question, 0)) return tell(*question, Question::Told::kNoConnection, {}, {});
  auto shared = std::make_shared<etf::Buffer>(std::move(message));
  answers_.post([self = shared_from_this(), question, target, shared](dist::Node& node) {
    dist::Process* process = nullptr;
    if (target.pid) {
      etf::Buffer pid;
      etf::Writer(pid).pid(*target.pid);
      etf::Reader in(pid.bytes());
      process = node.processes().find(*in.pid());
    } else {
      process = node.processes().find(target.name);
    }
    const auto fail = [&](std::string_view why) {
      if (self->take(0, key_of(question->ref)))
        tell(*question, Question::Told::kDown, dist::encode_atom(why).bytes());
    };
    if (process == nullptr) return fail("noproc");
    switch (self->deliver_(process->id, std::move(*shared))) {
      case Delivered::kNoProcess:
        return fail("noproc");
      case Delivered::kFull:
        return fail("overloaded");
      case Delivered::kYes:
        break;
    }
    etf::Reader in(self->answers_.py_pid());
    auto py = in.pid();
    dist::Process* own = py ? node.processes().find(*py) : nullptr;
    if (own != nullptr) node.monitor(*own, target.node, dist::view(process->pid), question->ref);
  });
}

void Asker::spawn(const QuestionPtr& question, std::string_view node, etf::Bytes arguments) {
  const auto link = node_->link_to(node);
  const OutboxPtr outbox = link ? answers_.outbox(link->id()) : nullptr;
  if (!outbox || !enter(question, link->id()))
    return tell(*question, Question::Told::kNoConnection, {}, {});
  etf::Buffer options;
  etf::Writer(options).list(1).atom("monitor").nil();
  dist::Message message(arguments.size() + 256);
  etf::Writer out(message.bytes);
  dist::append_spawn_request(out, encoded(question->ref).bytes(), answers_.py_pid(),
                             answers_.py_pid(), "erpc", "execute_call", 4, options.bytes());
  message.end_control();
  out.raw(arguments);
  outbox->add(std::move(message));
  outbox->flush();
}

bool Asker::on_reply(std::uint64_t link, etf::Bytes message) {
  etf::Reader in(message);
  if (auto arity = in.tuple(); !arity || *arity != 2) return false;
  auto tag = in.peek();
  if (!tag) return false;
  const bool alias = *tag == etf::kList;
  const auto ref = reference_in(in);
  if (!ref || ref->creation != node_->creation()) return false;
  QuestionPtr question = take(link, dist::RefKey::of(0, *ref));
  // An alias that has been answered is none any more; a plain reference may be somebody else's.
  if (!question) return alias;
  demonitor(*question);
  tell(*question, Question::Told::kAnswer, in.rest());
  return true;
}

bool Asker::on_down(std::uint64_t link, const dist::RefKey& ref, etf::Bytes reason) {
  if (auto found = watched_.find(ref); found != watched_.end()) {
    const RemotePtr remote = found->second;
    if (remote->link != link) return true;
    watched_.erase(found);
    remote->monitor.reset();
    give_up(remote, reason);
    return true;
  }
  QuestionPtr question = take(link, ref);
  if (!question) return false;
  const bool remote = question->kind == Question::Kind::kRemote;
  tell(*question, remote ? Question::Told::kAnswer : Question::Told::kDown, reason);
  return true;
}

void Asker::on_spawn_refused(std::uint64_t link, const dist::RefKey& ref, std::string_view reason) {
  if (QuestionPtr question = take(link, ref, Question::Kind::kRemote))
    tell(*question, Question::Told::kRefused, dist::encode_atom(reason).bytes());
}

void Asker::demonitor(const Question& question) {
  if (question.kind != Question::Kind::kRequest) return;
  if (question.link == 0) {
    answers_.post([this, key = key_of(question.ref)](dist::Node& node) {
      etf::Reader in(answers_.py_pid());
      auto py = in.pid();
      if (dist::Process* own = py ? node.processes().find(*py) : nullptr) node.demonitor(*own, key);
    });
    return;
  }
  const RemotePtr remote = find(question.link);
  if (!remote) return;
  dist::Message message;
  etf::Writer out(message.bytes);
  dist::append_demonitor_p(out, answers_.py_pid(), dist::view(question.target),
                           encoded(question.ref).bytes());
  message.end_control();
  message.lane = lane_of_process(dist::view(question.target));
  remote->outbox->add(std::move(message));
  remote->outbox->flush();
}

void Asker::forget(const QuestionPtr& question) {
  RemotePtr remote;
  std::shared_ptr<const dist::Raw8> coordinator;
  {
    const std::lock_guard lock(mutex_);
    if (questions_.erase(question->id) == 0) return;
    by_ref_.erase(key_of(question->ref));
    if (auto found = remotes_.find(question->link); found != remotes_.end()) {
      remote = found->second;
      coordinator = remote->coordinator;
    }
  }
  if (question->kind != Question::Kind::kCall) return demonitor(*question);
  if (!remote || !coordinator) return;
  etf::Buffer item;
  etf::Writer(item).tuple(2).atom("cancel").unsigned_integer(question->id);
  send_item(*remote, *coordinator, item.bytes());
  remote->outbox->flush();
}

// --- threads
// -----------------------------------------------------------------------------------------------------

std::string Asker::make_address() {
  auto promise = std::make_shared<std::promise<std::string>>();
  auto future = promise->get_future();
  answers_.post([self = shared_from_this(), promise](dist::Node& node) {
    const dist::Process& process = node.create_process({}, true);
    self->addresses_.insert(process.id);
    promise->set_value(process.pid);
  });
  if (future.wait_for(std::chrono::seconds(10)) != std::future_status::ready) return {};
  return future.get();
}

void Asker::thread_ended(std::uint64_t caller, const std::string& address,
                         const std::vector<std::uint64_t>& links) {
  threads_.fetch_sub(1, std::memory_order_relaxed);
  etf::Buffer item;
  etf::Writer(item).tuple(2).atom("gone").unsigned_integer(caller);
  for (const std::uint64_t link : links) {
    std::shared_ptr<const dist::Raw8> coordinator;
    RemotePtr remote;
    {
      const std::lock_guard lock(mutex_);
      auto found = remotes_.find(link);
      if (found == remotes_.end()) continue;
      remote = found->second;
      coordinator = remote->coordinator;
    }
    if (!coordinator) continue;
    send_item(*remote, *coordinator, item.bytes());
    remote->outbox->flush();
  }
  if (address.empty()) return;
  answers_.post([self = shared_from_this(), address](dist::Node& node) {
    etf::Reader in(dist::view(address));
    auto pid = in.pid();
    dist::Process* process = pid ? node.processes().find(*pid) : nullptr;
    if (process == nullptr) return;
    const dist::ProcessId id = process->id;
    self->addresses_.erase(id);
    node.exit_process(id, dist::encode_atom("normal").bytes());
  });
}

ThreadMailbox::ThreadMailbox(const std::shared_ptr<Asker>& asker)
    : asker_(asker), number_(asker->next_thread()) {}

ThreadMailbox::~ThreadMailbox() {
  if (auto asker = asker_.lock()) asker->thread_ended(number_, address_, links_);
}

ThreadMailbox& ThreadMailbox::mine(const std::shared_ptr<Asker>& asker) {
  // Ends with the thread, whoever made it.
  thread_local std::unique_ptr<ThreadMailbox> mailbox;
  if (!mailbox || mailbox->asker_.lock() != asker) mailbox.reset(new ThreadMailbox(asker));
  return *mailbox;
}

const std::string& ThreadMailbox::address() {
  if (address_.empty()) {
    if (auto asker = asker_.lock()) address_ = asker->make_address();
  }
  return address_;
}

void ThreadMailbox::used(std::uint64_t link) {
  if (std::find(links_.begin(), links_.end(), link) != links_.end()) return;
  if (links_.size() >= kRemembered) links_.erase(links_.begin());  // most likely long closed
  links_.push_back(link);
}

}  // namespace bridge
