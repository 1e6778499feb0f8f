#include "cnode/bridge/worker_process.hpp"

#include <asio/post.hpp>

#include "cnode/base/log.hpp"
#include "cnode/bridge/native_asking.hpp"
#include "cnode/bridge/waiting.hpp"
#include "cnode/py/gil.hpp"
#include "cnode/term/codec.hpp"

namespace bridge {

// A call from the node. When the last who has it lets go of it, and it was not answered, the node
// is told that it is over.
struct WorkerProcess::Task final : Call {
  explicit Task(WorkerProcess& worker) : owner(worker) {}
  ~Task() {
    if (!owner.leave(number)) return;
    const bool first = !owner.dirty();
    owner.say_over(*this);
    if (first) asio::post(owner.reactor_, [&worker = owner] { worker.flush(); });
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  WorkerProcess& owner;
};

WorkerProcess::WorkerProcess(asio::io_context& reactor, std::shared_ptr<WorkerSocket> socket,
                             Options options, Hooks hooks)
    : reactor_(reactor),
      socket_(std::move(socket)),
      options_(std::move(options)),
      hooks_(std::move(hooks)),
      native_(py::import("erlang._native")),
      served_variable_(py::attribute(native_.get(), "SERVED")),
      codec_(term::codec_of(native_.get())),
      answers_(reactor, no_node_) {
  answers_.send_to(*this);

  Invoker::Hooks invoker_hooks;
  invoker_hooks.start_task = [this](const CallPtr& call, const py::Ref& coroutine) {
    if (loop_->tasks() >= options_.pool.queue.items) return false;
    say(FromWorker::kTask, call->number);
    loop_->start_task(call, py::Ref::borrow(coroutine.get()));
    return true;
  };
  invoker_hooks.run_again = [this](CallPtr call) { pool_->push_internal(std::move(call)); };
  invoker_hooks.watch = [](const std::string&) {};  // the node does
  invoker_ = std::make_unique<Invoker>(codec_, answers_, metrics_, options_.invoker,
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
  loop_hooks.flush = [this] { flush(); };
  loop_hooks.served = &mark_served;
  loop_hooks.served_variable = served_variable_.get();
  loop_hooks.enter_trace = [this](const Call& call) { return invoker_->enter_trace(call); };
  loop_hooks.leave_trace = [this](const py::Ref& tokens) { invoker_->leave_trace(tokens); };
  loop_ = std::make_unique<AsyncLoop>(std::move(loop_hooks));

  WorkerPool::Hooks pool_hooks;
  pool_hooks.run = [this](const CallPtr& call) { invoker_->run(call); };
  pool_hooks.flush = [this] { flush(); };
  pool_hooks.has_unflushed = [this] { return dirty(); };
  pool_hooks.look_for_async = [this] { loop_->look_for_async(); };
  pool_hooks.interrupted = [](unsigned long thread) { interrupt_waiting(thread); };
  pool_hooks.interruption = [this] { return invoker_->interruption(); };
  WorkerPool::Options pool = options_.pool;
  // The node bounds what comes, and has a process replaced that does not end a call.
  pool.queue = {SIZE_MAX, SIZE_MAX};
  pool.grace = std::chrono::hours(24);
  pool_ = std::make_unique<WorkerPool>(reactor, pool, std::move(pool_hooks));
}

void WorkerProcess::start() {
  loop_->start();
  pool_->start();
  socket_->start({[this](const auto& frame) { return on_frame(frame); }, [this] { flush(); },
                  [this](const std::string& why) {
                    spdlog::debug("the node is gone: {}", why);
                    hooks_.lost();
                  }});
  etf::Buffer frame;
  FrameWriter(frame, FromWorker::kHello).end();
  socket_->add(std::move(frame));
  flush();
}

void WorkerProcess::stop() {
  pool_->stop();
  loop_->stop();
}

// --- from the node
// -----------------------------------------------------------------------------------------------

bool WorkerProcess::on_frame(const FrameReader::Frame& frame) {
  FrameFields fields(frame.body);
  switch (static_cast<ToWorker>(frame.kind)) {
    case ToWorker::kCall:
      return on_call(frame);
    case ToWorker::kCancel: {
      auto number = fields.u64();
      if (!number) return false;
      const CallPtr call = find(*number);
      if (!call) return true;  // answered meanwhile
      call->cancelled.store(true, std::memory_order_relaxed);
      pool_->cancel(call);
      loop_->cancel(call);
      return true;
    }
    case ToWorker::kForget:
      forget(frame.body);
      return true;
    case ToWorker::kGiveBack:
      give_back();
      return true;
    case ToWorker::kLook: {
      auto id = fields.u64();
      auto module = fields.sized();
      if (!id || !module) return false;
      const auto text = [](etf::Bytes bytes) {
        return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      };
      auto function = fields.sized();
      if (!function) return false;
      loop_->post([this, id = *id, module = text(*module), function = text(*function)] {
        look(id, module, function);
      });
      return true;
    }
    case ToWorker::kPing:
      loop_->post([this] {
        etf::Buffer answer;
        FrameWriter(answer, FromWorker::kPong).end();
        socket_->add(std::move(answer));
        const py::GilRelease released;
        flush();
      });
      return true;
    case ToWorker::kStop:
      hooks_.told_to_stop();
      return true;
    case ToWorker::kAnswer:
      return on_answer(frame);
    case ToWorker::kSettings:
      break;
  }
  return false;
}

bool WorkerProcess::on_call(const FrameReader::Frame& frame) {
  std::shared_ptr<etf::Buffer> kept;
  if (frame.whole != nullptr) {
    kept = std::make_shared<etf::Buffer>(std::move(*frame.whole));
  } else {
    kept = std::make_shared<etf::Buffer>(frame.body.size());
    kept->append(frame.body);
  }
  FrameFields fields(kept->bytes());
  auto head = fields.head();
  if (!head || head->kind > static_cast<std::uint8_t>(Call::Kind::kErpcCast)) return false;
  auto call = std::make_shared<Task>(*this);
  call->number = head->number;
  call->kind = static_cast<Call::Kind>(head->kind);
  call->payload = kept;
  call->request = fields.rest();
  call->module = head->module;
  call->function = head->function;
  call->peer = head->peer;
  etf::Reader in(head->from);
  if (auto pid = in.pid()) call->from = *pid;
  {
    const std::lock_guard lock(mutex_);
    calls_[call->number] = call;
  }
  if (!head->on_loop) return pool_->push(std::move(call));
  loop_->post([this, call = CallPtr(std::move(call))] {
    invoker_->run(call);
    const py::GilRelease released;
    flush();
  });
  return true;
}

// Loop thread, under the GIL.
void WorkerProcess::look(std::uint64_t id, const std::string& module, const std::string& function) {
  const auto probe = std::make_shared<Call>();
  probe->kind = Call::Kind::kErpc;
  probe->module = module;
  probe->function = function;
  etf::Buffer answer;
  FrameWriter(answer, FromWorker::kLooked).u64(id).u8(invoker_->is_async(probe) ? 1 : 0).end();
  socket_->add(std::move(answer));
  const py::GilRelease released;
  flush();
}

void WorkerProcess::give_back() {
  etf::Buffer answer;
  FrameWriter frame(answer, FromWorker::kGivenBack);
  const auto calls = pool_->take_waiting();
  for (const auto& call : calls) {
    if (leave(call->number)) frame.u64(call->number);
  }
  frame.end();
  socket_->add(std::move(answer));
  flush();
}

void WorkerProcess::forget(etf::Bytes pid) {
  auto call = std::make_shared<Call>();
  call->kind = Call::Kind::kFreeNamespace;
  call->caller = dist::keep(pid);
  pool_->push_internal(std::move(call));
}

CallPtr WorkerProcess::find(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  auto found = calls_.find(number);
  return found == calls_.end() ? nullptr : found->second.lock();
}

// True for the one who tells the node how it ended.
bool WorkerProcess::leave(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  return calls_.erase(number) > 0;
}

// --- to the node
// -------------------------------------------------------------------------------------------------

void WorkerProcess::say(FromWorker kind, std::uint64_t number) {
  etf::Buffer frame(16);
  FrameWriter(frame, kind).u64(number).end();
  socket_->add(std::move(frame));
}

void WorkerProcess::say_over(const Call& call) {
  etf::Buffer frame(16);
  FrameWriter(frame, FromWorker::kOver)
      .u64(call.number)
      .u8(call.function_counts != nullptr ? kResultKnown : 0)
      .u8(call.outcome ? static_cast<std::uint8_t>(*call.outcome) : kNoOutcome)
      .end();
  socket_->add(std::move(frame));
}

void WorkerProcess::add(const Call& call, bool ok, etf::Bytes value) {
  if (!leave(call.number)) return;
  etf::Buffer frame(32 + value.size());
  FrameWriter(frame, FromWorker::kResult)
      .u64(call.number)
      .u8(static_cast<std::uint8_t>((ok ? 0 : kResultError) |
                                    (call.function_counts != nullptr ? kResultKnown : 0)))
      .raw(value)
      .end();
  socket_->add(std::move(frame));
  if (socket_->unsent() > 64 * 1024) flush();
}

void WorkerProcess::ask(const QuestionPtr& question, AskKind kind, std::uint64_t call,
                        std::uint64_t thread, etf::Bytes fields) {
  std::uint64_t id = 0;
  if (question) {
    const std::lock_guard lock(mutex_);
    id = question->id = next_question_++;
    questions_.emplace(id, question);
  }
  etf::Buffer frame(64);
  FrameWriter(frame, FromWorker::kAsk)
      .u64(id)
      .u8(static_cast<std::uint8_t>(kind))
      .u64(call)
      .u64(thread)
      .raw(fields)
      .end();
  socket_->add(std::move(frame));
  flush();
}

void WorkerProcess::forget(const QuestionPtr& question) {
  {
    const std::lock_guard lock(mutex_);
    if (questions_.erase(question->id) == 0) return;
  }
  say(FromWorker::kForgetAsk, question->id);
  flush();
}

bool WorkerProcess::on_answer(const FrameReader::Frame& frame) {
  FrameFields head(frame.body);
  auto id = head.u64();
  auto told = head.u8();
  auto matched = head.u8();
  if (!id || !told || !matched) return false;
  QuestionPtr question;
  {
    const std::lock_guard lock(mutex_);
    auto found = questions_.find(*id);
    if (found == questions_.end()) return true;  // forgotten meanwhile
    question = std::move(found->second);
    questions_.erase(found);
  }
  const std::size_t size = head.rest().size();
  std::shared_ptr<etf::Buffer> kept;
  if (frame.whole != nullptr) {
    kept = std::make_shared<etf::Buffer>(std::move(*frame.whole));
  } else {
    kept = std::make_shared<etf::Buffer>(frame.body.size());
    kept->append(frame.body);
  }
  question->bytes = kept->bytes().last(size);
  question->payload = kept;
  if (*matched != 0) {
    etf::Reader in(question->bytes);
    auto arity = in.tuple();
    auto ref = in.reference();
    if (arity && ref) question->ref.words = ref->words;
  }
  question->told.store(static_cast<Question::Told>(*told), std::memory_order_release);
  question->waiter->wake();
  return true;
}

void WorkerProcess::distrust(const Call& call) { say(FromWorker::kDistrust, call.number); }

}  // namespace bridge
