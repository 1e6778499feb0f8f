#include "cnode/loop/stream.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <vector>

#include "cnode/loop/address.hpp"
#include "cnode/loop/flow.hpp"
#include "cnode/loop/tls.hpp"
#include "cnode/py/error.hpp"

namespace loop {
namespace {

constexpr std::size_t kLargeRead =
    64 * 1024;  // from here on a copy costs more than a bytes of its own
constexpr std::size_t kHeldBytes = 64 * 1024;  // what waits at most for the end of the turn
constexpr int kPieces = 64;                    // of one writev
constexpr int kLostWrites = 5;                 // from which asyncio warns of writes into nothing

struct Piece {
  PyObject* owner;  // a bytes object
  std::size_t done;

  const char* data() const { return PyBytes_AS_STRING(owner) + done; }
  std::size_t size() const { return static_cast<std::size_t>(PyBytes_GET_SIZE(owner)) - done; }
};

struct Stream {
  static constexpr std::size_t kOffset = 64;  // in the object, behind the fields of asyncio's class

  PyObject* dict = nullptr;  // what users hang on it
  PyObject* weakrefs = nullptr;
  Shared* shared = nullptr;
  PyObject* self = nullptr;
  Loop* loop = nullptr;  // lives as long as `loop_object`
  PyObject* loop_object = nullptr;
  PyObject* sock = nullptr;
  PyObject* protocol = nullptr;
  PyObject* extra = nullptr;
  PyObject* server = nullptr;
  PyObject* context = nullptr;
  PyObject* empty_waiter = nullptr;
  PyObject* lost_reason = nullptr;
  PyObject* starting_waiter = nullptr;
  int fd = -1;
  int lost = 0;  // connection_lost() is called or about to be; counts the writes since
  bool closing = false;
  bool paused = false;
  bool eof = false;
  bool buffered_protocol = false;
  bool tls_protocol = false;     // ours, which takes bytes from the loop's buffer
  bool stream_protocol = false;  // asyncio's own, whose reader is fed directly
  bool burst = false;            // wrote more than once in its last turn with writes
  bool held = false;             // what is queued waits for the end of the turn, not for the kernel
  std::uint64_t write_turn = 0;
  std::size_t last_read = 0;
  std::vector<Piece> pieces;
  std::size_t first = 0;   // of `pieces` that are left
  std::size_t queued = 0;  // bytes
  Flow flow;

  State& state() const { return loop->state(); }
  bool empty() const { return queued == 0; }
};

Stream& of(PyObject* self) {
  return *reinterpret_cast<Stream*>(reinterpret_cast<char*>(self) + Stream::kOffset);
}

// --- calling the protocol

// The context in which the transport was made, entered for a callback from the loop.
class Entered {
 public:
  explicit Entered(PyObject* context) : context_(Py_NewRef(context)) {
    entered_ = PyContext_Enter(context) == 0;
    if (!entered_) PyErr_Clear();  // already: the callback is called from one of its own
  }
  ~Entered() {
    if (PyErr_Occurred() == nullptr) {
      if (entered_ && PyContext_Exit(context_) < 0) PyErr_Clear();
    } else {
      py::Error error = py::Error::fetch();
      if (entered_ && PyContext_Exit(context_) < 0) PyErr_Clear();
      std::move(error).restore();
    }
    Py_DECREF(context_);
  }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  PyObject* context_;
  bool entered_;
};

void drop_pieces(Stream& stream) {
  std::vector<Piece> gone;
  gone.swap(stream.pieces);
  const std::size_t first = std::exchange(stream.first, 0);
  stream.queued = 0;
  for (std::size_t i = first; i < gone.size(); ++i) Py_DECREF(gone[i].owner);
}

void stop_side(Stream& stream, Side side) {
  if (stream.loop == nullptr) return;
  const Ready watcher = stream.loop->watcher(stream.fd, side);
  if (!watcher || watcher.object() != stream.self) return;
  Ready before;
  if (stream.loop->unwatch(stream.fd, side, before)) Py_DECREF(before.object());
}

int lost_job(Loop& loop, PyObject* self);
int read_job(Loop& loop, PyObject* self);
int write_job(Loop& loop, PyObject* self);
int flush_job(Loop& loop, PyObject* self);

void force_close(Stream& stream, PyObject* reason) {
  if (stream.lost != 0) return;
  drop_pieces(stream);
  stop_side(stream, Side::kWrite);
  if (!stream.closing) {
    stream.closing = true;
    stop_side(stream, Side::kRead);
  }
  ++stream.lost;
  stream.lost_reason = Py_XNewRef(reason);
  stream.loop->push(lost_job, Py_NewRef(stream.self));
}

// Takes the exception that is set: tells of it and ends the transport. -1 for what has to leave the
// loop.
int fatal(Stream& stream, const char* message) {
  if (must_leave()) return -1;
  const py::Error error = py::Error::fetch();
  PyObject* done = PyObject_CallFunction(stream.state().report_fatal, "OOs", stream.self,
                                         error.exception(), message);
  Py_XDECREF(done);
  if (done == nullptr) {
    if (must_leave()) return -1;
    PyErr_WriteUnraisable(stream.self);
  }
  force_close(stream, error.exception());
  return 0;
}

int fatal_errno(Stream& stream, const char* message) {
  PyErr_SetFromErrno(PyExc_OSError);
  return fatal(stream, message);
}

bool try_again() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// --- reading

int watch_side(Stream& stream, Side side) {
  Ready before;
  const Job job = side == Side::kRead ? read_job : write_job;
  if (stream.loop->watch(stream.fd, side, {Py_NewRef(stream.self), job}, before) < 0) return -1;
  if (before) {
    if (Handle* handle = before.handle()) cancel_handle(*handle);
    Py_DECREF(before.object());
  }
  return 0;
}

int end_of_stream(Stream& stream) {
  PyObject* keep = PyObject_CallMethodNoArgs(stream.protocol, stream.state().names.eof_received);
  int open = -1;
  if (keep != nullptr) {
    open = PyObject_IsTrue(keep);
    Py_DECREF(keep);
  }
  if (open < 0) return fatal(stream, "Fatal error: protocol.eof_received() call failed.");
  if (open != 0) {
    stop_side(stream, Side::kRead);
    return 0;
  }
  PyObject* done = PyObject_CallMethodNoArgs(stream.self, stream.state().names.close);
  Py_XDECREF(done);
  return done == nullptr ? -1 : 0;
}

int read_into_protocol(Stream& stream) {
  State::Names& names = stream.state().names;
  static const char* const kNoBuffer = "Fatal error: protocol.get_buffer() call failed.";
  PyObject* hint = PyLong_FromLong(-1);
  PyObject* room = PyObject_CallMethodOneArg(stream.protocol, names.get_buffer, hint);
  Py_DECREF(hint);
  if (room == nullptr) return fatal(stream, kNoBuffer);
  Py_buffer view;
  const int got = PyObject_GetBuffer(room, &view, PyBUF_WRITABLE);
  Py_DECREF(room);
  if (got < 0) {
    if (PyErr_ExceptionMatches(PyExc_BufferError) == 0) return fatal(stream, kNoBuffer);
    PyErr_SetString(PyExc_TypeError, "recv_into() argument 1 must be read-write bytes-like object");
    return fatal(stream, "Fatal read error on socket transport");
  }
  if (view.len == 0) {
    PyBuffer_Release(&view);
    PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    return fatal(stream, kNoBuffer);
  }
  const ssize_t count = recv(stream.fd, view.buf, static_cast<std::size_t>(view.len), 0);
  const int error = errno;
  PyBuffer_Release(&view);
  errno = error;
  if (count < 0)
    return try_again() ? 0 : fatal_errno(stream, "Fatal read error on socket transport");
  if (count == 0) return end_of_stream(stream);
  PyObject* size = PyLong_FromSsize_t(count);
  PyObject* done = PyObject_CallMethodOneArg(stream.protocol, names.buffer_updated, size);
  Py_DECREF(size);
  Py_XDECREF(done);
  return done != nullptr ? 0 : fatal(stream, "Fatal error: protocol.buffer_updated() call failed.");
}

int read_into_tls(Stream& stream) {
  char* buffer = stream.loop->buffer();
  const ssize_t count = recv(stream.fd, buffer, Loop::kBufferSize, 0);
  if (count < 0)
    return try_again() ? 0 : fatal_errno(stream, "Fatal read error on socket transport");
  if (count == 0) return end_of_stream(stream);
  if (tls_feed(stream.protocol, buffer, static_cast<std::size_t>(count)) == 0) return 0;
  return fatal(stream, "Fatal error: protocol.buffer_updated() call failed.");
}

// How much is waiting, if that is much and so was the last read; else 0, mostly without asking.
std::size_t much_waits(const Stream& stream) {
  if (stream.last_read < kLargeRead) return 0;
  int waiting = 0;
  if (ioctl(stream.fd, FIONREAD, &waiting) < 0) return 0;
  const auto size = static_cast<std::size_t>(waiting);
  return size < kLargeRead ? 0 : std::min<std::size_t>(size, Loop::kBufferSize);
}

// A bytes of what one recv gives; null with `count` telling why not (0: the end, -1: errno or an
// exception).
PyObject* receive(Stream& stream, ssize_t& count) {
  const std::size_t waiting = much_waits(stream);
  if (waiting == 0) {
    char* buffer = stream.loop->buffer();
    count = recv(stream.fd, buffer, Loop::kBufferSize, 0);
    return count <= 0 ? nullptr : PyBytes_FromStringAndSize(buffer, count);
  }
  const auto size = static_cast<Py_ssize_t>(waiting);
  PyObject* data = PyBytes_FromStringAndSize(nullptr, size);
  count = -1;
  if (data == nullptr) return nullptr;
  count = recv(stream.fd, PyBytes_AS_STRING(data), waiting, 0);
  if (count > 0) {
    if (count != size) _PyBytes_Resize(&data, count);
    return data;
  }
  const int error = errno;
  Py_DECREF(data);
  errno = error;
  return nullptr;
}

const char* const kNoData = "Fatal error: protocol.data_received() call failed.";
const char* const kNoRead = "Fatal read error on socket transport";

int data_received(Stream& stream, PyObject* data) {
  PyObject* done =
      PyObject_CallMethodOneArg(stream.protocol, stream.state().names.data_received, data);
  Py_XDECREF(done);
  return done == nullptr ? -1 : 0;
}

int read_data(Stream& stream) {
  ssize_t count = 0;
  PyObject* data = receive(stream, count);
  if (data == nullptr) {
    if (PyErr_Occurred() != nullptr) return fatal(stream, kNoRead);
    if (count == 0) return end_of_stream(stream);
    return try_again() ? 0 : fatal_errno(stream, kNoRead);
  }
  stream.last_read = static_cast<std::size_t>(count);
  int status = -1;
  if (stream.stream_protocol) {
    StreamReaderFeed feed(stream.state().stream_reader);
    if (feed.find(stream.protocol) == 0) status = feed.give(data);
  } else {
    status = data_received(stream, data);
  }
  Py_DECREF(data);
  return status == 0 ? 0 : fatal(stream, kNoData);
}

// Into the buffer of asyncio's StreamReader: straight there if much waits, else by way of the
// loop's buffer, since a bytearray that shrinks by more than half is copied.
int read_into_reader(Stream& stream) {
  StreamReaderFeed feed(stream.state().stream_reader);
  if (feed.find(stream.protocol) < 0) return fatal(stream, kNoData);
  if (!feed.takes_memory()) return read_data(stream);
  const std::size_t waiting = much_waits(stream);
  char* place = waiting > 0 ? feed.room(waiting) : stream.loop->buffer();
  if (place == nullptr) return fatal(stream, kNoData);
  const ssize_t count = recv(stream.fd, place, waiting > 0 ? waiting : Loop::kBufferSize, 0);
  if (count <= 0) {
    const int error = errno;
    if (waiting > 0 && feed.fed(0) < 0) return fatal(stream, kNoData);
    errno = error;
    if (count == 0) return end_of_stream(stream);
    return try_again() ? 0 : fatal_errno(stream, kNoRead);
  }
  stream.last_read = static_cast<std::size_t>(count);
  if (waiting == 0) {
    char* end = feed.room(stream.last_read);
    if (end == nullptr) return fatal(stream, kNoData);
    std::memcpy(end, place, stream.last_read);
  }
  return feed.fed(stream.last_read) == 0 ? 0 : fatal(stream, kNoData);
}

int read_job(Loop&, PyObject* self) {
  Stream& stream = of(self);
  if (stream.lost != 0 || stream.closing || stream.paused) return 0;
  const Entered entered(stream.context);
  if (stream.tls_protocol) return read_into_tls(stream);
  if (stream.buffered_protocol) return read_into_protocol(stream);
  return stream.stream_protocol ? read_into_reader(stream) : read_data(stream);
}

// --- writing

// Sends what is queued; true if all of it left. `failed` with OSError set.
bool send_queue(Stream& stream, bool& failed) {
  failed = false;
  while (stream.queued > 0) {
    iovec parts[kPieces];
    int count = 0;
    std::size_t offered = 0;
    for (std::size_t i = stream.first; i < stream.pieces.size() && count < kPieces; ++i) {
      const Piece& piece = stream.pieces[i];
      parts[count].iov_base = const_cast<char*>(piece.data());
      parts[count++].iov_len = piece.size();
      offered += piece.size();
    }
    const ssize_t sent = count == 1 ? send(stream.fd, parts[0].iov_base, parts[0].iov_len, 0)
                                    : writev(stream.fd, parts, count);
    if (sent < 0) {
      failed = !try_again();
      if (failed) PyErr_SetFromErrno(PyExc_OSError);
      return false;
    }
    stream.queued -= static_cast<std::size_t>(sent);
    std::size_t left = static_cast<std::size_t>(sent);
    while (left > 0) {
      Piece& piece = stream.pieces[stream.first];
      const std::size_t part = std::min(left, piece.size());
      piece.done += part;
      left -= part;
      if (piece.size() == 0) {
        Py_DECREF(piece.owner);
        ++stream.first;
      }
    }
    if (static_cast<std::size_t>(sent) < offered) return false;
  }
  stream.pieces.clear();
  stream.first = 0;
  return true;
}

int set_waiter(PyObject* waiter, State& state) {
  PyObject* done = PyObject_CallMethodNoArgs(waiter, state.names.done);
  const int is_done = done == nullptr ? -1 : PyObject_IsTrue(done);
  Py_XDECREF(done);
  if (is_done != 0) return is_done < 0 ? -1 : 0;
  PyObject* set = PyObject_CallMethodOneArg(waiter, state.names.set_result, Py_None);
  Py_XDECREF(set);
  return set == nullptr ? -1 : 0;
}

int fail_waiter(Stream& stream, PyObject* error) {
  if (stream.empty_waiter == nullptr) return 0;
  PyObject* waiter = Py_NewRef(stream.empty_waiter);
  PyObject* done = PyObject_CallMethodNoArgs(waiter, stream.state().names.done);
  const int is_done = done == nullptr ? -1 : PyObject_IsTrue(done);
  Py_XDECREF(done);
  if (is_done == 0) {
    PyObject* set = PyObject_CallMethodOneArg(waiter, stream.state().names.set_exception, error);
    Py_XDECREF(set);
  }
  Py_DECREF(waiter);
  if (PyErr_Occurred() != nullptr) PyErr_Clear();
  return 0;
}

int write_failed(Stream& stream) {
  py::Error error = py::Error::fetch();
  const py::Ref reason = py::Ref::borrow(error.exception());
  drop_pieces(stream);
  stop_side(stream, Side::kWrite);
  std::move(error).restore();
  const int status = fatal(stream, "Fatal write error on socket transport");
  fail_waiter(stream, reason.get());
  return status;
}

int call_lost(Stream& stream, PyObject* reason);

// All that was queued has left.
int drained(Stream& stream) {
  stop_side(stream, Side::kWrite);
  if (stream.empty_waiter != nullptr && set_waiter(stream.empty_waiter, stream.state()) < 0)
    return -1;
  if (stream.closing) {
    if (stream.lost == 0) {
      ++stream.lost;
      return call_lost(stream, Py_None);
    }
  } else if (stream.eof) {
    ::shutdown(stream.fd, SHUT_WR);
  }
  return 0;
}

int write_job(Loop& loop, PyObject* self) {
  Stream& stream = of(self);
  if (stream.lost != 0 || stream.empty()) return 0;
  const Entered entered(stream.context);
  bool failed = false;
  const bool all = send_queue(stream, failed);
  if (failed) return write_failed(stream);
  if (stream.flow.maybe_resume(loop, self, stream.protocol, stream.queued) < 0) return -1;
  // resume_writing() may have written again.
  return all && stream.empty() && stream.lost == 0 ? drained(stream) : 0;
}

// What was held back leaves, or waits for the kernel.
int flush(Stream& stream) {
  if (!stream.held) return 0;
  stream.held = false;
  if (stream.lost != 0 || stream.empty()) return 0;
  if (stream.pieces.size() - stream.first == 1) stream.burst = false;
  bool failed = false;
  const bool all = send_queue(stream, failed);
  if (failed) return write_failed(stream);
  if (all) return drained(stream);
  if (watch_side(stream, Side::kWrite) < 0) return write_failed(stream);
  return stream.flow.maybe_pause(*stream.loop, stream.self, stream.protocol, stream.queued);
}

int flush_job(Loop&, PyObject* self) {
  Stream& stream = of(self);
  if (!stream.held || stream.lost != 0) return 0;
  const Entered entered(stream.context);
  return flush(stream);
}

void queue(Stream& stream, PyObject* owner, std::size_t done) {
  if (stream.first > 32 && stream.first * 2 > stream.pieces.size()) {
    stream.pieces.erase(stream.pieces.begin(),
                        stream.pieces.begin() + static_cast<std::ptrdiff_t>(stream.first));
    stream.first = 0;
  }
  stream.pieces.push_back({owner, done});
  stream.queued += stream.pieces.back().size();
}

// `data` as bytes from `skip` on: itself if it is a bytes, a copy otherwise, as its owner may
// change it later.
int queue_data(Stream& stream, PyObject* data, const Py_buffer& view, std::size_t skip) {
  if (PyBytes_CheckExact(data)) {
    queue(stream, Py_NewRef(data), skip);
    return 0;
  }
  PyObject* copy = PyBytes_FromStringAndSize(static_cast<const char*>(view.buf) + skip,
                                             view.len - static_cast<Py_ssize_t>(skip));
  if (copy == nullptr) return -1;
  queue(stream, copy, 0);
  return 0;
}

int write_view(Stream& stream, PyObject* data, const Py_buffer& view) {
  const auto size = static_cast<std::size_t>(view.len);
  if (stream.empty()) {
    const bool in_turn = stream.loop->in_batch();
    const std::uint64_t turn = stream.loop->turn_number();
    const bool again = in_turn && stream.write_turn == turn;
    if (again) stream.burst = true;
    stream.write_turn = turn;
    if (in_turn && stream.burst && size < kHeldBytes) {
      if (queue_data(stream, data, view, 0) < 0) return -1;
      stream.held = true;
      stream.loop->at_end_of_turn(flush_job, Py_NewRef(stream.self));
      return 0;
    }
    const ssize_t sent = send(stream.fd, view.buf, size, 0);
    if (sent < 0 && !try_again())
      return fatal_errno(stream, "Fatal write error on socket transport");
    const std::size_t done = sent < 0 ? 0 : static_cast<std::size_t>(sent);
    if (done == size) return 0;
    if (queue_data(stream, data, view, done) < 0 || watch_side(stream, Side::kWrite) < 0) return -1;
  } else {
    if (queue_data(stream, data, view, 0) < 0) return -1;
    if (stream.held) {
      stream.burst = true;
      return stream.queued < kHeldBytes ? 0 : flush(stream);
    }
  }
  return stream.flow.maybe_pause(*stream.loop, stream.self, stream.protocol, stream.queued);
}

// False with an exception set, or `skip` where there is nothing to do.
bool may_write(Stream& stream, PyObject* data, bool& skip) {
  skip = false;
  if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
    PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not '%.200s'",
                 Py_TYPE(data)->tp_name);
    return false;
  }
  if (stream.eof) {
    PyErr_SetString(PyExc_RuntimeError, "Cannot call write() after write_eof()");
    return false;
  }
  if (stream.empty_waiter != nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "unable to write; sendfile is in progress");
    return false;
  }
  return true;
}

bool lost_write(Stream& stream) {
  if (stream.lost == 0) return false;
  if (stream.lost >= kLostWrites) {
    PyObject* done = PyObject_CallNoArgs(state_of_type(Py_TYPE(stream.self))->warn_lost_writes);
    Py_XDECREF(done);
    if (done == nullptr) PyErr_Clear();
  }
  ++stream.lost;
  return true;
}

PyObject* write(PyObject* self, PyObject* data) {
  Stream& stream = of(self);
  bool skip = false;
  if (!may_write(stream, data, skip)) return nullptr;
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return nullptr;
  int status = 0;
  if (view.len > 0 && !lost_write(stream)) {
    Py_INCREF(self);  // what pause_writing() does may take the last reference
    status = write_view(stream, data, view);
    Py_DECREF(self);
  }
  PyBuffer_Release(&view);
  if (status < 0) return nullptr;
  Py_RETURN_NONE;
}

// Queues all, then sends them in one system call where possible.
PyObject* writelines(PyObject* self, PyObject* list) {
  Stream& stream = of(self);
  PyObject* items = PySequence_Fast(list, "writelines() argument must be an iterable");
  if (items == nullptr) return nullptr;
  PyObject* joined = nullptr;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
  for (Py_ssize_t i = 0; i < count; ++i) {
    bool skip = false;
    if (!may_write(stream, PySequence_Fast_GET_ITEM(items, i), skip)) {
      Py_DECREF(items);
      return nullptr;
    }
  }
  if (count > 1) {
    // One bytes: the pieces are mostly small, and joining them is cheaper than a list of them.
    joined = PyObject_CallMethod(stream.state().empty_bytes, "join", "(O)", items);
  } else if (count == 1) {
    joined = Py_NewRef(PySequence_Fast_GET_ITEM(items, 0));
  }
  Py_DECREF(items);
  if (count == 0) Py_RETURN_NONE;
  if (joined == nullptr) return nullptr;
  PyObject* done = write(self, joined);
  Py_DECREF(joined);
  return done;
}

PyObject* write_eof(PyObject* self, PyObject*) {
  Stream& stream = of(self);
  if (stream.closing || stream.eof) Py_RETURN_NONE;
  if (flush(stream) < 0) return nullptr;
  if (stream.closing) Py_RETURN_NONE;
  stream.eof = true;
  if (stream.empty() && ::shutdown(stream.fd, SHUT_WR) < 0)
    return PyErr_SetFromErrno(PyExc_OSError);
  Py_RETURN_NONE;
}

PyObject* can_write_eof(PyObject*, PyObject*) { Py_RETURN_TRUE; }

// --- the end

// Calls connection_lost() and lets go of everything. What it raises goes to the exception handler.
int call_lost(Stream& stream, PyObject* reason) {
  Loop& loop = *stream.loop;
  State& state = loop.state();
  const py::Ref loop_kept = py::Ref::borrow(stream.loop_object);
  const py::Ref self_kept = py::Ref::borrow(stream.self);
  int status = 0;
  stop_side(stream, Side::kRead);
  stop_side(stream, Side::kWrite);
  {
    PyObject* done =
        PyObject_CallMethodOneArg(stream.protocol, state.names.connection_lost, reason);
    Py_XDECREF(done);
    if (done == nullptr)
      status = tell_exception(loop, "Exception in callback _call_connection_lost()", stream.self,
                              stream.protocol);
  }
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  loop.disown(stream.fd, stream.self);
  PyObject* sock = std::exchange(stream.sock, nullptr);
  PyObject* closed = PyObject_CallMethodNoArgs(sock, state.names.close);
  Py_XDECREF(closed);
  Py_DECREF(sock);
  if (closed == nullptr) PyErr_Clear();
  if (stream.empty_waiter != nullptr) {
    PyObject* error =
        PyObject_CallFunction(PyExc_ConnectionError, "s", "Connection is closed by peer");
    if (error != nullptr) fail_waiter(stream, error);
    Py_XDECREF(error);
  }
  PyObject* server = std::exchange(stream.server, nullptr);
  if (server != nullptr) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* done = PyObject_CallMethodOneArg(server, state.names._detach, stream.self);
#else
    PyObject* done = PyObject_CallMethodNoArgs(server, state.names._detach);
#endif
    Py_XDECREF(done);
    if (done == nullptr) PyErr_WriteUnraisable(stream.self);
    Py_DECREF(server);
  }
  Py_CLEAR(stream.protocol);
  Py_CLEAR(stream.lost_reason);
  Py_CLEAR(stream.context);
  stream.loop = nullptr;
  Py_CLEAR(stream.loop_object);
  PyErr_Restore(type, value, trace);
  return status;
}

int lost_job(Loop&, PyObject* self) {
  Stream& stream = of(self);
  if (stream.loop == nullptr) return 0;
  const Entered entered(stream.context);
  const py::Ref reason =
      py::Ref::borrow(stream.lost_reason == nullptr ? Py_None : stream.lost_reason);
  return call_lost(stream, reason.get());
}

PyObject* close_transport(PyObject* self, PyObject*) {
  Stream& stream = of(self);
  if (stream.closing) Py_RETURN_NONE;
  if (flush(stream) < 0) return nullptr;
  if (stream.closing) Py_RETURN_NONE;
  stream.closing = true;
  stop_side(stream, Side::kRead);
  if (stream.empty()) {
    ++stream.lost;
    stop_side(stream, Side::kWrite);
    stream.loop->push(lost_job, Py_NewRef(self));
  }
  Py_RETURN_NONE;
}

PyObject* force_close_method(PyObject* self, PyObject* reason) {
  Stream& stream = of(self);
  if (stream.loop == nullptr) Py_RETURN_NONE;
  if (flush(stream) < 0) return nullptr;  // written before: with asyncio it is on its way
  force_close(stream, reason == Py_None ? nullptr : reason);
  Py_RETURN_NONE;
}

PyObject* abort_transport(PyObject* self, PyObject*) { return force_close_method(self, Py_None); }

PyObject* fatal_error(PyObject* self, PyObject* arguments) {
  PyObject* error = nullptr;
  const char* message = "Fatal error on transport";
  if (PyArg_ParseTuple(arguments, "O|s", &error, &message) == 0) return nullptr;
  Stream& stream = of(self);
  if (stream.loop == nullptr) Py_RETURN_NONE;
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error)), error);
  if (fatal(stream, message) < 0) return nullptr;
  Py_RETURN_NONE;
}

// --- the rest of the transport's interface

PyObject* pause_reading(PyObject* self, PyObject*) {
  Stream& stream = of(self);
  if (stream.closing || stream.paused) Py_RETURN_NONE;
  stream.paused = true;
  stop_side(stream, Side::kRead);
  Py_RETURN_NONE;
}

PyObject* resume_reading(PyObject* self, PyObject*) {
  Stream& stream = of(self);
  if (stream.closing || !stream.paused) Py_RETURN_NONE;
  stream.paused = false;
  if (watch_side(stream, Side::kRead) < 0) return nullptr;
  Py_RETURN_NONE;
}

PyObject* is_closing(PyObject* self, PyObject*) {
  return PyBool_FromLong(of(self).closing ? 1 : 0);
}
PyObject* is_reading(PyObject* self, PyObject*) {
  const Stream& stream = of(self);
  return PyBool_FromLong(!stream.closing && !stream.paused ? 1 : 0);
}

int take_protocol(Stream& stream, PyObject* protocol) {
  const int buffered = PyObject_IsInstance(protocol, stream.state().buffered_class);
  if (buffered < 0) return -1;
  stream.buffered_protocol = buffered != 0;
  stream.tls_protocol = tls_takes_bytes(*stream.state().tls, protocol);
  stream.stream_protocol = is_stream_protocol(stream.state().stream_reader, protocol);
  Py_XSETREF(stream.protocol, Py_NewRef(protocol));
  return 0;
}

PyObject* set_protocol(PyObject* self, PyObject* protocol) {
  Stream& stream = of(self);
  if (stream.loop != nullptr && take_protocol(stream, protocol) < 0) return nullptr;
  Py_RETURN_NONE;
}

PyObject* get_protocol(PyObject* self, PyObject*) {
  PyObject* protocol = of(self).protocol;
  return Py_NewRef(protocol == nullptr ? Py_None : protocol);
}

PyObject* get_extra_info(PyObject* self, PyObject* arguments, PyObject* options) {
  PyObject* name = nullptr;
  PyObject* otherwise = Py_None;
  static const char* names[] = {"name", "default", nullptr};
  if (PyArg_ParseTupleAndKeywords(arguments, options, "O|O", const_cast<char**>(names), &name,
                                  &otherwise) == 0)
    return nullptr;
  PyObject* value = PyDict_GetItemWithError(of(self).extra, name);
  if (value == nullptr && PyErr_Occurred() != nullptr) return nullptr;
  return Py_NewRef(value == nullptr ? otherwise : value);
}

PyObject* set_write_buffer_limits(PyObject* self, PyObject* arguments, PyObject* options) {
  Stream& stream = of(self);
  if (stream.flow.set_limits(arguments, options) < 0) return nullptr;
  if (stream.loop != nullptr && !stream.held &&
      stream.flow.maybe_pause(*stream.loop, self, stream.protocol, stream.queued) < 0)
    return nullptr;
  Py_RETURN_NONE;
}
PyObject* get_write_buffer_limits(PyObject* self, PyObject*) { return of(self).flow.limits(); }
PyObject* get_write_buffer_size(PyObject* self, PyObject*) {
  return PyLong_FromSize_t(of(self).queued);
}

PyObject* make_empty_waiter(PyObject* self, PyObject*) {
  Stream& stream = of(self);
  if (stream.empty_waiter != nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "Empty waiter is already set");
    return nullptr;
  }
  if (flush(stream) < 0) return nullptr;
  if (stream.loop == nullptr) {
    PyErr_SetString(PyExc_ConnectionError, "Connection is closed by peer");
    return nullptr;
  }
  stream.empty_waiter =
      PyObject_CallMethodNoArgs(stream.loop_object, stream.state().names.create_future);
  if (stream.empty_waiter == nullptr) return nullptr;
  if (stream.empty() && set_waiter(stream.empty_waiter, stream.state()) < 0) return nullptr;
  return Py_NewRef(stream.empty_waiter);
}

PyObject* reset_empty_waiter(PyObject* self, PyObject*) {
  Py_CLEAR(of(self).empty_waiter);
  Py_RETURN_NONE;
}

PyObject* polls(PyObject* self, Side side) {
  const Stream& stream = of(self);
  return PyBool_FromLong(
      stream.loop != nullptr && static_cast<bool>(stream.loop->watcher(stream.fd, side)) ? 1 : 0);
}
PyObject* polls_read(PyObject* self, PyObject*) { return polls(self, Side::kRead); }
PyObject* polls_write(PyObject* self, PyObject*) { return polls(self, Side::kWrite); }

PyObject* repr(PyObject* self) {
  return PyObject_CallOneArg(state_of_type(Py_TYPE(self))->transport_repr, self);
}

PyObject* or_none(PyObject* object) { return Py_NewRef(object == nullptr ? Py_None : object); }
PyObject* get_loop(PyObject* self, void*) { return or_none(of(self).loop_object); }
PyObject* get_sock(PyObject* self, void*) { return or_none(of(self).sock); }
PyObject* get_fd(PyObject* self, void*) { return PyLong_FromLong(of(self).fd); }
PyObject* get_extra(PyObject* self, void*) { return or_none(of(self).extra); }
PyObject* get_server(PyObject* self, void*) { return or_none(of(self).server); }
PyObject* get_protocol_attribute(PyObject* self, void*) { return or_none(of(self).protocol); }
PyObject* get_lost(PyObject* self, void*) { return PyLong_FromLong(of(self).lost); }
PyObject* get_closing(PyObject* self, void*) { return is_closing(self, nullptr); }
PyObject* get_paused(PyObject* self, void*) { return PyBool_FromLong(of(self).paused ? 1 : 0); }
PyObject* get_protocol_paused(PyObject* self, void*) {
  return PyBool_FromLong(of(self).flow.paused ? 1 : 0);
}
PyObject* get_eof(PyObject* self, void*) { return PyBool_FromLong(of(self).eof ? 1 : 0); }
PyObject* get_compatible(PyObject*, void*) { Py_RETURN_TRUE; }
PyObject* get_sendfile(PyObject* self, void*) {
  return Py_NewRef(state_of_type(Py_TYPE(self))->sendfile_try_native);
}

// --- its life

// What a transport does first, after connection_made(): read, and tell who waits for it.
int start_job(Loop&, PyObject* self) {
  Stream& stream = of(self);
  const py::Ref waiter = py::Ref::steal(std::exchange(stream.starting_waiter, nullptr));
  if (stream.loop != nullptr && !stream.closing && !stream.paused &&
      watch_side(stream, Side::kRead) < 0) {
    if (fatal(stream, "Fatal error: cannot read from the socket") < 0) return -1;
  }
  return waiter && set_waiter(waiter.get(), *state_of_type(Py_TYPE(self))) < 0 ? -1 : 0;
}

PyObject* name_of(PyObject* sock, PyObject* method) {
  PyObject* name = PyObject_CallMethodNoArgs(sock, method);
  if (name != nullptr) return name;
  if (PyErr_ExceptionMatches(PyExc_OSError) == 0) return nullptr;
  PyErr_Clear();
  Py_RETURN_NONE;
}

int fill_extra(Stream& stream, PyObject* extra) {
  State::Names& names = stream.state().names;
  stream.extra = extra == nullptr || extra == Py_None ? PyDict_New() : PyDict_Copy(extra);
  if (stream.extra == nullptr) return -1;
  const auto put = [&](PyObject* name, PyObject* value) {
    if (value == nullptr) return -1;
    const int status = PyDict_SetItem(stream.extra, name, value);
    Py_DECREF(value);
    return status;
  };
  if (put(names.socket, PyObject_CallOneArg(stream.state().transport_socket, stream.sock)) < 0 ||
      put(names.sockname, name_of(stream.sock, names.getsockname)) < 0)
    return -1;
  const int known = PyDict_Contains(stream.extra, names.peername);
  if (known != 0) return known < 0 ? -1 : 0;
  return put(names.peername, name_of(stream.sock, names.getpeername));
}

int attach(Stream& stream, PyObject* server) {
  if (server == nullptr || server == Py_None) return 0;
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* done = PyObject_CallMethodOneArg(server, stream.state().names._attach, stream.self);
#else
  PyObject* done = PyObject_CallMethodNoArgs(server, stream.state().names._attach);
#endif
  Py_XDECREF(done);
  if (done == nullptr) return -1;
  stream.server = Py_NewRef(server);
  return 0;
}

int start(Stream& stream, PyObject* waiter) {
  const int on = 1;
  setsockopt(stream.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on what is not TCP
  PyObject* made = PyObject_GetAttr(stream.protocol, stream.state().names.connection_made);
  if (made == nullptr) return -1;
  PyObject* handle = nullptr;
  const int status = stream.loop->call_soon(made, &stream.self, 1, nullptr, handle);
  Py_DECREF(made);
  Py_XDECREF(handle);
  if (status < 0) return -1;
  if (waiter != nullptr && waiter != Py_None) stream.starting_waiter = Py_NewRef(waiter);
  stream.loop->push(start_job, Py_NewRef(stream.self));
  return 0;
}

PyObject* make_stream(PyTypeObject* type, PyObject* loop_object, PyObject* sock, PyObject* protocol,
                      PyObject* waiter, PyObject* extra, PyObject* server) {
  Loop* loop = loop_of(loop_object);
  if (loop == nullptr) return nullptr;
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  State& state = loop->state();
  auto& stream = *new (reinterpret_cast<char*>(self) + Stream::kOffset) Stream;
  stream.shared = state.shared;
  ++stream.shared->transports;
  stream.self = self;
  stream.loop = loop;
  stream.loop_object = Py_NewRef(loop_object);
  stream.context = PyContext_CopyCurrent();
  stream.fd = PyObject_AsFileDescriptor(sock);
  if (stream.context == nullptr || stream.fd < 0 || take_protocol(stream, protocol) < 0) {
    Py_DECREF(self);
    return nullptr;
  }
  stream.sock = Py_NewRef(sock);
  loop->own(stream.fd, self);
  if (fill_extra(stream, extra) < 0 || attach(stream, server) < 0 || start(stream, waiter) < 0) {
    loop->disown(stream.fd, self);
    Py_CLEAR(stream.sock);  // the caller's, who closes it
    Py_DECREF(self);
    return nullptr;
  }
  return self;
}

PyObject* make(PyTypeObject* type, PyObject* arguments, PyObject* options) {
  PyObject* loop = nullptr;
  PyObject* sock = nullptr;
  PyObject* protocol = nullptr;
  PyObject* waiter = nullptr;
  PyObject* extra = nullptr;
  PyObject* server = nullptr;
  static const char* names[] = {"loop", "sock", "protocol", "waiter", "extra", "server", nullptr};
  if (PyArg_ParseTupleAndKeywords(arguments, options, "OOO|OOO", const_cast<char**>(names), &loop,
                                  &sock, &protocol, &waiter, &extra, &server) == 0)
    return nullptr;
  return make_stream(type, loop, sock, protocol, waiter, extra, server);
}

int ignore_arguments(PyObject*, PyObject*, PyObject*) { return 0; }

int clear(PyObject* self) {
  Stream& stream = of(self);
  drop_pieces(stream);
  Py_CLEAR(stream.dict);
  Py_CLEAR(stream.protocol);
  Py_CLEAR(stream.extra);
  Py_CLEAR(stream.server);
  Py_CLEAR(stream.context);
  Py_CLEAR(stream.empty_waiter);
  Py_CLEAR(stream.starting_waiter);
  Py_CLEAR(stream.lost_reason);
  if (stream.loop != nullptr && stream.fd >= 0) stream.loop->disown(stream.fd, self);
  stream.loop = nullptr;
  stream.closing = true;
  if (stream.lost == 0) stream.lost = 1;
  Py_CLEAR(stream.loop_object);
  Py_CLEAR(stream.sock);
  return 0;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Stream& stream = of(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(stream.dict);
  Py_VISIT(stream.loop_object);
  Py_VISIT(stream.sock);
  Py_VISIT(stream.protocol);
  Py_VISIT(stream.extra);
  Py_VISIT(stream.server);
  Py_VISIT(stream.context);
  Py_VISIT(stream.empty_waiter);
  Py_VISIT(stream.starting_waiter);
  Py_VISIT(stream.lost_reason);
  for (std::size_t i = stream.first; i < stream.pieces.size(); ++i)
    Py_VISIT(stream.pieces[i].owner);
  return 0;
}

// As asyncio's __del__: a transport that nobody closed.
void finalize(PyObject* self) {
  Stream& stream = of(self);
  if (stream.sock == nullptr || stream.loop == nullptr) return;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  State& state = stream.state();
  PyObject* warned = PyObject_CallOneArg(state.unclosed, self);
  Py_XDECREF(warned);
  if (warned == nullptr) PyErr_WriteUnraisable(self);
  if (stream.loop != nullptr) stream.loop->disown(stream.fd, self);
  PyObject* sock = std::exchange(stream.sock, nullptr);
  PyObject* closed = PyObject_CallMethodNoArgs(sock, state.names.close);
  Py_XDECREF(closed);
  Py_DECREF(sock);
  if (closed == nullptr) PyErr_WriteUnraisable(self);
  PyErr_Restore(type, value, trace);
}

void dealloc(PyObject* self) {
  if (PyObject_CallFinalizerFromDealloc(self) < 0) return;
  PyTypeObject* type = Py_TYPE(self);
  Shared& shared = *of(self).shared;
  PyObject_GC_UnTrack(self);
  PyObject_ClearWeakRefs(self);
  clear(self);
  of(self).~Stream();
  shared.leave(shared.transports);
  type->tp_free(self);
  Py_DECREF(type);
}

template <typename Function>
PyCFunction method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef g_methods[] = {
    {"write", write, METH_O, "write(data): send it, or queue what cannot leave yet."},
    {"writelines", writelines, METH_O, "writelines(list): write() of all of them together."},
    {"write_eof", write_eof, METH_NOARGS, "write_eof(): close the write side when all has left."},
    {"can_write_eof", can_write_eof, METH_NOARGS, "can_write_eof(): True."},
    {"close", close_transport, METH_NOARGS, "close(): close when what is queued has left."},
    {"abort", abort_transport, METH_NOARGS, "abort(): close now; what is queued is lost."},
    {"is_closing", is_closing, METH_NOARGS, "is_closing(): whether it closes or is closed."},
    {"is_reading", is_reading, METH_NOARGS, "is_reading(): whether it receives."},
    {"pause_reading", pause_reading, METH_NOARGS, "pause_reading(): receive nothing for now."},
    {"resume_reading", resume_reading, METH_NOARGS, "resume_reading(): receive again."},
    {"set_protocol", set_protocol, METH_O, "set_protocol(protocol): whom to tell from now on."},
    {"get_protocol", get_protocol, METH_NOARGS, "get_protocol(): the protocol."},
    {"get_extra_info", method(get_extra_info), METH_VARARGS | METH_KEYWORDS,
     "get_extra_info(name, default=None): 'socket', 'sockname', 'peername'."},
    {"set_write_buffer_limits", method(set_write_buffer_limits), METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits(high=None, low=None): when to pause the protocol, in bytes."},
    {"get_write_buffer_limits", get_write_buffer_limits, METH_NOARGS,
     "get_write_buffer_limits(): (low, high) in bytes."},
    {"get_write_buffer_size", get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size(): bytes that wait."},
    {"_make_empty_waiter", make_empty_waiter, METH_NOARGS, nullptr},
    {"_reset_empty_waiter", reset_empty_waiter, METH_NOARGS, nullptr},
    {"_force_close", force_close_method, METH_O, nullptr},
    {"_fatal_error", fatal_error, METH_VARARGS, nullptr},
    {"_polls_read", polls_read, METH_NOARGS, nullptr},
    {"_polls_write", polls_write, METH_NOARGS, nullptr},
    {}};

PyGetSetDef g_attributes[] = {{"_loop", get_loop, nullptr, nullptr, nullptr},
                              {"_sock", get_sock, nullptr, nullptr, nullptr},
                              {"_sock_fd", get_fd, nullptr, nullptr, nullptr},
                              {"_extra", get_extra, nullptr, nullptr, nullptr},
                              {"_server", get_server, nullptr, nullptr, nullptr},
                              {"_protocol", get_protocol_attribute, nullptr, nullptr, nullptr},
                              {"_conn_lost", get_lost, nullptr, nullptr, nullptr},
                              {"_closing", get_closing, nullptr, nullptr, nullptr},
                              {"_paused", get_paused, nullptr, nullptr, nullptr},
                              {"_eof", get_eof, nullptr, nullptr, nullptr},
                              {"_protocol_paused", get_protocol_paused, nullptr, nullptr, nullptr},
                              {"_start_tls_compatible", get_compatible, nullptr, nullptr, nullptr},
                              {"_sendfile_compatible", get_sendfile, nullptr, nullptr, nullptr},
                              {}};

PyMemberDef g_members[] = {
    {"__dictoffset__", T_PYSSIZET, Stream::kOffset + offsetof(Stream, dict), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, Stream::kOffset + offsetof(Stream, weakrefs), READONLY,
     nullptr},
    {}};

PyType_Slot g_slots[] = {{Py_tp_new, reinterpret_cast<void*>(make)},
                         {Py_tp_init, reinterpret_cast<void*>(ignore_arguments)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                         {Py_tp_finalize, reinterpret_cast<void*>(finalize)},
                         {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                         {Py_tp_clear, reinterpret_cast<void*>(clear)},
                         {Py_tp_repr, reinterpret_cast<void*>(repr)},
                         {Py_tp_methods, g_methods},
                         {Py_tp_getset, g_attributes},
                         {Py_tp_members, g_members},
                         {0, nullptr}};

}  // namespace

PyObject* accept_streams(PyObject* module, PyObject* arguments) {
  PyObject* loop_object = nullptr;
  PyObject* factory = nullptr;
  PyObject* listener = nullptr;
  PyObject* server = nullptr;
  int backlog = 0;
  if (PyArg_ParseTuple(arguments, "OOOOi", &loop_object, &factory, &listener, &server, &backlog) ==
      0)
    return nullptr;
  State& state = *state_of(module);
  const int fd = PyObject_AsFileDescriptor(listener);
  if (fd < 0) return nullptr;
  for (int i = 0; i < backlog; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    const int accepted =
        accept4(fd, reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (accepted < 0) {
      if (try_again() || errno == ECONNABORTED) break;
      return PyErr_SetFromErrno(PyExc_OSError);
    }
    const int family = address.ss_family;
    const int number = family == AF_INET || family == AF_INET6 ? IPPROTO_TCP : 0;
    PyObject* sock = PyObject_CallFunction(state.socket_class, "iiii", family,
                                           SOCK_STREAM | SOCK_NONBLOCK, number, accepted);
    if (sock == nullptr) {
      close(accepted);
      return nullptr;
    }
    PyObject* peer = address_object(reinterpret_cast<sockaddr*>(&address), size);
    PyObject* extra = peer == nullptr ? nullptr : PyDict_New();
    PyObject* protocol = nullptr;
    PyObject* transport = nullptr;
    if (extra != nullptr && PyDict_SetItem(extra, state.names.peername, peer) == 0)
      protocol = PyObject_CallNoArgs(factory);
    if (protocol != nullptr)
      transport =
          make_stream(state.stream_type, loop_object, sock, protocol, nullptr, extra, server);
    Py_XDECREF(peer);
    Py_XDECREF(extra);
    int status = 0;
    if (transport == nullptr) {
      // asyncio tells of this in debug mode only; the connection is closed.
      const bool leave = must_leave();
      Loop* loop = loop_of(loop_object);
      py::Error error = py::Error::fetch();
      PyObject* closed = PyObject_CallMethodNoArgs(sock, state.names.close);
      Py_XDECREF(closed);
      if (closed == nullptr) PyErr_Clear();
      if (leave || loop == nullptr || loop->debug()) {
        std::move(error).restore();
        status = leave
                     ? -1
                     : tell_exception(*loop, "Error on transport creation for incoming connection",
                                      Py_None, protocol);
      }
    }
    Py_XDECREF(protocol);
    Py_XDECREF(transport);
    Py_DECREF(sock);
    if (status < 0) return nullptr;
  }
  Py_RETURN_NONE;
}

int stream_write(PyObject* self, const char* data, std::size_t size) {
  Stream& stream = of(self);
  if (lost_write(stream)) return 0;
  bool skip = false;
  if (!may_write(stream, stream.state().empty_bytes, skip)) return -1;
  Py_buffer view{};
  view.buf = const_cast<char*>(data);
  view.len = static_cast<Py_ssize_t>(size);
  const py::Ref kept = py::Ref::borrow(self);  // what pause_writing() does may take the last
  return write_view(stream, Py_None, view);    // no bytes object: what cannot leave is copied
}

int stream_exec(PyObject* module, State& state) {
  auto* base = reinterpret_cast<PyTypeObject*>(state.transport_class);
  if (static_cast<std::size_t>(base->tp_basicsize) > Stream::kOffset) {
    PyErr_SetString(PyExc_SystemError, "asyncio's transports have outgrown ours");
    return -1;
  }
  PyType_Spec spec{"erlang_loop.StreamTransport",
                   static_cast<int>(Stream::kOffset + sizeof(Stream)), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, g_slots};
  state.stream_type = reinterpret_cast<PyTypeObject*>(
      PyType_FromModuleAndSpec(module, &spec, state.transport_class));
  if (state.stream_type == nullptr) return -1;
  return PyModule_AddType(module, state.stream_type);
}

}  // namespace loop
