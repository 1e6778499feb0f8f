#include "cnode/bridge/worker_pool.hpp"

#include <asio/post.hpp>

#include <algorithm>
#include <system_error>

#include "cnode/base/fork.hpp"
#include "cnode/base/log.hpp"
#include "cnode/py/gil.hpp"

namespace bridge {
namespace {

constexpr std::chrono::microseconds kSentinelPeriod{500};
constexpr std::size_t kLooks = 256;  // calls shown to the loop thread at a time
constexpr int kStuckLooks = 2;
constexpr std::chrono::microseconds kStuck{
    200};  // since the last call was taken: the busy ones are in slow calls
constexpr std::chrono::microseconds kGilHold{1'000};  // then others get their turn

// The pool and worker of this thread, so that leave_user_code() needs no arguments from deep inside
// a call.
thread_local std::function<void()>* t_leave = nullptr;
thread_local bool t_left = false;
thread_local const Call* t_call = nullptr;
thread_local CallMetrics::Clock::time_point t_over{};  // when its last call was; none if not told
// How the worker of this thread goes to wait and comes back; nullptr in other threads.
struct Place {
  std::function<bool()> begin_waiting;
  std::function<void()> end_waiting;
};
thread_local Place* t_place = nullptr;

}  // namespace

WorkerPool::WorkerPool(asio::io_context& reactor, Options options, Hooks hooks)
    : reactor_(reactor),
      options_(options),
      hooks_(std::move(hooks)),
      sentinel_(reactor),
      wedged_(reactor) {}

WorkerPool::~WorkerPool() { stop(); }

void WorkerPool::start() {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < options_.workers; ++i) add_worker();
  interrupter_ = std::thread([this] { interrupter(); });
}

WorkerPool::Worker& WorkerPool::add_worker() {
  Worker& worker = workers_.emplace_back();
  worker.number = ++numbered_;
  worker.awake = true;
  try {
    worker.thread = std::thread([this, &worker] { run(worker); });
  } catch (const std::system_error&) {
    workers_.pop_back();
    throw;
  }
  ++active_;
  ++live_;
  return worker;
}

WorkerPool::Worker* WorkerPool::add_if_needed() {
  if (stopping_ || live_ - waiting_ >= options_.workers || live_ >= options_.max_workers)
    return nullptr;
  drop_ended();
  try {
    Worker& worker = add_worker();
    last_taken_ = Clock::now();
    return &worker;
  } catch (const std::system_error& error) {
    spdlog::error("no thread for another worker: {}", error.what());
    return nullptr;
  }
}

// Their threads have nothing left to do but to end.
void WorkerPool::drop_ended() {
  for (auto at = workers_.begin(); at != workers_.end();) {
    if (!at->ended) {
      ++at;
      continue;
    }
    at->thread.join();
    at = workers_.erase(at);
  }
}

bool WorkerPool::begin_waiting(Worker& worker) {
  Worker* woken = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (worker.abandoned) return true;
    if (waiting_ + 1 >= std::max<std::size_t>(options_.max_workers, 2)) return false;
    worker.waiting = true;
    ++waiting_;
    --active_;
    if (!queue_.empty()) woken = wake_one();
  }
  if (woken != nullptr) woken->wake.notify_one();
  return true;
}

void WorkerPool::end_waiting(Worker& worker) {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(worker.waiting, false)) return;
  --waiting_;
  ++active_;
}

WorkerPool::Waiting::Waiting() {
  if (t_place == nullptr) return;
  waiting_ = t_place->begin_waiting();
  refused_ = !waiting_;
}

WorkerPool::Waiting::~Waiting() {
  if (waiting_) t_place->end_waiting();
}

const Call* WorkerPool::current_call() { return t_call; }

void WorkerPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    for (auto& worker : workers_) {
      worker.awake = true;
      worker.wake.notify_all();
    }
  }
  const auto deadline = Clock::now() + options_.grace;
  for (auto& worker : workers_) {
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        if (worker.ended || Clock::now() > deadline) break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const bool ended = [&] {
      const std::lock_guard lock(mutex_);
      return worker.ended;
    }();
    if (ended) {
      worker.thread.join();
    } else {
      worker.thread.detach();  // wedged in C; the process is about to end
    }
  }
  // Last: what still runs may be cancelled to the end.
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    interrupt_wake_.notify_all();
  }
  if (interrupter_.joinable()) interrupter_.join();
}

// --- reactor
// -----------------------------------------------------------------------------------------------------

bool WorkerPool::has_room(std::size_t bytes) const {
  if (stopping_ || queue_.size() >= options_.queue.items) return false;
  return queue_.empty() || queue_bytes_ + bytes <= options_.queue.bytes;
}

bool WorkerPool::push(CallPtr call) {
  if (hooks_.loop_takes && hooks_.loop_takes(call)) return true;
  Worker* woken = nullptr;
  bool watch = false;
  {
    const std::lock_guard lock(mutex_);
    const std::size_t bytes = call->request.size();
    if (!has_room(bytes)) {
      ++refused_;
      return false;
    }
    queue_bytes_ += bytes;
    queue_.push_back(std::move(call));
    woken = worker_for_new_call();
    watch = needs_watching(woken);
  }
  after_push(woken, watch);
  return true;
}

std::size_t WorkerPool::push_all(std::vector<CallPtr>& calls) {
  std::size_t taken = 0;
  bool queued = false;
  Worker* woken = nullptr;
  bool watch = false;
  {
    const std::lock_guard lock(mutex_);
    for (auto& call : calls) {
      if (hooks_.loop_takes && hooks_.loop_takes(call)) {
        ++taken;
        continue;
      }
      const std::size_t bytes = call->request.size();
      if (!has_room(bytes)) {
        refused_ += calls.size() - taken;
        break;
      }
      queue_bytes_ += bytes;
      queue_.push_back(std::move(call));
      ++taken;
      queued = true;
    }
    if (!queued) return taken;
    woken = worker_for_new_call();
    watch = needs_watching(woken);
  }
  after_push(woken, watch);
  return taken;
}

void WorkerPool::push_internal(CallPtr call) {
  Worker* woken = nullptr;
  {
    const std::lock_guard lock(mutex_);
    queue_bytes_ += call->request.size();
    queue_.push_front(std::move(call));
    ++looked_;  // not for the loop thread
    if (active_ == 0) woken = wake_one();
  }
  if (woken != nullptr) return woken->wake.notify_one();
  asio::post(reactor_, [this] { arm_sentinel(); });
}

void WorkerPool::push_job(CallPtr call) {
  Worker* woken = nullptr;
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(call));
    woken = worker_for_new_call();
  }
  if (woken != nullptr) woken->wake.notify_one();
  asio::post(reactor_, [this] { arm_sentinel(); });
}

bool WorkerPool::full() const {
  const std::lock_guard lock(mutex_);
  return stopping_ || queue_.size() >= options_.queue.items || queue_bytes_ >= options_.queue.bytes;
}

// Nobody at work, or those at work have been in one call for long: one is woken at once. Otherwise
// whoever is running through the queue will come to it, and the sentinel watches that it does.
WorkerPool::Worker* WorkerPool::worker_for_new_call() {
  if (active_ != 0 && Clock::now() - last_taken_ <= kStuck) return nullptr;
  return wake_one();
}

// Not when the only worker awake is on its way to a lone call. One that is at work may take this
// call as well, and leave the answer before it unflushed for as long.
bool WorkerPool::needs_watching(const Worker* woken) const {
  return woken == nullptr || queue_.size() > 1 || active_ > 1;
}

// Outside the lock, which the woken worker wants at once.
void WorkerPool::after_push(Worker* woken, bool watch) {
  if (woken != nullptr) woken->wake.notify_one();
  if (watch) arm_sentinel();
}

WorkerPool::Worker* WorkerPool::wake_one() {
  if (idle_.empty()) return add_if_needed();
  Worker* worker = idle_.back();
  idle_.pop_back();
  ++active_;
  worker->awake = true;
  last_taken_ = Clock::now();  // it is about to take something: no reason to wake another
  return worker;
}

void WorkerPool::arm_sentinel() {
  if (sentinel_armed_) return;
  sentinel_armed_ = true;
  popped_before_ = popped_.load(std::memory_order_relaxed);
  sentinel_.expires_after(kSentinelPeriod);
  sentinel_.async_wait([this](asio::error_code error) {
    if (!error) sentinel();
  });
}

void WorkerPool::sentinel() {
  sentinel_armed_ = false;
  bool work_left = false;
  bool nobody_free = false;
  std::vector<Worker*> woken;
  {
    const std::lock_guard lock(mutex_);
    work_left = !queue_.empty();
    if (work_left && popped_.load(std::memory_order_relaxed) == popped_before_) {
      nobody_free = idle_.empty();
      for (std::size_t left = queue_.size(); left > 0; --left) {
        Worker* worker = wake_one();
        if (worker == nullptr) break;
        woken.push_back(worker);
      }
    }
  }
  for (Worker* worker : woken) worker->wake.notify_one();
  stuck_looks_ = nobody_free ? stuck_looks_ + 1 : 0;
  if (stuck_looks_ >= kStuckLooks) hooks_.look_for_async();
  const bool unflushed = hooks_.has_unflushed();
  if (unflushed) hooks_.flush();
  if (work_left || unflushed) arm_sentinel();
}

void WorkerPool::cancel(const CallPtr& call) {
  {
    const std::lock_guard lock(mutex_);
    auto running = std::find_if(workers_.begin(), workers_.end(), [&](const Worker& worker) {
      return worker.current == call && !worker.abandoned;
    });
    if (running == workers_.end()) return;  // waiting (it is marked), on the loop, or over
    running->interrupt_at = Clock::now();
    interrupts_.push_back(call);
    interrupt_wake_.notify_one();
  }
  look_for_wedged();
}

std::vector<CallPtr> WorkerPool::take_waiting() {
  std::vector<CallPtr> taken;
  const std::lock_guard lock(mutex_);
  std::deque<CallPtr> own;  // the node's, which goes on to the end
  for (auto& call : queue_) {
    if (call->kind == Call::Kind::kFreeNamespace || call->kind == Call::Kind::kJob) {
      own.push_back(std::move(call));
      continue;
    }
    queue_bytes_ -= std::min(queue_bytes_, call->request.size());
    taken.push_back(std::move(call));
  }
  queue_.swap(own);
  looked_ = 0;
  return taken;
}

void WorkerPool::look_for_wedged() {
  bool watch = false;
  {
    const std::lock_guard lock(mutex_);
    std::size_t replacements = 0;
    for (auto& worker : workers_) {
      if (worker.abandoned || !worker.current || worker.interrupt_at == Clock::time_point{})
        continue;
      watch = true;
      if (Clock::now() - worker.interrupt_at < options_.grace) continue;
      spdlog::error(
          "worker {} has not ended a cancelled call for {} ms: it sits in native code; replacing "
          "it",
          worker.number, options_.grace.count());
      worker.abandoned = true;
      --live_;
      if (std::exchange(worker.waiting, false))
        --waiting_;
      else
        --active_;
      ++replacements;
    }
    replaced_ += replacements;
    for (; replacements > 0 && !stopping_; --replacements) add_worker();
  }
  if (!watch || wedged_armed_) return;
  wedged_armed_ = true;
  wedged_.expires_after(std::max(options_.grace / 4, std::chrono::milliseconds(10)));
  wedged_.async_wait([this](asio::error_code error) {
    wedged_armed_ = false;
    if (!error) look_for_wedged();
  });
}

// --- workers
// -----------------------------------------------------------------------------------------------------

void WorkerPool::run(Worker& worker) {
  const PyGILState_STATE state = PyGILState_Ensure();
  PyThreadState* thread = PyThreadState_Get();
  std::function<void()> leave = [this, &worker] {
    if (std::exchange(t_left, true)) return;
    base::end_if_forked();
    const std::lock_guard lock(mutex_);
    worker.current.reset();
    worker.interrupt_at = {};
    // Under the GIL, so an exception that was set and not yet raised is gone before other code runs
    // here.
    if (std::exchange(worker.interrupted, false)) PyThreadState_SetAsyncExc(worker.ident, nullptr);
  };
  Place place{[this, &worker] { return begin_waiting(worker); },
              [this, &worker] { end_waiting(worker); }};
  t_leave = &leave;
  t_place = &place;
  {
    const std::lock_guard lock(mutex_);
    worker.ident = PyThread_get_thread_ident();
  }
  auto now = Clock::now();
  for (;;) {
    auto held_since = now;
    std::size_t since_look = 0;
    while (CallPtr call = next(worker, now)) {
      t_left = false;
      t_over = {};
      t_call = call.get();
      const Payload held = call->payload;  // what the call says of its caller counts until the end
      hooks_.run(call);
      t_call = nullptr;
      leave();
      call.reset();
      now = t_over == Clock::time_point{} ? Clock::now() : t_over;
      if (++since_look % 16 == 0 && now - held_since > kGilHold) {
        PyEval_SaveThread();
        now = take_gil(thread);
        held_since = now;
      }
    }
    PyEval_SaveThread();
    hooks_.flush();
    const bool go_on = park(worker);
    now = take_gil(thread);
    if (!go_on) break;
  }
  t_leave = nullptr;
  t_place = nullptr;
  PyGILState_Release(state);
  const std::lock_guard lock(mutex_);
  worker.ended = true;
  if (!worker.abandoned && !worker.retired) --live_;
}

WorkerPool::Clock::time_point WorkerPool::take_gil(PyThreadState* thread) {
  const auto wanted = Clock::now();
  PyEval_RestoreThread(thread);
  const auto now = Clock::now();
  gil_wait_.add(now - wanted);
  return now;
}

void WorkerPool::over(CallMetrics::Clock::time_point now) { t_over = now; }

void WorkerPool::leave_user_code() {
  if (t_leave != nullptr) (*t_leave)();
}

CallPtr WorkerPool::next(Worker& worker, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (worker.abandoned || (stopping_ && queue_.empty())) return nullptr;
  if (queue_.empty()) return nullptr;
  CallPtr call = std::move(queue_.front());
  queue_.pop_front();
  if (looked_ > 0) --looked_;
  queue_bytes_ -= std::min(queue_bytes_, call->request.size());
  worker.current = call;
  last_taken_ = now;
  call->taken = now;
  popped_.fetch_add(1, std::memory_order_relaxed);
  return call;
}

bool WorkerPool::park(Worker& worker) {
  std::unique_lock lock(mutex_);
  if (worker.abandoned) return false;
  if (!queue_.empty()) return true;
  if (stopping_) return false;
  --active_;
  worker.awake = false;
  idle_.push_back(&worker);
  const auto awake = [&] { return worker.awake; };
  while (!worker.awake) {
    // Not surplus(): those that wait for Erlang now are idle, too, in a moment, and who slept
    // without an end would stay while the calls that come wake another again and again.
    if (live_ <= options_.workers) {
      worker.wake.wait(lock, awake);
    } else if (!worker.wake.wait_for(lock, options_.surplus_idle, awake) && surplus()) {
      std::erase(idle_, &worker);
      worker.retired = true;  // at once: the next one to look must not end for the same surplus
      --live_;
      return false;
    }
  }
  return !(stopping_ && queue_.empty());
}

CallPtr WorkerPool::take_for_loop(const std::function<bool(const CallPtr&)>& wanted) {
  for (std::size_t looks = 0; looks < kLooks; ++looks) {
    CallPtr candidate;
    {
      const std::lock_guard lock(mutex_);
      if (looked_ >= queue_.size()) return nullptr;
      candidate = queue_[looked_++];
    }
    if (!wanted(candidate)) continue;
    const std::lock_guard lock(mutex_);
    // Workers may have taken some meanwhile: it lies at or before the last one looked at.
    for (std::size_t at = std::min(looked_, queue_.size()); at-- > 0;) {
      if (queue_[at] != candidate) continue;
      queue_bytes_ -= std::min(queue_bytes_, candidate->request.size());
      queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(at));
      --looked_;
      candidate->taken = Clock::now();
      popped_.fetch_add(1, std::memory_order_relaxed);
      return candidate;
    }
  }
  return nullptr;
}

void WorkerPool::interrupter() {
  for (;;) {
    std::vector<CallPtr> taken;
    {
      std::unique_lock lock(mutex_);
      interrupt_wake_.wait(lock, [&] { return stopped_ || !interrupts_.empty(); });
      if (stopped_) return;
      taken.swap(interrupts_);
    }
    const py::GilGuard gil;
    const std::lock_guard lock(mutex_);
    for (auto& worker : workers_) {
      if (!worker.current || worker.interrupted) continue;
      if (std::find(taken.begin(), taken.end(), worker.current) == taken.end()) continue;
      worker.interrupted = PyThreadState_SetAsyncExc(worker.ident, hooks_.interruption()) == 1;
      if (worker.interrupted && hooks_.interrupted) hooks_.interrupted(worker.ident);
    }
  }
}

std::size_t WorkerPool::waiting() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

std::size_t WorkerPool::threads() const {
  const std::lock_guard lock(mutex_);
  return live_;
}

std::size_t WorkerPool::blocked() const {
  const std::lock_guard lock(mutex_);
  return waiting_;
}

std::size_t WorkerPool::busy() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(std::count_if(
      workers_.begin(), workers_.end(),
      [](const Worker& worker) { return worker.current != nullptr && !worker.abandoned; }));
}

}  // namespace bridge
