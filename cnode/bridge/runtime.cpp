#include "cnode/bridge/runtime.hpp"

#include <unistd.h>

#include "cnode/base/log.hpp"
#include "cnode/bridge/native_asking.hpp"
#include "cnode/bridge/waiting.hpp"
#include "cnode/py/gil.hpp"

namespace bridge {
namespace {

Runtime* g_runtime = nullptr;  // set and cleared under the GIL

constexpr std::size_t kMessagesAtOnce = 1000;

// Peers go on asking until they have heard that we drain. A request that is on its way when its
// link closes would be lost, with nobody to say whether it had begun; so links stay until none has
// come for a moment, and no longer than somebody who never listens may keep us.
constexpr std::chrono::milliseconds kQuiet{300};
constexpr std::chrono::milliseconds kQuietAtMost{2'000};

// What Python has against a term, a reference to an object that is gone, is an error as well:
// nobody here could take an exception.
base::Result<py::Ref> decoded(term::Codec& codec, etf::Bytes bytes) {
  try {
    etf::Reader in(bytes);
    return codec.decode(in);
  } catch (const py::Error& error) {
    return base::Error{base::ErrorCode::kUnsupported, 0, error.describe().message};
  }
}

}  // namespace

Runtime* Runtime::current() { return g_runtime; }

Runtime::Runtime(asio::io_context& reactor, RuntimeConfig config)
    : reactor_(reactor),
      config_(std::move(config)),
      native_(py::import("erlang._native")),
      codec_(term::codec_of(native_.get())),
      drain_timer_(reactor) {
  const std::string version = Py_GetVersion();
  python_version_ = version.substr(0, version.find(' '));
  answers_ = std::make_unique<Answers>(reactor_, node_pointer_);

  Invoker::Hooks invoker_hooks;
  invoker_hooks.start_task = [this](const CallPtr& call, const py::Ref& coroutine) {
    if (loop_->tasks() >= config_.pool.queue.items) return false;
    loop_->start_task(call, py::Ref::borrow(coroutine.get()));
    return true;
  };
  invoker_hooks.run_again = [this](CallPtr call) { pool_->push_internal(std::move(call)); };
  invoker_hooks.watch = [this](std::string pid) {
    answers_->post([this, pid = std::move(pid)](dist::Node&) { router_->watch_caller(pid); });
  };
  invoker_ = std::make_unique<Invoker>(codec_, *answers_, metrics_, config_.invoker,
                                       std::move(invoker_hooks));

  AsyncLoop::Hooks loop_hooks;
  loop_hooks.finish = [this](const Call& call, PyObject* value, PyObject* exception) {
    invoker_->finish(call, value, exception);
  };
  loop_hooks.look_for_async = [this] {
    while (CallPtr call = pool_->take_for_loop(
               [this](const CallPtr& one) { return invoker_->is_async(one); })) {
      invoker_->run(call);
    }
  };
  loop_hooks.run = [this](const CallPtr& call) {
    call->taken = CallMetrics::Clock::now();
    if (invoker_->is_async(call)) return invoker_->run(call);
    invoker_->forget_async(*call);
    pool_->push_internal(call);
  };
  loop_hooks.flush = [this] { answers_->flush(); };
  loop_hooks.served = &mark_served;
  loop_hooks.enter_trace = [this](const Call& call) { return invoker_->enter_trace(call); };
  loop_hooks.leave_trace = [this](const py::Ref& tokens) { invoker_->leave_trace(tokens); };
  // The module's, which may be another copy of this code than ours.
  served_variable_ = py::attribute(native_.get(), "SERVED");
  loop_hooks.served_variable = served_variable_.get();
  loop_ = std::make_unique<AsyncLoop>(std::move(loop_hooks));

  WorkerPool::Hooks pool_hooks;
  pool_hooks.run = [this](const CallPtr& call) {
    if (call->kind == Call::Kind::kJob) return run_job(call);
    invoker_->run(call);
  };
  pool_hooks.flush = [this] { answers_->flush(); };
  pool_hooks.has_unflushed = [this] { return answers_->dirty(); };
  pool_hooks.look_for_async = [this] { loop_->look_for_async(); };
  pool_hooks.loop_takes = [this](const CallPtr& call) {
    // A call that nobody knows by a name of its own is not counted as in flight but in the queue.
    if (call->key.link == 0 || !invoker_->was_async(*call)) return false;
    if (loop_->tasks() >= config_.pool.queue.items) return false;
    loop_->hand_over(call);
    return true;
  };
  pool_hooks.interrupted = [](unsigned long thread) { interrupt_waiting(thread); };
  pool_hooks.interruption = [this] { return invoker_->interruption(); };
  pool_ = std::make_unique<WorkerPool>(reactor_, config_.pool, std::move(pool_hooks));

  runner_ = pool_.get();
  if (config_.processes > 0) {
    ProcessPool::Options processes;
    processes.processes = config_.processes;
    processes.workers = config_.pool.workers;
    processes.queue = config_.pool.queue;
    processes.grace = config_.pool.grace;
    processes.eval = config_.invoker.eval;
    processes.settings = config_.worker_settings;
    processes.command = config_.worker_command;
    desk_ = std::make_unique<FrontDesk>(*this);
    ProcessPool::Hooks hooks;
    hooks.watch = [this](std::string pid) {
      answers_->post([this, pid = std::move(pid)](dist::Node&) { router_->watch_caller(pid); });
    };
    hooks.serve = [this](const QuestionPtr& question, AskKind kind, std::uint64_t caller,
                         FrameFields fields) {
      return desk_->serve(question, kind, caller, fields);
    };
    hooks.new_caller = [this] { return asker_->next_thread(); };
    hooks.caller_gone = [this](std::uint64_t caller, const std::vector<std::uint64_t>& links) {
      asker_->thread_ended(caller, {}, links);
    };
    hooks.forget = [this](const QuestionPtr& question) { asker_->forget(question); };
    process_pool_ = std::make_unique<ProcessPool>(reactor, std::move(processes), *answers_,
                                                  metrics_, std::move(hooks));
    runner_ = process_pool_.get();
  }

  Processes::Hooks process_hooks;
  process_hooks.wake = [this](PyProcessPtr process) {
    loop_->post([this, process = std::move(process)] { hand_over(process); });
  };
  process_hooks.ended = [this](PyProcessPtr process, etf::Buffer reason) {
    // std::function wants what it holds to be copyable.
    auto why = std::make_shared<etf::Buffer>(std::move(reason));
    loop_->post([this, process = std::move(process), why] {
      processes_->remove(process->id);
      if (std::exchange(process->ended, true)) return;
      auto term = decoded(codec_, why->bytes());
      py::Ref told = term ? std::move(*term) : py::Ref::borrow(Py_None);
      py::Ref ignored = py::Ref::steal(PyObject_CallOneArg(process->stop, told.get()));
      if (!ignored)
        spdlog::error("a process could not be stopped: {}", py::Error::fetch().describe().message);
      Py_CLEAR(process->deliver);
      Py_CLEAR(process->stop);
    });
  };
  processes_ = std::make_unique<Processes>(std::move(process_hooks));

  channels_ = std::make_unique<Channels>(*answers_);
  asker_ =
      std::make_shared<Asker>(reactor_, *answers_, [this](dist::ProcessId id, etf::Buffer message) {
        auto process = processes_->find(id);
        if (!process) return Asker::Delivered::kNoProcess;
        return processes_->deliver(process, std::move(message)) ? Asker::Delivered::kYes
                                                                : Asker::Delivered::kFull;
      });
  router_ = std::make_unique<Router>(
      *runner_, *answers_, *processes_, *channels_, *asker_, metrics_, config_.invoker.allow,
      Router::Hooks{[this](const CallPtr& call) { loop_->cancel(call); },
                    [this](etf::Writer& out, bool functions) { report_->write(out, functions); }});
  report_ = std::make_unique<Report>(*this);
  node_ = std::make_unique<dist::Node>(reactor_, config_.node, *router_);
  node_pointer_ = node_.get();
  router_->attach(*node_);
  router_->set_hello(hello());
  g_runtime = this;
}

Runtime::~Runtime() {
  if (g_runtime == this) g_runtime = nullptr;
}

etf::Buffer Runtime::hello() const {
  etf::Buffer map;
  etf::Writer out(map);
  out.map(5);
  out.atom("version").integer(1);
  out.atom("node_version").binary(config_.version);
  out.atom("python").binary(python_version_);
  out.atom("workers").unsigned_integer(runner_->workers());
  out.atom("os_pid").integer(getpid());
  return map;
}

void Runtime::start(std::function<void(std::string)> fatal) {
  loop_->start();
  pool_->start();
  if (process_pool_) process_pool_->start();
  node_->start(std::move(fatal));
}

// A process's messages, decoded in one go and handed to its callable.
void Runtime::hand_over(const PyProcessPtr& process) {
  if (process->ended || process->deliver == nullptr) return;
  try {
    py::Ref messages = py::check(PyList_New(0));
    std::size_t count = 0;
    for (; count < kMessagesAtOnce; ++count) {
      auto bytes = process->mailbox.take();
      if (!bytes) break;
      auto message = decoded(codec_, bytes->bytes());
      if (!message) {
        spdlog::warn("a message to a process cannot be decoded ({}); dropped",
                     message.error().message());
        continue;
      }
      py::check_status(PyList_Append(messages.get(), message->get()));
    }
    py::Ref deliver = py::Ref::borrow(process->deliver);
    py::check(PyObject_CallOneArg(deliver.get(), messages.get()));
    if (count == kMessagesAtOnce) loop_->post([this, process] { hand_over(process); });
  } catch (const py::Error& error) {
    const auto told = error.describe();
    spdlog::error("a process cannot take its messages: {}: {}", told.type, told.message);
  }
}

// On a worker, under the GIL.
void Runtime::run_job(const CallPtr& call) {
  const py::Ref job = py::Ref::steal(static_cast<PyObject*>(std::exchange(call->job, nullptr)));
  PyObject* value = PyObject_CallNoArgs(job.get());
  PyObject* exception = nullptr;
  if (value == nullptr) exception = py::Ref::borrow(py::Error::fetch().exception()).release();
  call->done.store(true, std::memory_order_release);
  loop_->post([call, value, exception] {
    const py::Ref own_value = py::Ref::steal(value);
    const py::Ref own_exception = py::Ref::steal(exception);
    const py::Ref done =
        py::Ref::steal(static_cast<PyObject*>(std::exchange(call->job_done, nullptr)));
    const py::Ref ignored = py::Ref::steal(
        PyObject_CallFunctionObjArgs(done.get(), own_value ? own_value.get() : Py_None,
                                     own_exception ? own_exception.get() : Py_None, nullptr));
    if (!ignored) PyErr_Clear();  // nobody waits for it any more
  });
}

void Runtime::drain(std::chrono::milliseconds limit, std::function<void()> done) {
  drained_ = std::move(done);
  router_->drain();
  node_->stop_accepting();
  const auto now = Clock::now();
  wait_for_idle(now + limit, now + std::min(limit, kQuietAtMost));
}

void Runtime::wait_for_idle(Clock::time_point until, Clock::time_point quiet_until) {
  const std::size_t left = router_->in_flight() + runner_->waiting() + runner_->busy();
  const bool idle =
      left == 0 && !channels_->has_outgoing() && !answers_->dirty() && node_->links_flushed();
  if (idle ? !is_quiet(quiet_until) : Clock::now() < until) {
    drain_timer_.expires_after(std::chrono::milliseconds(10));
    drain_timer_.async_wait([this, until, quiet_until](asio::error_code error) {
      if (!error) wait_for_idle(until, quiet_until);
    });
    return;
  }
  if (!idle)
    spdlog::warn("stopping with {} calls unfinished{}", left,
                 channels_->has_outgoing() ? " and channels nobody received from" : "");
  node_->close_links("the node stops");
  asio::post(reactor_, [this] { drained_(); });
}

bool Runtime::is_quiet(Clock::time_point until) const {
  const auto now = Clock::now();
  return now >= until || now - router_->last_refused() >= kQuiet || node_->peers().empty();
}

void Runtime::stop() {
  asker_->close();
  if (process_pool_) process_pool_->stop();
  pool_->stop();
  loop_->stop();
}

}  // namespace bridge
