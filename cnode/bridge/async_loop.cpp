#include "cnode/bridge/async_loop.hpp"

#include <stdexcept>

#include "cnode/base/log.hpp"
#include "cnode/loop/loop.hpp"
#include "cnode/py/error.hpp"
#include "cnode/py/gil.hpp"

namespace bridge {
namespace {

constexpr const char* kLoopCapsule = "sidewinder.loop";
constexpr const char* kCallCapsule = "sidewinder.call";
constexpr double kFarewell = 1.0;  // seconds for tasks to clean up when the loop ends

struct Pending {
  AsyncLoop* loop;
  CallPtr call;
};

void free_pending(PyObject* capsule) {
  delete static_cast<Pending*>(PyCapsule_GetPointer(capsule, kCallCapsule));
}

}  // namespace

PyMethodDef AsyncLoop::kDone{"sidewinder_done", &AsyncLoop::on_done, METH_O, nullptr};

void AsyncLoop::start() {
  std::unique_lock lock(mutex_);
  state_ = State::kStarting;
  thread_ = std::thread([this] { run(); });
  started_.wait(lock, [&] { return state_ != State::kStarting; });
  if (state_ == State::kFailed) {
    lock.unlock();
    thread_.join();
    throw std::runtime_error("the asyncio loop cannot start: " + failure_);
  }
}

void AsyncLoop::stop() {
  if (!thread_.joinable()) return;
  push({Item::What::kStop, nullptr, nullptr, {}});
  thread_.join();
}

void AsyncLoop::push(Item item) {
  std::shared_ptr<loop::Inbox> wake;
  {
    const std::lock_guard lock(mutex_);
    if (state_ == State::kRunning || item.what == Item::What::kStop) {
      if (inbox_.empty()) wake = loop_inbox_;
      inbox_.push_back(std::exchange(item, {}));
    }
  }
  drop(item);  // outside the lock, as it may run Python
  if (wake) wake->post([this] { drain(); });
}

void AsyncLoop::drop(Item& item) {
  if (item.what == Item::What::kRun) {
    if (item.call) --tasks_;
    return;
  }
  if (item.coroutine == nullptr) return;
  const py::Ref coroutine = py::Ref::steal(std::exchange(item.coroutine, nullptr));
  py::Ref closed = py::Ref::steal(PyObject_CallMethod(coroutine.get(), "close", nullptr));
  if (!closed) PyErr_Clear();
  --tasks_;
}

void AsyncLoop::start_task(const CallPtr& call, py::Ref coroutine) {
  ++tasks_;
  if (is_loop_thread()) return begin(call, std::move(coroutine));
  push({Item::What::kStart, call, coroutine.release(), {}});
}

void AsyncLoop::hand_over(CallPtr call) {
  ++tasks_;
  push({Item::What::kRun, std::move(call), nullptr, {}});
}

void AsyncLoop::cancel(const CallPtr& call) { push({Item::What::kCancel, call, nullptr, {}}); }

void AsyncLoop::look_for_async() { push({Item::What::kLook, nullptr, nullptr, {}}); }

void AsyncLoop::post(std::function<void()> work) {
  push({Item::What::kWork, nullptr, nullptr, std::move(work)});
}

void AsyncLoop::run() {
  const py::GilGuard gil;
  const auto report = [&](State state, std::string why) {
    const std::lock_guard lock(mutex_);
    state_ = state;
    failure_ = std::move(why);
    started_.notify_all();
  };
  try {
    py::Ref asyncio = py::import("asyncio");
    py::Ref loop =
        py::check(PyObject_CallMethod(py::import("erlang_loop._loop").get(), "node_loop", nullptr));
    loop_ = loop.get();
    py::check(PyObject_CallMethod(asyncio.get(), "set_event_loop", "O", loop_));
    create_task_ = py::attribute(loop_, "create_task");
    capsule_ = py::check(PyCapsule_New(this, kLoopCapsule, nullptr));
    native_ = loop::loop_of(loop_);
    if (native_ == nullptr) py::throw_fetched();
    {
      const std::lock_guard lock(mutex_);
      loop_inbox_ = native_->share_inbox();
    }
    report(State::kRunning, {});
    py::Ref ended = py::Ref::steal(PyObject_CallMethod(loop_, "run_forever", nullptr));
    if (!ended) spdlog::error("the asyncio loop ended: {}", py::Error::fetch().describe().message);
    end_tasks(asyncio.get());
    py::check(PyObject_CallMethod(loop_, "stop", nullptr));
    py::check(PyObject_CallMethod(loop_, "run_forever", nullptr));
    py::check(PyObject_CallMethod(loop_, "close", nullptr));
  } catch (const py::Error& error) {
    const auto told = error.describe();
    bool starting = false;
    {
      const std::lock_guard lock(mutex_);
      starting = state_ == State::kStarting;
    }
    if (starting)
      report(State::kFailed, told.type + ": " + told.message);
    else
      spdlog::warn("the asyncio loop ended with {}: {}", told.type, told.message);
  }
  create_task_.reset();
  capsule_.reset();
  native_ = nullptr;
  loop_ = nullptr;
  std::vector<Item> left;
  {
    const std::lock_guard lock(mutex_);
    if (state_ == State::kRunning) state_ = State::kStopped;
    loop_inbox_.reset();
    left.swap(inbox_);
  }
  for (auto& item : left) drop(item);
}

// Whatever still runs is told to stop, and gets a moment to do so.
void AsyncLoop::end_tasks(PyObject* asyncio) {
  py::Ref tasks = py::check(PyObject_CallMethod(asyncio, "all_tasks", "O", loop_));
  py::Ref list = py::check(PySequence_List(tasks.get()));
  if (PyList_GET_SIZE(list.get()) == 0) return;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list.get()); ++i) {
    py::Ref ignored =
        py::Ref::steal(PyObject_CallMethod(PyList_GET_ITEM(list.get(), i), "cancel", nullptr));
    if (!ignored) PyErr_Clear();
  }
  py::Ref wait = py::attribute(asyncio, "wait");
  py::Ref arguments = py::check(PyTuple_Pack(1, list.get()));
  py::Ref options = py::check(Py_BuildValue("{s:d}", "timeout", kFarewell));
  py::Ref waiting = py::check(PyObject_Call(wait.get(), arguments.get(), options.get()));
  py::check(PyObject_CallMethod(loop_, "run_until_complete", "O", waiting.get()));
}

int AsyncLoop::on_flush(loop::Loop&, PyObject* self) {
  auto* loop = static_cast<AsyncLoop*>(PyCapsule_GetPointer(self, kLoopCapsule));
  loop->flush_scheduled_ = false;
  const py::GilRelease released;
  loop->hooks_.flush();
  return 0;
}

PyObject* AsyncLoop::on_done(PyObject* self, PyObject* task) {
  auto* pending = static_cast<Pending*>(PyCapsule_GetPointer(self, kCallCapsule));
  pending->loop->task_done(*pending->call, task);
  Py_RETURN_NONE;
}

void AsyncLoop::drain() {
  std::vector<Item> taken;
  {
    const std::lock_guard lock(mutex_);
    taken.swap(inbox_);
  }
  for (auto& item : taken) {
    switch (item.what) {
      case Item::What::kStart:
        begin(item.call, py::Ref::steal(item.coroutine));
        break;
      case Item::What::kRun:
        hooks_.run(item.call);
        --tasks_;  // those it has become count themselves
        flush_soon();
        break;
      case Item::What::kCancel:
        if (item.call->task != nullptr) {
          py::Ref ignored = py::Ref::steal(
              PyObject_CallMethod(static_cast<PyObject*>(item.call->task), "cancel", nullptr));
          if (!ignored) PyErr_Clear();
        }
        break;
      case Item::What::kLook:
        hooks_.look_for_async();
        flush_soon();
        break;
      case Item::What::kWork:
        item.work();
        break;
      case Item::What::kStop: {
        py::Ref ignored = py::Ref::steal(PyObject_CallMethod(loop_, "stop", nullptr));
        if (!ignored) PyErr_Clear();
        break;
      }
    }
  }
}

void AsyncLoop::begin(const CallPtr& call, py::Ref coroutine) {
  try {
    if (call->cancelled.load(std::memory_order_relaxed)) {
      py::check(PyObject_CallMethod(coroutine.get(), "close", nullptr));
      PyErr_SetNone(PyObject_GetAttrString(py::import("asyncio").get(), "CancelledError"));
      py::throw_fetched();
    }
    py::Ref task = make_task(*call, coroutine);
    auto* pending = new Pending{this, call};
    PyObject* raw = PyCapsule_New(pending, kCallCapsule, &free_pending);
    if (raw == nullptr) {
      delete pending;
      py::throw_fetched();
    }
    py::Ref capsule = py::Ref::steal(raw);
    py::Ref done = py::check(PyCFunction_New(&kDone, capsule.get()));
    py::check(PyObject_CallMethod(task.get(), "add_done_callback", "O", done.get()));
    call->task = task.release();
  } catch (const py::Error& error) {
    --tasks_;
    hooks_.finish(*call, nullptr, error.exception());
    flush_soon();
  }
}

// Its context says for whom it works.
py::Ref AsyncLoop::make_task(Call& call, const py::Ref& coroutine) {
  struct Tracing {
    const Hooks& hooks;
    py::Ref tokens;
    ~Tracing() {
      if (tokens) hooks.leave_trace(tokens);
    }
  } tracing{hooks_, call.trace && hooks_.enter_trace ? hooks_.enter_trace(call) : py::Ref()};
  const py::Ref served = hooks_.served ? hooks_.served(call) : py::Ref();
  if (!served) return py::check(PyObject_CallOneArg(create_task_.get(), coroutine.get()));
  const py::Ref before = py::check(PyContextVar_Set(hooks_.served_variable, served.get()));
  py::Ref task = py::Ref::steal(PyObject_CallOneArg(create_task_.get(), coroutine.get()));
  if (!task) {
    const py::Error error = py::Error::fetch();
    if (PyContextVar_Reset(hooks_.served_variable, before.get()) < 0) PyErr_Clear();
    throw py::Error(error);
  }
  py::check_status(PyContextVar_Reset(hooks_.served_variable, before.get()));
  return task;
}

void AsyncLoop::task_done(Call& call, PyObject* task) {
  py::Ref own = py::Ref::steal(static_cast<PyObject*>(call.task));
  call.task = nullptr;
  if (call.served) call.served->over.store(true, std::memory_order_relaxed);
  --tasks_;
  py::Ref value = py::Ref::steal(PyObject_CallMethod(task, "result", nullptr));
  if (value) {
    hooks_.finish(call, value.get(), nullptr);
  } else {
    const py::Error error = py::Error::fetch();
    hooks_.finish(call, nullptr, error.exception());
  }
  flush_soon();
}

// Answers of one turn of the loop leave together, at its end.
void AsyncLoop::flush_soon() {
  if (std::exchange(flush_scheduled_, true)) return;
  native_->at_end_of_turn(&on_flush, py::Ref::borrow(capsule_.get()).release());
}

}  // namespace bridge
