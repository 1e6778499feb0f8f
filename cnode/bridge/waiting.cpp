#include "cnode/bridge/waiting.hpp"

#include <unordered_map>
#include <utility>

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

TaskWaiter::TaskWaiter(AsyncLoop& loop, PyObject* wake) : loop_(loop), wake_(wake) {
  Py_INCREF(wake);
}

void TaskWaiter::wake() {
  loop_.post([self = shared_from_this()] { self->call(); });
}

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
