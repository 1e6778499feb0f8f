#include "cnode/loop/loop.hpp"

#include <fcntl.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <system_error>

#include "cnode/py/error.hpp"
#include "cnode/py/gil.hpp"

namespace loop {
namespace {

constexpr std::size_t kPage = 4096;

void drop(const Ready& ready) {
  if (Handle* handle = ready ? ready.handle() : nullptr)
    give_back(*handle);
  else if (ready)
    Py_DECREF(ready.object());
}

bool cancelled(const Ready& ready) {
  const Handle* handle = ready.handle();
  return handle != nullptr && handle->cancelled;
}

std::uint64_t tag_of(int fd, std::uint32_t generation) {
  return (static_cast<std::uint64_t>(generation) << 32U) | static_cast<std::uint32_t>(fd);
}

}  // namespace

Loop::Loop(State& state, PyObject* object, std::unique_ptr<Poller> poller)
    : state_(state),
      shared_(*state.shared),
      object_(object),
      poller_(std::move(poller)),
      inbox_(std::make_shared<Inbox>(*poller_)) {
  ++shared_.loops;
}

Loop::~Loop() {
  close();
  shared_.leave(shared_.loops);
}

char* Loop::buffer() {
  // At the beginning of a page: just behind one the kernel's copies take up to twice as long.
  if (!buffer_) buffer_.reset(static_cast<char*>(std::aligned_alloc(kPage, kBufferSize)));
  return buffer_.get();
}

double Loop::clock() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Loop::now() {
  if (own_clock_ == nullptr) return clock();
  PyObject* time = PyObject_CallNoArgs(own_clock_);
  const double seconds = time == nullptr ? -1 : PyFloat_AsDouble(time);
  Py_XDECREF(time);
  if (PyErr_Occurred() == nullptr) return seconds;
  PyErr_WriteUnraisable(own_clock_);
  return clock();
}

void Loop::set_clock(PyObject* clock) { Py_XSETREF(own_clock_, Py_XNewRef(clock)); }

// --- scheduling

void Loop::remember_source(Handle& handle) {
  PyFrameObject* frame = PyEval_GetFrame();
  if (frame == nullptr) return;
  handle.source_traceback =
      PyObject_CallOneArg(state_.extract_stack, reinterpret_cast<PyObject*>(frame));
  if (handle.source_traceback == nullptr) PyErr_Clear();
}

int Loop::call_soon(PyObject* callback, PyObject* const* arguments, std::size_t count,
                    PyObject* context, PyObject*& object) {
  // What the next turn runs and frees is not worth the collector's time; see run_ready() and
  // settle().
  Handle* handle = new_handle(*this, callback, arguments, count, context, thread == 0);
  if (handle == nullptr) return -1;
  if (debug_) remember_source(*handle);
  object = Py_NewRef(handle->self);
  push(*handle);
  return 0;
}

int Loop::call_at(double when, PyObject* callback, PyObject* const* arguments, std::size_t count,
                  PyObject* context, PyObject*& object) {
  Timer* timer = new_timer(*this, when, callback, arguments, count, context, thread == 0);
  if (timer == nullptr) return -1;
  if (debug_) remember_source(*timer);
  object = Py_NewRef(timer->self);
  timers_.push(*timer);
  return 0;
}

void Loop::timer_cancelled(Timer& timer) {
  if (timer.index == Timer::kNowhere) return;
  if (Timer* gone = timers_.cancelled(timer)) {
    give_back(*gone);
    return;
  }
  if (!timers_.wants_cleaning()) return;
  std::vector<Timer*> gone;  // its own: what the references take with them may cancel more
  timers_.clean(gone);
  for (Timer* each : gone) give_back(*each);
}

int Loop::call(Handle& handle) {
  if (PyContext_Enter(handle.context) < 0) return report(handle);
  handle.running = true;
  PyObject* result = PyObject_Vectorcall(handle.callback, handle.arguments,
                                         handle.count | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  handle.running = false;
  if (result != nullptr) {
    Py_DECREF(result);
    return PyContext_Exit(handle.context) < 0 ? report(handle) : 0;
  }
  py::Error error = py::Error::fetch();
  if (PyContext_Exit(handle.context) < 0) PyErr_Clear();
  std::move(error).restore();
  return report(handle);
}

int Loop::report(Handle& handle) {
  if (must_leave()) return -1;
  const py::Error error = py::Error::fetch();
  PyObject* done = PyObject_CallFunctionObjArgs(state_.report_callback, object_, handle.self,
                                                error.exception(), nullptr);
  Py_XDECREF(done);
  if (done != nullptr) return 0;
  if (must_leave()) return -1;
  PyErr_WriteUnraisable(object_);
  return 0;
}

int Loop::run_handle(Handle& handle) {
  if (handle.callback == nullptr || handle.context == nullptr) return 0;
  const int status = call(handle);
  if (handle.cancelled && handle.callback != nullptr) {  // by its own callback
    Py_CLEAR(handle.callback);
    while (handle.count > 0) Py_DECREF(handle.arguments[--handle.count]);
  }
  return status;
}

int Loop::run_in_debug(Handle& handle) {
  PyObject_SetAttrString(object_, "_current_handle", handle.self);
  const double began = clock();
  const int status = run_handle(handle);
  const double took = clock() - began;
  if (status < 0) {
    py::Error error = py::Error::fetch();
    PyObject_SetAttrString(object_, "_current_handle", Py_None);
    std::move(error).restore();
    return -1;
  }
  PyObject_SetAttrString(object_, "_current_handle", Py_None);
  if (took < slow_callback) return 0;
  PyObject* done = PyObject_CallFunction(state_.report_slow, "OOd", object_, handle.self, took);
  Py_XDECREF(done);
  if (done == nullptr) PyErr_WriteUnraisable(object_);
  return 0;
}

int Loop::run_ready(Ready ready) {
  int status = 0;
  if (Handle* handle = ready.handle()) {
    if (!handle->cancelled) status = debug_ ? run_in_debug(*handle) : run_handle(*handle);
    give_back(*handle);
    return status;
  }
  status = ready.job(*this, ready.object());
  Py_DECREF(ready.object());
  return status;
}

// --- one turn

double Loop::until_next() {
  if (stopping || !ready_.empty() || !inbox_->empty()) return 0;
  while (!timers_.empty() && timers_.top().cancelled) give_back(timers_.pop());
  if (timers_.empty()) return -1;
  return std::max(0.0, timers_.top().when - now());
}

int Loop::take_events(Poller::Events events) {
  for (const epoll_event& event : events) {
    if (event.data.u64 == Poller::kWakeTag) {
      poller_->woken();
      continue;
    }
    const auto fd = static_cast<std::uint32_t>(event.data.u64);
    if (fd >= watched_.size()) continue;
    Watched& watched = watched_[fd];
    if (tag_of(static_cast<int>(fd), watched.generation) != event.data.u64) continue;
    // Errors and hang-ups are for both sides, as in selectors.EpollSelector.
    for (const auto& [ready, mask] : {std::pair{&watched.read, ~std::uint32_t{EPOLLOUT}},
                                      std::pair{&watched.write, ~std::uint32_t{EPOLLIN}}}) {
      if (!*ready || (event.events & mask) == 0 || cancelled(*ready)) continue;
      Py_INCREF(ready->object());
      ready_.push(*ready);
    }
  }
  return 0;
}

void Loop::take_due_timers() {
  if (timers_.empty()) return;
  const double time = now();
  while (!timers_.empty() && timers_.top().when <= time) {
    Timer& timer = timers_.pop();
    push(timer);
  }
}

int Loop::take_inbox() {
  if (inbox_->empty()) return 0;
  work_.clear();
  inbox_->take(work_);
  std::vector<Inbox::Work> taken;
  taken.swap(work_);  // the work may run the loop again
  for (auto& work : taken) work();
  taken.clear();
  if (work_.empty()) work_.swap(taken);
  return 0;
}

int Loop::run_batch() {
  in_batch_ = true;
  for (std::size_t count = ready_.size(); count > 0 && !ready_.empty(); --count) {
    if (run_ready(ready_.pop()) < 0) {
      in_batch_ = false;
      return -1;
    }
  }
  in_batch_ = false;
  return 0;
}

int Loop::end_turn() {
  int status = 0;
  while (!endings_.empty() && status == 0) {
    ending_.swap(endings_);
    std::size_t done = 0;
    while (done < ending_.size() && status == 0) status = run_ready(ending_[done++]);
    for (; done < ending_.size(); ++done) endings_.push_back(ending_[done]);
    ending_.clear();
  }
  return status;
}

int Loop::turn(bool may_wait) {
  if (!poller_) {
    PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
    return -1;
  }
  ++turn_;
  // With nothing to watch there is nothing to ask for: whoever wakes the loop has put something in
  // its queues.
  // Nor is there before a wait, if such polls found nothing lately: one system call is enough then.
  const bool idle = may_wait && ready_.empty();
  // A program that turns the loop itself waits for its descriptor, which only a poll makes quiet.
  if (idle ? fruitless_polls_ < kFruitless : watched_count_ > 0 || !may_wait) {
    take_events(poller_->poll());
    fruitless_polls_ = idle && ready_.empty() ? fruitless_polls_ + 1 : 0;
  }
  if (may_wait && ready_.empty()) {
    inbox_->park();  // first: whoever comes after until_next() has looked wakes the loop
    const double seconds = until_next();
    if (seconds != 0) {
      std::optional<Poller::Nanoseconds> limit;
      if (seconds > 0 && seconds < kForever)
        limit = Poller::Nanoseconds(static_cast<std::int64_t>(std::ceil(seconds * 1e9)));
      Poller::Events events;
      bool interrupted = false;
      {
        const py::GilRelease released;
        events = poller_->wait(limit, interrupted);
      }
      inbox_->unpark();
      if (interrupted && PyErr_CheckSignals() < 0) return -1;
      if (events.size() > 1) fruitless_polls_ = 0;  // many at once: the next may be there already
      take_events(events);
    } else {
      inbox_->unpark();
      if (fruitless_polls_ >= kFruitless) take_events(poller_->poll());
    }
  }
  take_due_timers();
  if (take_inbox() < 0) return -1;
  const int status = run_batch();
  if (status == 0) return end_turn();
  // What leaves the loop must not leave data behind that was written before.
  py::Error error = py::Error::fetch();
  if (end_turn() < 0) PyErr_Clear();
  std::move(error).restore();
  return status;
}

int Loop::run() {
  do {
    if (turn(true) < 0) return -1;
    if (PyErr_CheckSignals() < 0) return -1;
  } while (!stopping);
  return 0;
}

void Loop::settle() {
  inbox_->park();
  const auto show = [](PyObject* object) {
    if (Py_REFCNT(object) > 1 && PyObject_GC_IsTracked(object) == 0) PyObject_GC_Track(object);
  };
  for (std::size_t i = 0; i < ready_.size(); ++i) show(ready_.at(i).object());
  for (std::size_t i = 0; i < timers_.size(); ++i) show(timers_.at(i).self);
}

// --- descriptors

void Loop::set_registered(Watched& watched, bool registered) {
  if (std::exchange(watched.registered, registered) == registered) return;
  if (registered)
    ++watched_count_;
  else
    --watched_count_;
}

int Loop::update(int fd, Watched& watched) {
  if (!poller_) return EBADF;
  std::uint32_t wanted =
      (watched.read ? std::uint32_t{EPOLLIN} : 0U) | (watched.write ? std::uint32_t{EPOLLOUT} : 0U);
  const bool level = (watched.read && watched.read_trigger == Trigger::kLevel) ||
                     (watched.write && watched.write_trigger == Trigger::kLevel);
  if (wanted != 0 && !level) wanted |= EPOLLET;
  if (wanted == watched.events) return 0;
  int error = 0;
  if (wanted == 0) {
    poller_->remove(fd);
    ++watched.generation;  // events that are on their way already are for nobody
  } else if (watched.events == 0) {
    error = poller_->add(fd, wanted, tag_of(fd, watched.generation));
  } else {
    error = poller_->change(fd, wanted, tag_of(fd, watched.generation));
  }
  if (error == 0) {
    watched.events = wanted;
    set_registered(watched, wanted != 0);
  }
  return error;
}

int Loop::watch(int fd, Side side, Ready ready, Ready& before, Trigger trigger) {
  before = {};
  int error = EBADF;
  if (make_room(fd)) {
    Watched& watched = watched_[fd];
    Ready& place = side == Side::kRead ? watched.read : watched.write;
    Trigger& how = side == Side::kRead ? watched.read_trigger : watched.write_trigger;
    const Trigger how_before = std::exchange(how, trigger);
    const std::uint32_t events_before = watched.events;
    before = place;
    place = ready;
    // The descriptor may have been closed and opened again behind our back: the set has forgotten
    // it then.
    if (before) watched.events &= ~(side == Side::kRead ? EPOLLIN : EPOLLOUT);
    if ((watched.events & (EPOLLIN | EPOLLOUT)) == 0) watched.events = 0;
    error = update(fd, watched);
    if (error == 0) return 0;
    place = before;
    how = how_before;
    before = {};
    watched.events = events_before;
  }
  drop(ready);
  errno = error;
  PyErr_SetFromErrno(PyExc_OSError);
  return -1;
}

bool Loop::unwatch(int fd, Side side, Ready& before) {
  before = {};
  if (fd < 0 || static_cast<std::size_t>(fd) >= watched_.size()) return false;
  Watched& watched = watched_[fd];
  Ready& place = side == Side::kRead ? watched.read : watched.write;
  if (!place) return false;
  before = std::exchange(place, {});
  if (update(fd, watched) != 0) {  // closed already: nothing is registered
    watched.events = 0;
    set_registered(watched, false);
    ++watched.generation;
  }
  return true;
}

Ready Loop::watcher(int fd, Side side) const {
  if (fd < 0 || static_cast<std::size_t>(fd) >= watched_.size()) return {};
  return side == Side::kRead ? watched_[fd].read : watched_[fd].write;
}

bool Loop::edge_triggered(int fd) const {
  return fd >= 0 && static_cast<std::size_t>(fd) < watched_.size() &&
         (watched_[static_cast<std::size_t>(fd)].events & EPOLLET) != 0;
}

// Only for descriptors there are: a number out of the air is not worth a table of that size.
bool Loop::make_room(int fd) {
  if (fd < 0) return false;
  const auto number = static_cast<std::size_t>(fd);
  if (number < watched_.size()) return true;
  if (fcntl(fd, F_GETFD) < 0) return false;
  watched_.resize(2 * number + 16);
  return true;
}

void Loop::own(int fd, PyObject* transport) {
  if (!make_room(fd)) return;
  watched_[static_cast<std::size_t>(fd)].owner = transport;
}

void Loop::disown(int fd, PyObject* transport) {
  if (owner(fd) == transport && transport != nullptr)
    watched_[static_cast<std::size_t>(fd)].owner = nullptr;
}

PyObject* Loop::owner(int fd) const {
  if (fd < 0 || static_cast<std::size_t>(fd) >= watched_.size()) return nullptr;
  return watched_[static_cast<std::size_t>(fd)].owner;
}

// --- the end

void Loop::close() {
  inbox_->close();
  clear();
  poller_.reset();
  closed = true;
}

void Loop::clear() {
  Py_CLEAR(own_clock_);
  while (!ready_.empty()) drop(ready_.pop());
  while (!timers_.empty()) {
    give_back(timers_.pop());
  }
  for (std::vector<Ready>* list : {&endings_, &ending_}) {
    std::vector<Ready> gone;
    gone.swap(*list);
    for (const Ready& each : gone) drop(each);
  }
  for (std::size_t fd = 0; fd < watched_.size(); ++fd) {
    Ready before;
    if (unwatch(static_cast<int>(fd), Side::kRead, before)) drop(before);
    if (unwatch(static_cast<int>(fd), Side::kWrite, before)) drop(before);
  }
}

int Loop::traverse(visitproc visit, void* arg) {
  Py_VISIT(own_clock_);
  for (std::size_t i = 0; i < ready_.size(); ++i) {
    Handle* handle = ready_.at(i).handle();
    if (handle == nullptr)
      Py_VISIT(ready_.at(i).object());
    else if (const int status = visit_pending(*handle, visit, arg))
      return status;
  }
  for (std::size_t i = 0; i < timers_.size(); ++i)
    if (const int status = visit_pending(timers_.at(i), visit, arg)) return status;
  for (const std::vector<Ready>* list : {&endings_, &ending_})
    for (const Ready& each : *list)
      if (each) Py_VISIT(each.object());
  for (const Watched& watched : watched_) {
    if (watched.read) Py_VISIT(watched.read.object());
    if (watched.write) Py_VISIT(watched.write.object());
  }
  return 0;
}

}  // namespace loop
