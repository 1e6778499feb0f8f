#include "cnode/bridge/process_pool.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <asio/post.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <future>

#include "cnode/base/log.hpp"

extern char** environ;  // NOLINT: POSIX has it in no header

namespace bridge {
namespace {

using std::chrono::milliseconds;

constexpr std::chrono::microseconds kSentinelPeriod{500};
constexpr milliseconds kPatientPeriod{5};  // once nothing is left to ask about
constexpr int kStuckLooks = 2;
constexpr int kPatientLooks = 8;
constexpr std::size_t kLooks = 256;  // calls asked about at a time
constexpr std::size_t kAhead = 16;   // calls that a quick process has beyond its threads
constexpr milliseconds kQuick{1};    // since its last result
constexpr std::size_t kUnsent = std::size_t{1} << 20;  // bytes it has not read: it gets no more
constexpr milliseconds kFirstBackoff{100};
constexpr milliseconds kLastBackoff{10'000};
constexpr std::size_t kSlack = 4096;         // around a term in a frame
constexpr std::size_t kQuestions = 100'000;  // of one process, unanswered

// Wakes the pool when a process's question is answered.
class Answered final : public mailbox::Waiter {
 public:
  Answered(asio::io_context& reactor, std::function<void()> wake)
      : reactor_(reactor), wake_(std::move(wake)) {}
  void wake() override { asio::post(reactor_, wake_); }

 private:
  asio::io_context& reactor_;
  const std::function<void()> wake_;
};

std::string_view text_of(etf::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string_view name_in(etf::Reader& in) {
  if (auto atom = in.atom()) return atom->text;
  if (auto binary = in.binary()) return text_of(*binary);
  return {};
}

// What can be told of a call without Python.
struct Heading {
  std::string_view module, function;  // empty where it is no call
  std::string_view caller;            // of an eval or exec
};

Heading heading_of(const Call& call) {
  switch (call.kind) {
    case Call::Kind::kSpawn:
    case Call::Kind::kErpc:
    case Call::Kind::kErpcCast:
      return {call.module, call.function, {}};
    case Call::Kind::kRequest:
    case Call::Kind::kBatchItem:
    case Call::Kind::kCast:
      break;
    default:
      return {};
  }
  etf::Reader in(call.request);
  if (auto arity = in.tuple(); !arity) return {};
  auto verb = in.atom();
  if (!verb) return {};
  const bool item = call.kind == Call::Kind::kBatchItem && !(*verb == "cast");
  if (item) {
    if (auto id = in.unsigned_integer(); !id) return {};
  }
  if (*verb == "call" || *verb == "cast") {
    const std::string_view module = name_in(in);
    return {module, name_in(in), {}};
  }
  if (!(*verb == "eval" || *verb == "exec") || call.kind == Call::Kind::kCast) return {};
  const std::string_view function = *verb == "eval" ? "eval" : "exec";
  if (!item) return {"builtins", function, text_of(call.from.raw)};
  auto pid = in.pid();
  return {"builtins", function, pid ? text_of(pid->raw) : std::string_view()};
}

// What a reason that is no exception's says of a call.
CallMetrics::Result result_of(etf::Bytes reason) {
  etf::Reader in(reason);
  if (auto word = in.atom())
    return *word == "cancelled" ? CallMetrics::Result::kCancelled : CallMetrics::Result::kRefused;
  if (auto arity = in.tuple(); !arity) return CallMetrics::Result::kRefused;
  auto label = in.atom();
  return label && (*label == "python" || *label == "worker_died") ? CallMetrics::Result::kError
                                                                  : CallMetrics::Result::kRefused;
}

std::string signal_name(int signal) {
  const char* name = sigabbrev_np(signal);
  std::string text = "sig" + (name != nullptr ? std::string(name) : std::to_string(signal));
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

ProcessPool::ProcessPool(asio::io_context& reactor, Options options, Answers& answers,
                         CallMetrics& metrics, Hooks hooks)
    : reactor_(reactor),
      options_(std::move(options)),
      answers_(answers),
      metrics_(metrics),
      hooks_(std::move(hooks)),
      backoff_(kFirstBackoff),
      sentinel_(reactor),
      wedged_(reactor),
      stop_timer_(reactor) {}

// They end with their sockets, too; but here nobody would wait for them.
ProcessPool::~ProcessPool() {
  for (auto& child : children_) {
    kill(child.pid, SIGKILL);
    waitpid(child.pid, nullptr, 0);
    child.socket->close();
  }
}

void ProcessPool::start() {
  asio::post(reactor_, [this] {
    running_ = true;
    for (std::size_t i = 0; i < options_.processes; ++i) start_child();
  });
}

void ProcessPool::stop() {
  if (!running_) return;
  std::promise<void> ended;
  auto future = ended.get_future();
  asio::post(reactor_, [this, &ended] {
    stopping_ = true;
    stopped_ = [&ended] { ended.set_value(); };
    for (auto& child : children_) {
      if (!child.ready) {
        kill(child.pid, SIGKILL);
        continue;
      }
      etf::Buffer frame;
      FrameWriter(frame, ToWorker::kStop).end();
      send(child, std::move(frame));
      child.socket->flush();
    }
    stop_timer_.expires_after(options_.grace);
    stop_timer_.async_wait([this](asio::error_code error) {
      if (error) return;
      for (auto& child : children_) {
        spdlog::warn("worker process {} does not end; killing it", child.pid);
        kill(child.pid, SIGKILL);
      }
    });
    finish_stop();
  });
  future.wait();
}

void ProcessPool::finish_stop() {
  if (!stopping_ || !children_.empty() || !stopped_) return;
  stop_timer_.cancel();
  std::exchange(stopped_, nullptr)();
}

// --- the queue
// ---------------------------------------------------------------------------------------------------

bool ProcessPool::has_room(std::size_t bytes) const {
  if (stopping_ || waiting() >= options_.queue.items) return false;
  return waiting() == 0 || queue_bytes_ + bytes <= options_.queue.bytes;
}

bool ProcessPool::full() const {
  return stopping_ || waiting() >= options_.queue.items || queue_bytes_ >= options_.queue.bytes;
}

void ProcessPool::enqueue(CallPtr call) {
  call->number = next_number_++;
  queue_bytes_ += call->request.size();
  queue_.push_back(std::move(call));
}

bool ProcessPool::push(CallPtr call) {
  if (!has_room(call->request.size())) {
    ++refused_;
    return false;
  }
  enqueue(std::move(call));
  dispatch();
  return true;
}

std::size_t ProcessPool::push_all(std::vector<CallPtr>& calls) {
  std::size_t taken = 0;
  for (auto& call : calls) {
    if (!has_room(call->request.size())) {
      refused_ += calls.size() - taken;
      break;
    }
    enqueue(std::move(call));
    ++taken;
  }
  if (taken > 0) dispatch();
  return taken;
}

// A caller with a namespace has ended.
void ProcessPool::push_internal(CallPtr call) {
  if (call->kind != Call::Kind::kFreeNamespace) return;
  auto found = namespaces_.find(call->caller);
  if (found == namespaces_.end()) return;
  Child& child = *found->second;
  namespaces_.erase(found);
  --child.callers;
  etf::Buffer frame;
  const etf::Bytes pid = dist::view(call->caller);
  FrameWriter(frame, ToWorker::kForget).raw(pid).end();
  send(child, std::move(frame));
  child.socket->flush();
}

void ProcessPool::cancel(const CallPtr& call) {
  for (auto& child : children_) {
    auto found = child.given.find(call->number);
    if (found == child.given.end()) continue;
    found->second.cancelled_at = Clock::now();
    etf::Buffer frame;
    FrameWriter(frame, ToWorker::kCancel).u64(call->number).end();
    send(child, std::move(frame));
    child.socket->flush();
    return arm_wedged();
  }
}

// --- giving calls out
// --------------------------------------------------------------------------------------------

bool ProcessPool::drop_if_cancelled(const CallPtr& call) {
  if (!call->cancelled.load(std::memory_order_relaxed)) return false;
  answers_.refuse(*call, "cancelled");
  call->taken = Clock::now();
  count(*call, false, CallMetrics::Result::kCancelled);
  call->done.store(true, std::memory_order_release);
  return true;
}

bool ProcessPool::quick(const Child& child) const {
  return Clock::now() - child.last_result < kQuick;
}

// A result, or what is as good as one.
void ProcessPool::moved(Child& child) {
  child.ahead = quick(child) ? std::min(child.ahead + 1, kAhead) : 0;
  child.last_result = Clock::now();
  ++results_;
}

bool ProcessPool::may_take(const Child& child, std::size_t ahead) const {
  return child.ready && !child.retiring && child.load() < options_.workers + ahead &&
         child.socket->unsent() < kUnsent;
}

// The one with the least to do.
ProcessPool::Child* ProcessPool::choose(bool ahead) {
  Child* best = nullptr;
  for (auto& child : children_) {
    if (!may_take(child, ahead ? child.ahead : 0) || (ahead && !quick(child))) continue;
    if (best == nullptr || child.load() < best->load()) best = &child;
  }
  return best;
}

// Namespaces last longer than calls: they are spread by their number.
ProcessPool::Child* ProcessPool::choose_for_namespace() {
  Child* best = nullptr;
  for (auto& child : children_) {
    if (!may_take(child, 0)) continue;
    if (best == nullptr || child.callers < best->callers) best = &child;
  }
  return best;
}

void ProcessPool::dispatch() {
  for (auto& child : children_) {
    while (!child.own.empty() && may_take(child, 0)) {
      CallPtr call = std::move(child.own.front());
      child.own.pop_front();
      --held_;
      queue_bytes_ -= call->request.size();
      ++taken_;
      if (!drop_if_cancelled(call)) give(child, std::move(call), false);
    }
  }
  while (!queue_.empty()) {
    if (!place(queue_.front())) break;
    queue_.pop_front();
    if (looked_ > 0) --looked_;
  }
  for (auto& child : children_) child.socket->flush();
  if (answers_.dirty()) answers_.flush();
  const bool ahead = std::any_of(children_.begin(), children_.end(), [&](const Child& child) {
    return child.load() > options_.workers;
  });
  if (ahead || !queue_.empty()) arm_sentinel();
}

// Gives it to a process, or into its queue, or answers it. False: it has to wait.
bool ProcessPool::place(CallPtr call) {
  const std::size_t bytes = call->request.size();
  if (drop_if_cancelled(call)) {
    queue_bytes_ -= bytes;
    ++taken_;
    return true;
  }
  std::string caller;
  if (options_.eval) caller = heading_of(*call).caller;
  if (!caller.empty()) {
    if (auto found = namespaces_.find(caller); found != namespaces_.end()) {
      Child& child = *found->second;
      if (child.own.empty() && may_take(child, 0)) {
        queue_bytes_ -= bytes;
        ++taken_;
        give(child, std::move(call), false);
      } else {
        ++held_;
        child.own.push_back(std::move(call));
      }
      return true;
    }
  }
  Child* child = caller.empty() ? choose(false) : choose_for_namespace();
  if (child == nullptr && caller.empty()) child = choose(true);
  if (child == nullptr) return false;
  if (!caller.empty()) {
    namespaces_.emplace(caller, child);
    ++child->callers;
    hooks_.watch(caller);
  }
  queue_bytes_ -= bytes;
  ++taken_;
  give(*child, std::move(call), false);
  return true;
}

void ProcessPool::send(Child& child, etf::Buffer frame) { child.socket->add(std::move(frame)); }

// Its frame leaves with the next flush.
void ProcessPool::give(Child& child, CallPtr call, bool on_loop) {
  etf::Buffer frame(128);
  CallHead head{call->number,
                static_cast<std::uint8_t>(call->kind),
                on_loop,
                call->from.raw,
                call->module,
                call->function,
                call->link ? std::string_view(call->link->peer().name) : std::string_view()};
  FrameWriter(frame, ToWorker::kCall).head(head).end(call->request.size());
  child.socket->add(std::move(frame), call->payload, call->request);
  call->taken = Clock::now();
  const std::uint64_t number = call->number;
  child.given[number].call = std::move(call);
}

// --- when nothing moves
// ------------------------------------------------------------------------------------------

void ProcessPool::arm_sentinel() {
  if (sentinel_armed_) return;
  sentinel_armed_ = true;
  results_before_ = results_;
  if (stuck_looks_ > kPatientLooks)
    sentinel_.expires_after(kPatientPeriod);
  else
    sentinel_.expires_after(kSentinelPeriod);
  sentinel_.async_wait([this](asio::error_code error) {
    if (!error) sentinel();
  });
}

void ProcessPool::sentinel() {
  sentinel_armed_ = false;
  bool ahead = false;
  for (auto& child : children_) {
    if (child.load() <= options_.workers) continue;
    ahead = true;
    if (child.asked_back || quick(child)) continue;
    child.asked_back = true;
    child.ahead = 0;
    etf::Buffer frame;
    FrameWriter(frame, ToWorker::kGiveBack).end();
    send(child, std::move(frame));
    child.socket->flush();
  }
  const bool stuck = !queue_.empty() && results_ == results_before_;
  stuck_looks_ = stuck ? stuck_looks_ + 1 : 0;
  if (stuck_looks_ >= kStuckLooks && looked_ < queue_.size()) look_for_async();
  if (ahead || !queue_.empty()) arm_sentinel();
}

// Asks every process which of the next waiting calls are of coroutine functions; each is asked
// about once.
void ProcessPool::look_for_async() {
  std::map<std::pair<std::string_view, std::string_view>, Look> found;
  const std::size_t end = std::min(queue_.size(), looked_ + kLooks);
  for (; looked_ < end; ++looked_) {
    const CallPtr& call = queue_[looked_];
    const Heading heading = heading_of(*call);
    if (heading.module.empty() || heading.function.empty()) continue;
    found[{heading.module, heading.function}].calls.push_back(call);
  }
  for (auto& [name, look] : found) {
    const std::uint64_t id = next_look_++;
    for (auto& child : children_) {
      if (!child.ready || child.retiring || child.socket->unsent() >= kUnsent) continue;
      etf::Buffer frame;
      FrameWriter(frame, ToWorker::kLook).u64(id).sized(name.first).sized(name.second).end();
      send(child, std::move(frame));
      ++look.answers_left;
    }
    if (look.answers_left > 0) looks_.emplace(id, std::move(look));
  }
  for (auto& child : children_) child.socket->flush();
}

bool ProcessPool::on_looked(Child& child, etf::Bytes body) {
  FrameFields fields(body);
  auto id = fields.u64();
  auto yes = fields.u8();
  if (!id || !yes) return false;
  auto found = looks_.find(*id);
  if (found == looks_.end()) return true;
  Look& look = found->second;
  if (*yes != 0 && !child.retiring) {
    for (auto& call : look.calls) {
      auto at = std::find(queue_.begin(), queue_.end(), call);
      if (at == queue_.end()) continue;
      take_from_queue(static_cast<std::size_t>(at - queue_.begin()));
      if (!drop_if_cancelled(call)) give(child, std::move(call), true);
    }
    looks_.erase(found);
    child.socket->flush();
    return true;
  }
  if (--look.answers_left == 0) looks_.erase(found);
  return true;
}

void ProcessPool::take_from_queue(std::size_t index) {
  queue_bytes_ -= queue_[index]->request.size();
  queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(index));
  if (index < looked_) --looked_;
  ++taken_;
}

void ProcessPool::arm_wedged() {
  if (wedged_armed_) return;
  wedged_armed_ = true;
  wedged_.expires_after(std::max(options_.grace / 4, milliseconds(10)));
  wedged_.async_wait([this](asio::error_code error) {
    wedged_armed_ = false;
    if (!error) look_for_wedged();
  });
}

void ProcessPool::look_for_wedged() {
  const auto now = Clock::now();
  bool watch = false;
  for (auto& child : children_) {
    std::size_t wedged = 0;
    for (const auto& entry : child.given) {
      const Given& given = entry.second;
      if (given.task || given.cancelled_at == Clock::time_point{}) continue;
      watch = true;
      if (now - given.cancelled_at >= options_.grace) ++wedged;
    }
    if (wedged == 0) continue;
    if (!child.retiring) {
      spdlog::error(
          "worker process {} has not ended a cancelled call for {} ms: it sits in native code; "
          "replacing the process",
          child.pid, options_.grace.count());
      retire(child);
      continue;
    }
    const bool silent = child.pinged != Clock::time_point{} && now - child.pinged >= options_.grace;
    if (wedged < child.given.size() && !silent) {
      if (child.pinged == Clock::time_point{}) {
        etf::Buffer frame;
        FrameWriter(frame, ToWorker::kPing).end();
        send(child, std::move(frame));
        child.socket->flush();
        child.pinged = now;
      }
      continue;
    }
    kill(child.pid, SIGKILL);
  }
  if (watch) arm_wedged();
}

// What it has may go on; what it has not begun, and its callers' namespaces, are no longer its own.
void ProcessPool::retire(Child& child) {
  child.retiring = true;
  ++replaced_;
  std::erase_if(namespaces_, [&](const auto& entry) { return entry.second == &child; });
  for (; !child.own.empty(); child.own.pop_back()) {
    --held_;
    queue_.push_front(std::move(child.own.back()));
    if (looked_ > 0) ++looked_;
  }
  etf::Buffer frame;
  FrameWriter(frame, ToWorker::kGiveBack).end();
  send(child, std::move(frame));
  child.socket->flush();
  if (!stopping_) start_later(milliseconds(0));
}

// --- what processes say
// ------------------------------------------------------------------------------------------

bool ProcessPool::on_frame(Child& child, const FrameReader::Frame& frame) {
  FrameFields fields(frame.body);
  const auto known = [&]() -> std::map<std::uint64_t, Given>::iterator {
    auto number = fields.u64();
    return number ? child.given.find(*number) : child.given.end();
  };
  switch (static_cast<FromWorker>(frame.kind)) {
    case FromWorker::kHello:
      if (child.ready) return false;
      child.ready = true;
      spdlog::info("worker process {} is ready", child.pid);
      return true;
    case FromWorker::kResult:
      return on_result(child, frame.body);
    case FromWorker::kOver:
      return on_over(child, frame.body);
    case FromWorker::kTask: {
      auto found = known();
      if (found == child.given.end() || found->second.task) return false;
      if (found->second.asking > 0) --child.waiting;
      found->second.task = true;
      ++child.tasks;
      moved(child);
      return true;
    }
    case FromWorker::kDistrust: {
      auto found = known();
      if (found == child.given.end()) return false;
      found->second.distrusted = true;
      return true;
    }
    case FromWorker::kAsk:
      return on_ask(child, frame.body);
    case FromWorker::kForgetAsk:
      return on_forget(child, frame.body);
    case FromWorker::kGivenBack:
      return on_given_back(child, frame.body);
    case FromWorker::kLooked:
      return on_looked(child, frame.body);
    case FromWorker::kPong:
      child.pinged = {};
      return true;
  }
  return false;
}

bool ProcessPool::on_result(Child& child, etf::Bytes body) {
  FrameFields fields(body);
  auto number = fields.u64();
  auto flags = fields.u8();
  if (!number || !flags || *flags > (kResultError | kResultKnown)) return false;
  auto found = child.given.find(*number);
  if (found == child.given.end()) return false;
  const Given given = found->second;
  const bool ok = (*flags & kResultError) == 0;
  const etf::Bytes value = fields.rest();
  const bool nothing = ok && given.call->kind == Call::Kind::kSpawn && value.empty();
  if (!nothing) {
    etf::Reader in(value);
    if (auto term = in.term(); !term || !in.at_end()) return false;
  }
  take_out(child, found);
  moved(child);
  backoff_ = kFirstBackoff;
  answers_.finish(*given.call, ok, value);
  count(*given.call, (*flags & kResultKnown) != 0,
        ok ? CallMetrics::Result::kOk : result_of(value));
  if (given.distrusted && given.call->link) {
    spdlog::warn("{}: a message that cannot be understood; closing the link",
                 given.call->link->peer().name);
    answers_.flush();
    given.call->link->close("a message that cannot be understood");
  }
  return true;
}

bool ProcessPool::on_over(Child& child, etf::Bytes body) {
  FrameFields fields(body);
  auto number = fields.u64();
  auto flags = fields.u8();
  auto outcome = fields.u8();
  if (!number || !flags || !outcome) return false;
  auto found = child.given.find(*number);
  if (found == child.given.end()) return false;
  const Given given = found->second;
  take_out(child, found);
  moved(child);
  given.call->done.store(true, std::memory_order_release);
  if (*outcome < CallMetrics::kResults.size())
    count(*given.call, (*flags & kResultKnown) != 0, static_cast<CallMetrics::Result>(*outcome));
  return true;
}

// A process says of its function only that there is one; its name is what the caller called it.
void ProcessPool::count(Call& call, bool known, CallMetrics::Result result) {
  if (known) {
    const Heading heading = heading_of(call);
    call.function_counts = metrics_.function(heading.module, heading.function);
  }
  metrics_.answered(call, result, Clock::now());
  call.payload.reset();  // the Router may remember the call for a while
}

void ProcessPool::take_out(Child& child, std::map<std::uint64_t, Given>::iterator given) {
  if (given->second.task)
    --child.tasks;
  else if (given->second.asking > 0)
    --child.waiting;
  child.given.erase(given);
}

// A thread that waits for Erlang is replaced in its process, and its call counts as absent here.
bool ProcessPool::on_ask(Child& child, etf::Bytes body) {
  FrameFields fields(body);
  auto id = fields.u64();
  auto kind = fields.u8();
  auto call = fields.u64();
  auto thread = fields.u64();
  if (!id || !kind || !call || !thread || child.asked.contains(*id)) return false;
  // Of these alone nobody has to hear.
  const bool tells = *kind == static_cast<std::uint8_t>(AskKind::kSend) ||
                     *kind == static_cast<std::uint8_t>(AskKind::kLog);
  if ((*id == 0 && !tells) || child.threads.size() > kQuestions) return false;
  auto question = std::make_shared<Question>();
  if (*id != 0) {
    question->waiter = std::make_shared<Answered>(
        reactor_, [this, process = child.id, id = *id] { on_answered(process, id); });
    Asked asked{question, 0};
    if (auto found = child.given.find(*call); found != child.given.end() && *thread != 0) {
      asked.call = *call;
      if (found->second.asking++ == 0 && !found->second.task) ++child.waiting;
    }
    child.asked.emplace(*id, std::move(asked));
  }
  const auto number = [&]() -> std::uint64_t {
    if (*thread == 0) return 0;
    auto [known, fresh] = child.threads.try_emplace(*thread);
    if (fresh) known->second = hooks_.new_caller();
    return known->second;
  };
  if (child.asked.size() > kQuestions) {
    etf::Buffer reason = dist::encode_atom("overloaded");
    const auto payload = std::make_shared<const etf::Buffer>(std::move(reason));
    question->payload = payload;
    question->bytes = payload->bytes();
    question->told.store(Question::Told::kRefused, std::memory_order_release);
    if (question->waiter) question->waiter->wake();
    return true;
  }
  const bool calls = *kind == static_cast<std::uint8_t>(AskKind::kCall);
  const bool understood =
      hooks_.serve(question, static_cast<AskKind>(*kind), calls ? number() : 0, fields);
  if (question->link != 0) child.links.insert(question->link);
  return understood;
}

bool ProcessPool::on_forget(Child& child, etf::Bytes body) {
  FrameFields fields(body);
  auto id = fields.u64();
  if (!id) return false;
  auto found = child.asked.find(*id);
  if (found == child.asked.end()) return true;  // answered meanwhile
  hooks_.forget(found->second.question);
  stop_waiting(child, found->second);
  child.asked.erase(found);
  return true;
}

void ProcessPool::stop_waiting(Child& child, const Asked& asked) {
  auto found = child.given.find(asked.call);
  if (asked.call == 0 || found == child.given.end() || found->second.asking == 0) return;
  if (--found->second.asking == 0 && !found->second.task) --child.waiting;
}

void ProcessPool::on_answered(std::uint64_t process, std::uint64_t id) {
  for (auto& child : children_) {
    if (child.id != process) continue;
    auto found = child.asked.find(id);
    if (found == child.asked.end()) return;
    const Asked asked = std::move(found->second);
    child.asked.erase(found);
    stop_waiting(child, asked);
    const Question& question = *asked.question;
    bool matched = false;
    if (question.kind == Question::Kind::kRemote) {
      etf::Reader in(question.bytes);
      auto arity = in.tuple();
      auto ref = in.reference();
      matched = arity && ref && ref->words == question.ref.words;
    }
    etf::Buffer frame(32);
    FrameWriter(frame, ToWorker::kAnswer)
        .u64(id)
        .u8(static_cast<std::uint8_t>(question.told.load(std::memory_order_acquire)))
        .u8(matched ? 1 : 0)
        .end(question.bytes.size());
    child.socket->add(std::move(frame), question.payload, question.bytes);
    child.socket->flush();
    return;
  }
}

bool ProcessPool::on_given_back(Child& child, etf::Bytes body) {
  FrameFields fields(body);
  child.asked_back = false;
  std::vector<CallPtr> calls;
  while (!fields.at_end()) {
    auto number = fields.u64();
    if (!number) return false;
    auto found = child.given.find(*number);
    if (found == child.given.end() || found->second.task) return false;
    calls.push_back(std::move(found->second.call));
    child.given.erase(found);
  }
  for (std::size_t i = calls.size(); i > 0; --i) {
    queue_bytes_ += calls[i - 1]->request.size();
    --taken_;
    queue_.push_front(std::move(calls[i - 1]));
    if (looked_ > 0) ++looked_;
  }
  return true;
}

void ProcessPool::on_turn() { dispatch(); }

// --- their beginning and end
// -------------------------------------------------------------------------------------

void ProcessPool::start_later(milliseconds delay) {
  auto timer = std::make_shared<asio::steady_timer>(reactor_, delay);
  timer->async_wait([this, timer](asio::error_code error) {
    if (!error && !stopping_) start_child();
  });
}

void ProcessPool::start_child() {
  const auto failed = [&](const char* what, int error) {
    spdlog::error("no worker process: {}: {}", what, std::strerror(error));  // NOLINT
    start_later(backoff_);
    backoff_ = std::min(2 * backoff_, kLastBackoff);
  };
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return failed("socketpair", errno);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], kDescriptor);
  posix_spawn_file_actions_addclosefrom_np(&actions, kDescriptor + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<std::string> words = options_.command;
  words.emplace_back(kArgument);
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, words.front().c_str(), &actions, &attributes, arguments.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
    return failed("posix_spawn", error);
  }
  const int end = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (end < 0) {
    const int why = errno;
    ::close(ends[0]);
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return failed("pidfd_open", why);
  }
  Child& child = children_.emplace_back(reactor_, pid, end);
  child.id = next_child_++;
  child.socket = std::make_shared<WorkerSocket>(reactor_, ends[0], etf::kMaxMessage + kSlack);
  child.socket->start({[this, &child](const auto& frame) { return on_frame(child, frame); },
                       [this] { on_turn(); },
                       [&child](const std::string& why) {
                         // Most often it has just ended, which is told with its reason.
                         spdlog::debug("worker process {}: {}", child.pid, why);
                         kill(child.pid, SIGKILL);
                       }});
  wait_for_end(child);
  etf::Buffer settings;
  FrameWriter(settings, ToWorker::kSettings).raw(dist::view(options_.settings)).end();
  send(child, std::move(settings));
  child.socket->flush();
}

void ProcessPool::wait_for_end(Child& child) {
  child.end.async_wait(asio::posix::stream_descriptor::wait_read,
                       [this, &child](asio::error_code error) {
                         if (!error) on_end(child);
                       });
}

void ProcessPool::on_end(Child& child) {
  int status = 0;
  const pid_t reaped = waitpid(child.pid, &status, WNOHANG);
  if (reaped == 0) return wait_for_end(child);
  // What it said before it ended counts.
  child.socket->read_what_is_there();
  child.socket->close();
  etf::Buffer reason;
  etf::Writer out(reason);
  out.tuple(2).atom("worker_died");
  std::string what = "exit";
  if (reaped > 0 && WIFSIGNALED(status)) {
    what = signal_name(WTERMSIG(status));
    out.atom(what);
  } else {
    const int code = reaped > 0 ? WEXITSTATUS(status) : 0;
    out.tuple(2).atom("exit").integer(code);
    what = "exit";
  }
  const bool at_work = !child.given.empty();
  if (!stopping_ && !child.retiring) {
    ++deaths_[what];
    spdlog::error("worker process {} ended: {}{}; {} calls are lost with it", child.pid, what,
                  what == "exit" ? " " + std::to_string(WEXITSTATUS(status)) : "",
                  child.given.size());
  }
  lose_calls(child, reason.bytes());
  // One that a call killed is replaced as soon as that makes sense; one that cannot live by itself
  // is not tried in vain too often.
  if (!stopping_ && !child.retiring) {
    start_later(at_work ? kFirstBackoff : backoff_);
    if (!at_work) backoff_ = std::min(2 * backoff_, kLastBackoff);
  }
  children_.remove_if([&](const Child& one) { return &one == &child; });
  dispatch();
  finish_stop();
}

void ProcessPool::lose_calls(Child& child, etf::Bytes reason) {
  std::erase_if(namespaces_, [&](const auto& entry) { return entry.second == &child; });
  looks_.clear();
  for (const auto& entry : child.given) {
    const CallPtr& call = entry.second.call;
    if (drop_if_cancelled(call)) continue;
    if (call->kind == Call::Kind::kCast || call->kind == Call::Kind::kErpcCast)
      spdlog::error("a cast was lost with worker process {}", child.pid);
    answers_.finish(*call, false, reason);
    count(*call, true, CallMetrics::Result::kError);
  }
  child.given.clear();
  child.tasks = 0;
  child.waiting = 0;
  for (const auto& entry : child.asked) hooks_.forget(entry.second.question);
  child.asked.clear();
  const std::vector<std::uint64_t> links(child.links.begin(), child.links.end());
  for (const auto& entry : child.threads) hooks_.caller_gone(entry.second, links);
  for (; !child.own.empty(); child.own.pop_back()) {
    --held_;
    queue_.push_front(std::move(child.own.back()));
  }
  looked_ = 0;
  answers_.flush();
}

// --- counts
// ------------------------------------------------------------------------------------------------------

std::size_t ProcessPool::busy() const {
  std::size_t count = 0;
  for (const auto& child : children_) count += child.load();
  return count;
}

std::size_t ProcessPool::blocked() const {
  std::size_t count = 0;
  for (const auto& child : children_) count += child.waiting;
  return count;
}

std::size_t ProcessPool::tasks() const {
  std::size_t count = 0;
  for (const auto& child : children_) count += child.tasks;
  return count;
}

std::size_t ProcessPool::threads() const { return alive() * options_.workers; }

std::size_t ProcessPool::alive() const {
  return static_cast<std::size_t>(
      std::count_if(children_.begin(), children_.end(),
                    [](const Child& child) { return child.ready && !child.retiring; }));
}

std::vector<pid_t> ProcessPool::pids() const {
  std::vector<pid_t> all;
  for (const auto& child : children_) all.push_back(child.pid);
  return all;
}

}  // namespace bridge
