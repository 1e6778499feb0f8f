#include "cnode/bridge/waiting.hpp"

#include <unordered_map>
#include <utility>

#include "cnode/loop/loop.hpp"
#include "cnode/py/error.hpp"

namespace bridge {
namespace {

std::mutex g_waiting_mutex;
std::unordered_map<unsigned long, std::weak_ptr<ThreadWaiter>> g_waiting;

}  // namespace

// Notified outside the lock, which the woken thread wants at once.
void ThreadWaiter::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  changed_.notify_all();
}

void ThreadWaiter::interrupt() {
  const std::lock_guard lock(mutex_);
  interrupted_ = true;
  changed_.notify_all();
}

ThreadWaiter::Woken ThreadWaiter::wait(std::optional<Clock::time_point> until) {
  std::unique_lock lock(mutex_);
  const auto done = [&] { return woken_ || interrupted_; };
  if (!until)
    changed_.wait(lock, done);
  else if (!changed_.wait_until(lock, *until, done))
    return Woken::kTimeout;
  if (std::exchange(woken_, false)) return Woken::kWoken;
  interrupted_ = false;
  return Woken::kInterrupted;
}

WaitingHere::WaitingHere(const std::shared_ptr<ThreadWaiter>& waiter)
    : thread_(PyThread_get_thread_ident()) {
  const std::lock_guard lock(g_waiting_mutex);
  g_waiting[thread_] = waiter;
}

WaitingHere::~WaitingHere() {
  const std::lock_guard lock(g_waiting_mutex);
  g_waiting.erase(thread_);
}

namespace {

loop::Loop* native(PyObject* asyncio_loop) {
  loop::Loop* found = asyncio_loop == Py_None ? nullptr : loop::loop_of(asyncio_loop);
  if (found == nullptr) PyErr_Clear();
  return found;
}

std::shared_ptr<loop::Inbox> inbox_of_running_loop() {
  static PyObject* running =
      py::attribute(py::import("asyncio").get(), "_get_running_loop").release();
  const py::Ref asyncio_loop = py::check(PyObject_CallNoArgs(running));
  loop::Loop* found = native(asyncio_loop.get());
  return found == nullptr ? nullptr : found->share_inbox();
}

}  // namespace

TaskWaiter::TaskWaiter(AsyncLoop& node_loop, PyObject* wake)
    : node_loop_(node_loop), inbox_(inbox_of_running_loop()), wake_(wake) {
  Py_INCREF(wake);
}

void TaskWaiter::wake() {
  auto work = [self = shared_from_this()] { self->call(); };
  if (inbox_)
    inbox_->post(std::move(work));  // dropped if that loop is closed: nobody waits then
  else
    node_loop_.post(std::move(work));
}

bool wakes_in(PyObject* loop) { return native(loop) != nullptr; }

void TaskWaiter::release() { Py_CLEAR(wake_); }

void TaskWaiter::call() {
  if (wake_ == nullptr) return;
  const py::Ref wake = py::Ref::borrow(wake_);
  const py::Ref ignored = py::Ref::steal(PyObject_CallNoArgs(wake.get()));
  // Its loop was closed while it waited: whoever comes next finds what it waited for.
  if (!ignored) PyErr_Clear();
}

void interrupt_waiting(unsigned long thread) {
  std::shared_ptr<ThreadWaiter> waiter;
  {
    const std::lock_guard lock(g_waiting_mutex);
    if (auto found = g_waiting.find(thread); found != g_waiting.end())
      waiter = found->second.lock();
  }
  if (waiter) waiter->interrupt();
}

void raise_pending() {
  static PyObject* pulse = nullptr;
  if (pulse == nullptr) {
    py::Ref scope = py::check(PyDict_New());
    pulse =
        py::check(PyRun_String("lambda: None", Py_eval_input, scope.get(), scope.get())).release();
  }
  py::check(PyObject_CallNoArgs(pulse));
}

std::optional<ThreadWaiter::Clock::time_point> deadline_argument(PyObject* timeout) {
  if (timeout == nullptr || timeout == Py_None) return std::nullopt;
  const double seconds = PyFloat_AsDouble(timeout);
  if (seconds == -1.0 && PyErr_Occurred() != nullptr) py::throw_fetched();
  if (!(seconds >= 0)) py::raise(PyExc_ValueError, "a timeout is 0 or more");
  if (seconds > 1e9) return std::nullopt;
  return ThreadWaiter::Clock::now() + std::chrono::duration_cast<ThreadWaiter::Clock::duration>(
                                          std::chrono::duration<double>(seconds));
}

}  // namespace bridge
