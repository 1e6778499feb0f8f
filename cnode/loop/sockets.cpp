#include "cnode/loop/sockets.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "cnode/loop/address.hpp"
#include "cnode/py/error.hpp"

namespace loop {
namespace {

using Budget = SocketBudgets::Budget;

constexpr Py_ssize_t kLarge = 64 * 1024;  // from here on a copy costs more than a bytes of its own
constexpr std::uint32_t kUnclaimed = 8;   // events in a row that nobody waited for

enum class Op : std::uint8_t {
  kNone,
  kRecv,
  kRecvInto,
  kRecvFrom,
  kRecvFromInto,
  kAccept,
  kSendAll,
  kSendTo,
  kConnect
};

enum class Outcome : std::uint8_t { kDone, kAgain, kError };

// What one call asks for. Borrowed references while it is tried, owned ones while it waits.
struct Request {
  Op op = Op::kNone;
  PyObject* sock = nullptr;
  PyObject* object = nullptr;   // a buffer, or data
  PyObject* address = nullptr;  // to send or to connect to
  Py_ssize_t size = 0;          // to receive, or sent already
  Py_buffer data{};             // of sendall, held from the first try to the last
};

struct Wait {
  Request request;
  PyObject* future = nullptr;
};

struct SocketWatch {
  PyObject_HEAD int fd;
  std::uint32_t unclaimed;
  PyObject* sock;  // a weak reference: a watch does not keep a socket open
  Wait read, write;

  Wait& side(Side which) { return which == Side::kRead ? read : write; }
};

int read_ready(Loop& loop, PyObject* self);
int write_ready(Loop& loop, PyObject* self);
Job job_of(Side side) { return side == Side::kRead ? read_ready : write_ready; }

void drop(const Ready& ready) {
  if (Handle* handle = ready.handle()) cancel_handle(*handle);
  Py_DECREF(ready.object());
}

// --- one try

// Whether a call may be repeated: what asyncio passes over.
Outcome failed() {
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINPROGRESS || errno == EALREADY)
    return Outcome::kAgain;
  if (errno == EINTR) return PyErr_CheckSignals() < 0 ? Outcome::kError : Outcome::kAgain;
  PyErr_SetFromErrno(PyExc_OSError);
  return Outcome::kError;
}

Outcome outcome_of(PyObject* object, PyObject*& result) {
  result = object;
  return object == nullptr ? Outcome::kError : Outcome::kDone;
}

// What a method of the socket object came to: it takes what is rare, and tells of wrong arguments.
Outcome by_python(PyObject* returned, PyObject*& result) {
  if (returned == nullptr && (PyErr_ExceptionMatches(PyExc_BlockingIOError) != 0 ||
                              PyErr_ExceptionMatches(PyExc_InterruptedError) != 0)) {
    PyErr_Clear();
    return Outcome::kAgain;
  }
  return outcome_of(returned, result);
}

// A number of the socket object, which the class keeps from its fileno on: family, type, proto.
int number_of(PyObject* descriptor, PyObject* sock) {
  PyObject* number =
      Py_TYPE(descriptor)
          ->tp_descr_get(descriptor, sock, reinterpret_cast<PyObject*>(Py_TYPE(sock)));
  if (number == nullptr) return -1;
  const long value = PyLong_AsLong(number);
  Py_DECREF(number);
  return static_cast<int>(value);
}

bool known_family(int family) {
  return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

int descriptor_of(const State& state, PyObject* sock) {
  PyObject* number = PyObject_CallMethodNoArgs(sock, state.names.fileno);
  if (number == nullptr) return -1;
  const long value = PyLong_AsLong(number);
  Py_DECREF(number);
  return static_cast<int>(value);
}

// glibc gives the end of its heap back to the kernel whenever 128 KB of it are free, to take it
// again, page by page, for the next large bytes: a third of what receiving 100 KB costs. It does so
// no more once it has seen a larger block come and go.
void keep_freed_memory() {
  static std::atomic_flag done;
  if (done.test_and_set()) return;
  constexpr std::size_t kSeen = 2 * 1024 * 1024;
  void* volatile block = std::malloc(kSeen);
  std::free(block);
}

// The room for `size` bytes of one receive: the loop's buffer, or a bytes of its own where a copy
// would cost more.
class Room {
 public:
  Room(Loop& loop, Budget& budget, Py_ssize_t size) : budget_(budget), size_(size) {
    const bool own =
        static_cast<std::size_t>(size) > Loop::kBufferSize || (budget.much && size >= kLarge);
    if (own) {
      keep_freed_memory();
      bytes_ = PyBytes_FromStringAndSize(nullptr, size);
    } else {
      shared_ = loop.buffer();
    }
  }
  ~Room() { Py_XDECREF(bytes_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  bool ok() const { return bytes_ != nullptr || shared_ != nullptr; }
  char* data() const { return bytes_ == nullptr ? shared_ : PyBytes_AS_STRING(bytes_); }
  std::size_t size() const { return static_cast<std::size_t>(size_); }

  PyObject* take(ssize_t count) {
    budget_.much = count >= kLarge;
    if (bytes_ == nullptr) return PyBytes_FromStringAndSize(shared_, count);
    if (count != size_ && _PyBytes_Resize(&bytes_, count) < 0) return nullptr;
    return std::exchange(bytes_, nullptr);
  }

 private:
  Budget& budget_;
  Py_ssize_t size_;
  PyObject* bytes_ = nullptr;
  char* shared_ = nullptr;
};

Outcome bad_descriptor() {
  errno = EBADF;
  return failed();
}

Outcome receive(Loop& loop, int fd, Request& request, PyObject*& result) {
  if (request.size == 0) return outcome_of(PyBytes_FromStringAndSize(nullptr, 0), result);
  if (fd < 0) return bad_descriptor();
  Room room(loop, loop.budgets().of(fd, loop.turn_number()), request.size);
  if (!room.ok()) return Outcome::kError;
  const ssize_t count = recv(fd, room.data(), room.size(), MSG_DONTWAIT);
  return count < 0 ? failed() : outcome_of(room.take(count), result);
}

Outcome receive_from(Loop& loop, int fd, Request& request, PyObject*& result) {
  State& state = loop.state();
  if (fd < 0) return bad_descriptor();
  if (!known_family(number_of(state.socket_family, request.sock))) {
    PyErr_Clear();
    return by_python(PyObject_CallMethod(request.sock, "recvfrom", "n", request.size), result);
  }
  Room room(loop, loop.budgets().of(fd, loop.turn_number()), request.size);
  if (!room.ok()) return Outcome::kError;
  sockaddr_storage address;
  socklen_t size = sizeof address;
  auto* peer = reinterpret_cast<sockaddr*>(&address);
  const ssize_t count = recvfrom(fd, room.data(), room.size(), MSG_DONTWAIT, peer, &size);
  if (count < 0) return failed();
  PyObject* data = room.take(count);
  PyObject* from = data == nullptr ? nullptr : address_object(peer, size);
  PyObject* pair = from == nullptr ? nullptr : PyTuple_Pack(2, data, from);
  Py_XDECREF(data);
  Py_XDECREF(from);
  return outcome_of(pair, result);
}

Outcome receive_into(Loop& loop, int fd, Request& request, PyObject*& result) {
  Py_buffer room;
  if (PyObject_GetBuffer(request.object, &room, PyBUF_WRITABLE) < 0) {
    PyErr_Clear();
    return by_python(
        PyObject_CallMethodOneArg(request.sock, loop.state().names.recv_into, request.object),
        result);
  }
  const ssize_t count =
      room.len == 0 ? 0 : recv(fd, room.buf, static_cast<std::size_t>(room.len), MSG_DONTWAIT);
  const int error = errno;
  PyBuffer_Release(&room);
  errno = error;
  return count < 0 ? failed() : outcome_of(PyLong_FromSsize_t(count), result);
}

Outcome receive_from_into(Loop& loop, int fd, Request& request, PyObject*& result) {
  State& state = loop.state();
  const bool known = known_family(number_of(state.socket_family, request.sock));
  Py_buffer room;
  if (!known || request.size <= 0 ||
      PyObject_GetBuffer(request.object, &room, PyBUF_WRITABLE) < 0) {
    PyErr_Clear();
    return by_python(
        PyObject_CallMethod(request.sock, "recvfrom_into", "On", request.object, request.size),
        result);
  }
  if (request.size > room.len) {
    PyBuffer_Release(&room);
    PyErr_SetString(PyExc_ValueError, "nbytes is greater than the length of the buffer");
    return Outcome::kError;
  }
  sockaddr_storage address;
  socklen_t size = sizeof address;
  auto* peer = reinterpret_cast<sockaddr*>(&address);
  const ssize_t count =
      recvfrom(fd, room.buf, static_cast<std::size_t>(request.size), MSG_DONTWAIT, peer, &size);
  const int error = errno;
  PyBuffer_Release(&room);
  errno = error;
  if (count < 0) return failed();
  PyObject* from = address_object(peer, size);
  if (from == nullptr) return Outcome::kError;
  return outcome_of(Py_BuildValue("(nN)", static_cast<Py_ssize_t>(count), from), result);
}

Outcome send_all(int fd, Request& request, PyObject*& result) {
  const auto* from = static_cast<const char*>(request.data.buf) + request.size;
  const auto left = static_cast<std::size_t>(request.data.len - request.size);
  const ssize_t count = send(fd, from, left, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (count < 0) return failed();
  request.size += count;
  if (request.size < request.data.len) return Outcome::kAgain;
  return outcome_of(Py_NewRef(Py_None), result);
}

Outcome send_to(Loop& loop, int fd, Request& request, PyObject*& result) {
  State& state = loop.state();
  sockaddr_storage address;
  socklen_t size = 0;
  const int family = number_of(state.socket_family, request.sock);
  if (family == -1) PyErr_Clear();
  Py_buffer data;
  if (!parse_address(family, request.address, address, size) ||
      PyObject_GetBuffer(request.object, &data, PyBUF_SIMPLE) < 0) {
    PyErr_Clear();
    return by_python(PyObject_CallMethodObjArgs(request.sock, state.names.sendto, request.object,
                                                request.address, nullptr),
                     result);
  }
  if (PySys_Audit("socket.sendto", "OO", request.sock, request.address) < 0) {
    PyBuffer_Release(&data);
    return Outcome::kError;
  }
  const ssize_t count =
      sendto(fd, data.buf, static_cast<std::size_t>(data.len), MSG_DONTWAIT | MSG_NOSIGNAL,
             reinterpret_cast<const sockaddr*>(&address), size);
  const int error = errno;
  PyBuffer_Release(&data);
  errno = error;
  return count < 0 ? failed() : outcome_of(PyLong_FromSsize_t(count), result);
}

// 1 if the socket has a time-out of 0, so that its calls never block; -1 with an exception set.
int never_blocks(const State& state, PyObject* sock) {
  PyObject* timeout = PyObject_CallMethodNoArgs(sock, state.names.gettimeout);
  if (timeout == nullptr) return -1;
  const int never = PyFloat_CheckExact(timeout) && PyFloat_AS_DOUBLE(timeout) == 0 ? 1 : 0;
  Py_DECREF(timeout);
  return never;
}

Outcome accept_by_python(PyObject* sock, PyObject*& result) {
  PyObject* pair = PyObject_CallMethod(sock, "accept", nullptr);
  if (pair == nullptr || !PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2)
    return by_python(pair, result);
  PyObject* done = PyObject_CallMethod(PyTuple_GET_ITEM(pair, 0), "setblocking", "O", Py_False);
  if (done == nullptr) Py_CLEAR(pair);
  Py_XDECREF(done);
  return outcome_of(pair, result);
}

Outcome accept_one(Loop& loop, int fd, Request& request, PyObject*& result) {
  State& state = loop.state();
  const int family = number_of(state.socket_family, request.sock);
  const int direct = known_family(family) ? never_blocks(state, request.sock) : 0;
  if (direct < 0) return Outcome::kError;
  if (direct == 0) return accept_by_python(request.sock, result);
  sockaddr_storage address;
  socklen_t size = sizeof address;
  auto* peer = reinterpret_cast<sockaddr*>(&address);
  const int accepted = accept4(fd, peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (accepted < 0) return failed();
  PyObject* made = PyObject_CallFunction(state.socket_class, "iiii", family,
                                         number_of(state.socket_kind, request.sock) | SOCK_NONBLOCK,
                                         number_of(state.socket_proto, request.sock), accepted);
  if (made == nullptr) {
    const py::Error error = py::Error::fetch();
    close(accepted);
    py::Error(error).restore();
    return Outcome::kError;
  }
  PyObject* from = address_object(peer, size);
  PyObject* pair = from == nullptr ? nullptr : PyTuple_Pack(2, made, from);
  Py_DECREF(made);
  Py_XDECREF(from);
  return outcome_of(pair, result);
}

// The first try of a connect. Names must be resolved.
Outcome begin_connect(Loop& loop, int fd, Request& request, PyObject*& result) {
  State& state = loop.state();
  sockaddr_storage address;
  socklen_t size = 0;
  const int family = number_of(state.socket_family, request.sock);
  int direct = 0;
  if (parse_address(family, request.address, address, size))
    direct = never_blocks(state, request.sock);
  if (direct < 0) return Outcome::kError;
  if (direct == 0)
    return by_python(PyObject_CallMethodOneArg(request.sock, state.names.connect, request.address),
                     result);
  if (PySys_Audit("socket.connect", "OO", request.sock, request.address) < 0)
    return Outcome::kError;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), size) < 0) {
    // Interrupted, it goes on in the background.
    if (errno == EINTR && PyErr_CheckSignals() == 0) return Outcome::kAgain;
    return failed();
  }
  return outcome_of(Py_NewRef(Py_None), result);
}

Outcome end_connect(int fd, Request& request, PyObject*& result) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) return failed();
  if (error == 0) return outcome_of(Py_NewRef(Py_None), result);
  PyObject* text = PyUnicode_FromFormat("Connect call failed %S", request.address);
  PyObject* exception =
      text == nullptr ? nullptr : PyObject_CallFunction(PyExc_OSError, "iN", error, text);
  if (exception == nullptr) return Outcome::kError;
  const bool again = PyErr_GivenExceptionMatches(exception, PyExc_BlockingIOError) != 0;
  if (!again) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception)), exception);
  Py_DECREF(exception);
  return again ? Outcome::kAgain : Outcome::kError;
}

Outcome attempt(Loop& loop, int fd, Request& request, PyObject*& result) {
  switch (request.op) {
    case Op::kRecv:
      return receive(loop, fd, request, result);
    case Op::kRecvInto:
      return receive_into(loop, fd, request, result);
    case Op::kRecvFrom:
      return receive_from(loop, fd, request, result);
    case Op::kRecvFromInto:
      return receive_from_into(loop, fd, request, result);
    case Op::kAccept:
      return accept_one(loop, fd, request, result);
    case Op::kSendAll:
      return send_all(fd, request, result);
    case Op::kSendTo:
      return send_to(loop, fd, request, result);
    case Op::kConnect:
      return end_connect(fd, request, result);
    case Op::kNone:
      break;
  }
  PyErr_SetString(PyExc_SystemError, "nothing to do for a socket");
  return Outcome::kError;
}

// --- waiting

void clear_wait(Wait& wait) {
  Wait gone = std::exchange(wait, {});
  if (gone.request.data.obj != nullptr) PyBuffer_Release(&gone.request.data);
  Py_XDECREF(gone.future);
  Py_XDECREF(gone.request.sock);
  Py_XDECREF(gone.request.object);
  Py_XDECREF(gone.request.address);
}

bool watches(const Ready& watcher) {
  return watcher.job == read_ready || watcher.job == write_ready;
}

SocketWatch* watch_of(const Ready& watcher) {
  return watches(watcher) ? static_cast<SocketWatch*>(watcher.what) : nullptr;
}

// Whether the watch is for this very socket: its descriptor may be another's by now.
bool is_of(const SocketWatch& watch, PyObject* sock) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* target = nullptr;
  if (PyWeakref_GetRef(watch.sock, &target) < 0) PyErr_Clear();
  const bool same = target == sock;
  Py_XDECREF(target);
  return same;
#else
  return PyWeakref_GetObject(watch.sock) == sock;
#endif
}

PyObject* as_object(SocketWatch* watch) { return reinterpret_cast<PyObject*>(watch); }

// The watch that `sock` has already, without a reference.
SocketWatch* find_watch(Loop& loop, int fd, PyObject* sock) {
  for (const Side side : {Side::kRead, Side::kWrite}) {
    SocketWatch* watch = watch_of(loop.watcher(fd, side));
    if (watch != nullptr && is_of(*watch, sock)) return watch;
  }
  return nullptr;
}

SocketWatch* new_watch(State& state, int fd, PyObject* sock) {
  PyObject* weak = PyWeakref_NewRef(sock, nullptr);
  if (weak == nullptr) return nullptr;
  auto* watch = PyObject_GC_New(SocketWatch, state.socket_watch_type);
  if (watch == nullptr) {
    Py_DECREF(weak);
    return nullptr;
  }
  watch->fd = fd;
  watch->unclaimed = 0;
  watch->sock = weak;
  watch->read = {};
  watch->write = {};
  PyObject_GC_Track(as_object(watch));
  return watch;
}

void stop(Loop& loop, const SocketWatch& watch, Side side) {
  if (loop.watcher(watch.fd, side).what != &watch) return;
  Ready before;
  if (loop.unwatch(watch.fd, side, before)) drop(before);
}

// Watches one side. What watched it before loses it, as in asyncio.
int start(Loop& loop, SocketWatch& watch, Side side) {
  Ready before;
  const Ready mine{Py_NewRef(as_object(&watch)), job_of(side)};
  if (loop.watch(watch.fd, side, mine, before, Trigger::kEdge) < 0) return -1;
  if (!before) return 0;
  // The other side of a watch whose socket is gone would see this one's events.
  const Side other = side == Side::kRead ? Side::kWrite : Side::kRead;
  if (SocketWatch* stale = watch_of(before); stale != nullptr && stale != &watch)
    stop(loop, *stale, other);
  drop(before);
  return 0;
}

bool may_wait(Loop& loop, int fd) {
  if (loop.closed) {
    PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
    return false;
  }
  if (loop.owner(fd) == nullptr) return true;
  PyObject* done = PyObject_CallMethod(loop.object(), "_ensure_fd_no_transport", "i", fd);
  Py_XDECREF(done);
  return done != nullptr;
}

void keep(Request& request, const Request& asked) {
  request = asked;
  Py_INCREF(request.sock);
  Py_XINCREF(request.object);
  Py_XINCREF(request.address);
}

// A future that is done when `request` is. Takes over the request's data.
PyObject* wait_for(Loop& loop, int fd, Side side, Request& request) {
  if (!may_wait(loop, fd)) return nullptr;
  PyObject* future = PyObject_CallMethodNoArgs(loop.object(), loop.state().names.create_future);
  if (future == nullptr) return nullptr;
  SocketWatch* watch = find_watch(loop, fd, request.sock);
  PyObject* made = nullptr;
  if (watch == nullptr) {
    watch = new_watch(loop.state(), fd, request.sock);
    made = as_object(watch);
  }
  if (watch == nullptr || (loop.watcher(fd, side).what != watch && start(loop, *watch, side) < 0)) {
    Py_XDECREF(made);
    Py_DECREF(future);
    return nullptr;
  }
  Wait& wait = watch->side(side);
  clear_wait(wait);
  keep(wait.request, request);
  request.data = {};
  wait.future = Py_NewRef(future);
  watch->unclaimed = 0;
  Py_XDECREF(made);
  return future;
}

// Nobody waits for what was reported.
int unclaimed(Loop& loop, SocketWatch& watch, Side side) {
  if (!loop.edge_triggered(watch.fd) || (side == Side::kRead && ++watch.unclaimed > kUnclaimed))
    stop(loop, watch, side);
  return 0;
}

bool is_done(const State& state, PyObject* future) {
  PyObject* done = PyObject_CallMethodNoArgs(future, state.names.done);
  const bool yes = done != Py_False;
  if (done == nullptr) PyErr_Clear();
  Py_XDECREF(done);
  return yes;
}

int finish(Loop& loop, PyObject* future, PyObject* method, PyObject* value) {
  PyObject* done = PyObject_CallMethodOneArg(future, method, value);
  Py_XDECREF(done);
  if (done != nullptr) return 0;
  if (must_leave()) return -1;
  PyErr_WriteUnraisable(loop.object());
  return 0;
}

// The wait goes on, unless a later call has taken its place.
void wait_on(Wait& place, Wait& active) {
  if (place.future == nullptr)
    std::swap(place, active);
  else
    clear_wait(active);
}

int ready(Loop& loop, PyObject* self, Side side) {
  auto& watch = *reinterpret_cast<SocketWatch*>(self);
  State& state = loop.state();
  // Out of its place: what Python runs meanwhile may come back here.
  Wait active = std::exchange(watch.side(side), {});
  if (active.future == nullptr) return unclaimed(loop, watch, side);
  if (is_done(state, active.future)) {  // cancelled, and its coroutine has not seen it yet
    clear_wait(active);
    return unclaimed(loop, watch, side);
  }
  const int fd = descriptor_of(state, active.request.sock);  // -1 if it was closed meanwhile
  PyObject* result = nullptr;
  const Outcome outcome = attempt(loop, fd, active.request, result);
  const bool leave = outcome == Outcome::kError && must_leave();
  if (outcome == Outcome::kAgain || leave) {
    wait_on(watch.side(side), active);
    return leave ? -1 : 0;
  }
  int status = 0;
  if (outcome == Outcome::kDone) {
    status = finish(loop, active.future, state.names.set_result, result);
    Py_DECREF(result);
  } else {
    const py::Error error = py::Error::fetch();
    status = finish(loop, active.future, state.names.set_exception, error.exception());
  }
  clear_wait(active);
  // It would be told of the same again.
  if (!loop.edge_triggered(watch.fd) && watch.side(side).future == nullptr) stop(loop, watch, side);
  return status;
}

int read_ready(Loop& loop, PyObject* self) { return ready(loop, self, Side::kRead); }
int write_ready(Loop& loop, PyObject* self) { return ready(loop, self, Side::kWrite); }

// --- what Python calls
//
// Each returns what the operation came to; a future if it has to wait; NotImplemented for what is
// not a plain socket object, which is asyncio's own code's.

Loop& of(PyObject* self) { return *reinterpret_cast<LoopObject*>(self)->loop; }

bool plain(const State& state, PyObject* sock) {
  return reinterpret_cast<PyObject*>(Py_TYPE(sock)) == state.socket_class;
}

// Whether the call is ours and allowed; `answer` is Python's if not.
bool admitted(Loop& loop, PyObject* sock, Py_ssize_t count, Py_ssize_t wanted, PyObject*& answer) {
  answer = nullptr;
  if (count != wanted) {
    PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
    return false;
  }
  if (!plain(loop.state(), sock)) {
    answer = Py_NewRef(Py_NotImplemented);
    return false;
  }
  if (!loop.debug()) return true;
  const int never = never_blocks(loop.state(), sock);
  if (never == 0) PyErr_SetString(PyExc_ValueError, "the socket must be non-blocking");
  return never == 1;
}

std::size_t size_of(PyObject* result) {
  return PyBytes_CheckExact(result) ? static_cast<std::size_t>(PyBytes_GET_SIZE(result)) : 0;
}

PyObject* run(Loop& loop, Side side, Request& request, std::size_t bytes = 0) {
  const int fd = descriptor_of(loop.state(), request.sock);
  if (fd < 0 && PyErr_Occurred() != nullptr) return nullptr;
  const std::uint64_t turn = loop.turn_number();
  if (fd >= 0 && SocketBudgets::exhausted(loop.budgets().of(fd, turn)) &&
      loop.owner(fd) == nullptr) {
    PyObject* future = wait_for(loop, fd, side, request);
    if (future == nullptr) return nullptr;
    loop.push(job_of(side), Py_NewRef(loop.watcher(fd, side).object()));
    return future;
  }
  PyObject* result = nullptr;
  switch (attempt(loop, fd, request, result)) {
    case Outcome::kDone:
      if (fd >= 0)
        SocketBudgets::spend(loop.budgets().of(fd, turn), bytes == 0 ? size_of(result) : bytes);
      return result;
    case Outcome::kAgain:
      return wait_for(loop, fd, side, request);
    case Outcome::kError:
      break;
  }
  return nullptr;
}

// The size to receive, or a negative one with an exception set.
Py_ssize_t size_argument(PyObject* object, const char* method) {
  PyObject* index = PyNumber_Index(object);
  if (index == nullptr) return -1;
  const Py_ssize_t size = PyLong_AsSsize_t(index);
  Py_DECREF(index);
  if (size < 0 && PyErr_Occurred() == nullptr)
    PyErr_Format(PyExc_ValueError, "negative buffersize in %s", method);
  return size;
}

PyObject* receive_some(PyObject* self, PyObject* const* arguments, Py_ssize_t count, Op op,
                       const char* method) {
  Loop& loop = of(self);
  PyObject* answer = nullptr;
  if (!admitted(loop, arguments[0], count, 2, answer)) return answer;
  Request request{.op = op, .sock = arguments[0]};
  request.size = size_argument(arguments[1], method);
  return request.size < 0 ? nullptr : run(loop, Side::kRead, request);
}

PyObject* recv_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return receive_some(self, arguments, count, Op::kRecv, "recv");
}

PyObject* recvfrom_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return receive_some(self, arguments, count, Op::kRecvFrom, "recvfrom");
}

PyObject* recv_into_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  Loop& loop = of(self);
  PyObject* answer = nullptr;
  if (!admitted(loop, arguments[0], count, 2, answer)) return answer;
  Request request{.op = Op::kRecvInto, .sock = arguments[0], .object = arguments[1]};
  return run(loop, Side::kRead, request);
}

PyObject* recvfrom_into_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  Loop& loop = of(self);
  PyObject* answer = nullptr;
  if (!admitted(loop, arguments[0], count, 3, answer)) return answer;
  Request request{.op = Op::kRecvFromInto, .sock = arguments[0], .object = arguments[1]};
  request.size = PyNumber_AsSsize_t(arguments[2], PyExc_OverflowError);
  if (request.size == -1 && PyErr_Occurred() != nullptr) return nullptr;
  if (request.size == 0) {
    request.size = PyObject_Size(arguments[1]);
    if (request.size < 0) return nullptr;
  }
  return run(loop, Side::kRead, request);
}

PyObject* accept_now(PyObject* self, PyObject* sock) {
  Loop& loop = of(self);
  PyObject* answer = nullptr;
  if (!admitted(loop, sock, 1, 1, answer)) return answer;
  Request request{.op = Op::kAccept, .sock = sock};
  return run(loop, Side::kRead, request);
}

PyObject* sendall_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  Loop& loop = of(self);
  PyObject* answer = nullptr;
  if (!admitted(loop, arguments[0], count, 2, answer)) return answer;
  Request request{.op = Op::kSendAll, .sock = arguments[0]};
  if (PyObject_GetBuffer(arguments[1], &request.data, PyBUF_SIMPLE) < 0) return nullptr;
  PyObject* result = run(loop, Side::kWrite, request, static_cast<std::size_t>(request.data.len));
  if (request.data.obj != nullptr) PyBuffer_Release(&request.data);
  return result;
}

PyObject* sendto_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  Loop& loop = of(self);
  PyObject* answer = nullptr;
  if (!admitted(loop, arguments[0], count, 3, answer)) return answer;
  Request request{
      .op = Op::kSendTo, .sock = arguments[0], .object = arguments[1], .address = arguments[2]};
  return run(loop, Side::kWrite, request);
}

// An address with a name in it is asyncio's own code's as well.
PyObject* connect_now(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  Loop& loop = of(self);
  State& state = loop.state();
  PyObject* answer = nullptr;
  if (!admitted(loop, arguments[0], count, 2, answer)) return answer;
  Request request{.op = Op::kConnect, .sock = arguments[0], .address = arguments[1]};
  const int family = number_of(state.socket_family, request.sock);
  sockaddr_storage address;
  socklen_t size = 0;
  PyObject* whole = nullptr;
  if (family == AF_INET || family == AF_INET6) {
    if (!parse_address(family, request.address, address, size)) Py_RETURN_NOTIMPLEMENTED;
    // As asyncio resolves it, for the message.
    whole = address_object(reinterpret_cast<const sockaddr*>(&address), size);
    if (whole == nullptr) return nullptr;
    request.address = whole;
  }
  const int fd = descriptor_of(state, request.sock);
  PyObject* result = nullptr;
  const Outcome outcome = begin_connect(loop, fd, request, result);
  if (outcome == Outcome::kAgain) result = wait_for(loop, fd, Side::kWrite, request);
  Py_XDECREF(whole);
  return result;
}

bool stop_waiting(Loop& loop, int fd, PyObject* future) {
  for (const Side side : {Side::kRead, Side::kWrite}) {
    SocketWatch* watch = watch_of(loop.watcher(fd, side));
    if (watch == nullptr || watch->side(side).future != future) continue;
    Py_INCREF(as_object(watch));
    clear_wait(watch->side(side));
    stop(loop, *watch, side);
    Py_DECREF(as_object(watch));
    return true;
  }
  return false;
}

// _stop_waiting(sock, future): the coroutine that waited for it does no more.
PyObject* forget(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  Loop& loop = of(self);
  if (count != 2 || !plain(loop.state(), arguments[0])) Py_RETURN_NONE;
  const int fd = descriptor_of(loop.state(), arguments[0]);
  if (fd == -1 && PyErr_Occurred() != nullptr) return nullptr;
  if (fd >= 0) {
    stop_waiting(loop, fd, arguments[1]);
  } else {  // closed meanwhile: it does not know its descriptor any more
    for (int each = 0; each < loop.descriptors(); ++each)
      if (stop_waiting(loop, each, arguments[1])) break;
  }
  Py_RETURN_NONE;
}

template <typename Function>
PyCFunction method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef g_methods[] = {
    {"_recv_now", method(recv_now), METH_FASTCALL, nullptr},
    {"_recv_into_now", method(recv_into_now), METH_FASTCALL, nullptr},
    {"_recvfrom_now", method(recvfrom_now), METH_FASTCALL, nullptr},
    {"_recvfrom_into_now", method(recvfrom_into_now), METH_FASTCALL, nullptr},
    {"_accept_now", accept_now, METH_O, nullptr},
    {"_sendall_now", method(sendall_now), METH_FASTCALL, nullptr},
    {"_sendto_now", method(sendto_now), METH_FASTCALL, nullptr},
    {"_connect_now", method(connect_now), METH_FASTCALL, nullptr},
    {"_stop_waiting", method(forget), METH_FASTCALL, nullptr},
    {}};

// --- the type of a watch

SocketWatch& watch_in(PyObject* self) { return *reinterpret_cast<SocketWatch*>(self); }

int traverse_wait(const Wait& wait, visitproc visit, void* arg) {
  Py_VISIT(wait.future);
  Py_VISIT(wait.request.sock);
  Py_VISIT(wait.request.object);
  Py_VISIT(wait.request.address);
  Py_VISIT(wait.request.data.obj);
  return 0;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  SocketWatch& watch = watch_in(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(watch.sock);
  if (const int status = traverse_wait(watch.read, visit, arg)) return status;
  return traverse_wait(watch.write, visit, arg);
}

int clear(PyObject* self) {
  SocketWatch& watch = watch_in(self);
  clear_wait(watch.read);
  clear_wait(watch.write);
  return 0;
}

void dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  clear(self);
  Py_CLEAR(watch_in(self).sock);
  PyObject_GC_Del(self);
  Py_DECREF(type);
}

PyType_Slot g_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                         {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                         {Py_tp_clear, reinterpret_cast<void*>(clear)},
                         {0, nullptr}};

PyType_Spec g_spec{"erlang_loop._core.SocketWatch", sizeof(SocketWatch), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                   g_slots};

}  // namespace

bool idle_socket_watch(const Ready& watcher, Side side) {
  SocketWatch* watch = watch_of(watcher);
  return watch != nullptr && watch->side(side).future == nullptr;
}

int sockets_exec(PyObject* module, State& state) {
  state.socket_watch_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &g_spec, nullptr));
  if (state.socket_watch_type == nullptr) return -1;
  return add_loop_methods(state, g_methods);
}

}  // namespace loop
