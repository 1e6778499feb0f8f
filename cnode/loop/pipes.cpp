#include "cnode/loop/pipes.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <new>

#include "cnode/loop/endpoint.hpp"
#include "cnode/py/error.hpp"

namespace loop {
namespace {

constexpr std::size_t kLarge = 64 * 1024;  // from here on a copy costs more than a bytes of its own
constexpr int kPieces = 64;                // of one writev

struct ReadPipe : Endpoint {
  bool paused = false;
  bool ended = false;  // connection_lost() is on its way
  std::size_t last_read = 0;
};

struct Piece {
  PyObject* data;  // bytes
  std::size_t done;

  const char* rest() const { return PyBytes_AS_STRING(data) + done; }
  std::size_t size() const { return static_cast<std::size_t>(PyBytes_GET_SIZE(data)) - done; }
};

struct WritePipe : Endpoint {
  bool ended = false;
  bool socket = false;
  bool watches_reader = false;  // a pipe's or a socket's other end
  std::deque<Piece> pieces;
  std::size_t queued = 0;  // bytes
};

ReadPipe& reader_of(PyObject* self) { return fields_of<ReadPipe>(self); }
WritePipe& writer_of(PyObject* self) { return fields_of<WritePipe>(self); }

// Levels of the module logging.
constexpr int kDebug = 10;
constexpr int kInfo = 20;
constexpr int kWarning = 30;

void note_in_debug(Endpoint& pipe, int level, const char* text) {
  if (!pipe.loop->debug()) return;
  PyObject* done = PyObject_CallFunction(pipe.state().note, "isO", level, text, pipe.self);
  Py_XDECREF(done);
  if (done == nullptr) PyErr_WriteUnraisable(pipe.self);
}

// --- reading

void end_reading(ReadPipe& pipe, PyObject* reason) {
  pipe.closing = true;
  stop_side(pipe, Side::kRead);
  if (!std::exchange(pipe.ended, true)) lose_soon(pipe, reason);
}

bool is_of_terminal(PyObject* exception) {  // whose other end was closed
  if (PyErr_GivenExceptionMatches(exception, PyExc_OSError) == 0) return false;
  PyObject* number = PyObject_GetAttrString(exception, "errno");
  const bool is = number != nullptr && PyLong_Check(number) && PyLong_AsLong(number) == EIO;
  Py_XDECREF(number);
  PyErr_Clear();
  return is;
}

// Takes the exception that is set, tells of it and closes. -1 for what has to leave the loop.
int fatal_reading(ReadPipe& pipe, const char* message) {
  if (must_leave()) return -1;
  const py::Error error = py::Error::fetch();
  int status = 0;
  if (is_of_terminal(error.exception())) {
    PyObject* done = PyObject_CallFunction(pipe.state().report_fatal, "OOs", pipe.self,
                                           error.exception(), message);
    Py_XDECREF(done);
    if (done == nullptr) PyErr_WriteUnraisable(pipe.self);
  } else {
    py::Error(error).restore();
    status = tell_exception(*pipe.loop, message, pipe.self, pipe.protocol);
  }
  if (pipe.loop != nullptr) end_reading(pipe, error.exception());
  return status;
}

int eof_job(Loop& loop, PyObject* self) {
  ReadPipe& pipe = reader_of(self);
  if (pipe.loop == nullptr) return 0;
  return tell_protocol(pipe, loop.state().names.eof_received, nullptr, 0);
}

int end_of_pipe(ReadPipe& pipe) {
  note_in_debug(pipe, kInfo, "%r was closed by peer");
  pipe.loop->push(eof_job, Py_NewRef(pipe.self));
  end_reading(pipe, nullptr);
  return 0;
}

// A bytes of what one read gives; null with `count` telling why not: 0 for the end, -1 for errno or
// an exception.
PyObject* read_some(ReadPipe& pipe, ssize_t& count) {
  int waiting = 0;
  if (pipe.last_read >= kLarge && ioctl(pipe.fd, FIONREAD, &waiting) == 0 &&
      static_cast<std::size_t>(waiting) >= kLarge) {
    const std::size_t size = std::min(static_cast<std::size_t>(waiting), Loop::kBufferSize);
    PyObject* data = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
    if (data == nullptr) {
      count = -1;
      return nullptr;
    }
    count = read(pipe.fd, PyBytes_AS_STRING(data), size);
    if (count > 0) {
      if (count < static_cast<ssize_t>(size)) _PyBytes_Resize(&data, count);
      return data;
    }
    const int error = errno;
    Py_DECREF(data);
    errno = error;
    return nullptr;
  }
  char* room = pipe.loop->buffer();
  count = read(pipe.fd, room, Loop::kBufferSize);
  return count <= 0 ? nullptr : PyBytes_FromStringAndSize(room, count);
}

int read_job(Loop& loop, PyObject* self) {
  ReadPipe& pipe = reader_of(self);
  if (pipe.closing || pipe.paused || pipe.loop == nullptr) return 0;
  ssize_t count = 0;
  PyObject* data = read_some(pipe, count);
  if (data == nullptr) {
    if (count == 0) return end_of_pipe(pipe);
    if (PyErr_Occurred() == nullptr) {
      if (would_block(errno)) return 0;
      PyErr_SetFromErrno(PyExc_OSError);
    }
    return fatal_reading(pipe, "Fatal read error on pipe transport");
  }
  pipe.last_read = static_cast<std::size_t>(count);
  const int status = tell_protocol(pipe, loop.state().names.data_received, &data, 1);
  Py_DECREF(data);
  return status;
}

int watch_reading(ReadPipe& pipe) {
  if (pipe.closing || pipe.paused) return 0;
  return watch_side(pipe, Side::kRead, read_job);
}

int reading_started(Loop&, PyObject* self) {
  ReadPipe& pipe = reader_of(self);
  if (pipe.loop == nullptr) return 0;
  if (watch_reading(pipe) < 0 && fatal_reading(pipe, "Fatal read error on pipe transport") < 0)
    return -1;
  return pipe.loop == nullptr ? 0 : waiter_done(pipe);
}

PyObject* pause_reading(PyObject* self, PyObject*) {
  ReadPipe& pipe = reader_of(self);
  if (pipe.closing || pipe.paused) Py_RETURN_NONE;
  pipe.paused = true;
  stop_side(pipe, Side::kRead);
  note_in_debug(pipe, kDebug, "%r pauses reading");
  Py_RETURN_NONE;
}

PyObject* resume_reading(PyObject* self, PyObject*) {
  ReadPipe& pipe = reader_of(self);
  if (pipe.closing || !pipe.paused) Py_RETURN_NONE;
  pipe.paused = false;
  if (watch_reading(pipe) < 0) return nullptr;
  note_in_debug(pipe, kDebug, "%r resumes reading");
  Py_RETURN_NONE;
}

PyObject* is_reading(PyObject* self, PyObject*) {
  const ReadPipe& pipe = reader_of(self);
  return PyBool_FromLong(pipe.paused || pipe.closing ? 0 : 1);
}

PyObject* close_reading(PyObject* self, PyObject*) {
  ReadPipe& pipe = reader_of(self);
  if (!pipe.closing && pipe.loop != nullptr) end_reading(pipe, nullptr);
  Py_RETURN_NONE;
}

// --- writing

void drop_pieces(WritePipe& pipe) {
  std::deque<Piece> gone;
  gone.swap(pipe.pieces);
  pipe.queued = 0;
  for (const Piece& each : gone) Py_DECREF(each.data);
}

void end_writing(WritePipe& pipe, PyObject* reason) {
  pipe.closing = true;
  stop_side(pipe, Side::kWrite);
  drop_pieces(pipe);
  stop_side(pipe, Side::kRead);
  if (!std::exchange(pipe.ended, true)) lose_soon(pipe, reason);
}

int fatal_writing(WritePipe& pipe, const char* message) {
  if (must_leave()) return -1;
  const py::Error error = py::Error::fetch();
  PyObject* done = PyObject_CallFunction(pipe.state().report_fatal, "OOs", pipe.self,
                                         error.exception(), message);
  Py_XDECREF(done);
  if (done == nullptr) {
    if (must_leave()) return -1;
    PyErr_WriteUnraisable(pipe.self);
  }
  if (pipe.loop != nullptr) end_writing(pipe, error.exception());
  return 0;
}

ssize_t put(const WritePipe& pipe, const void* data, std::size_t size) {
  if (pipe.socket) return send(pipe.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  return write(pipe.fd, data, size);
}

ssize_t put_pieces(const WritePipe& pipe) {
  iovec parts[kPieces];
  std::size_t count = 0;
  for (const Piece& piece : pipe.pieces) {
    if (count == kPieces) break;
    parts[count++] = {const_cast<char*>(piece.rest()), piece.size()};
  }
  if (!pipe.socket) return writev(pipe.fd, parts, static_cast<int>(count));
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = count;
  return sendmsg(pipe.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void forget_written(WritePipe& pipe, std::size_t count) {
  pipe.queued -= count;
  while (count > 0) {
    Piece& first = pipe.pieces.front();
    if (first.size() > count) {
      first.done += count;
      return;
    }
    count -= first.size();
    PyObject* data = first.data;
    pipe.pieces.pop_front();
    Py_DECREF(data);
  }
}

int write_failed(WritePipe& pipe) {
  PyErr_SetFromErrno(PyExc_OSError);
  ++pipe.lost;
  return fatal_writing(pipe, "Fatal write error on pipe transport");
}

int write_job(Loop& loop, PyObject* self) {
  WritePipe& pipe = writer_of(self);
  if (pipe.loop == nullptr || pipe.pieces.empty()) return 0;
  const ssize_t count = put_pieces(pipe);
  if (count < 0) return would_block(errno) ? 0 : write_failed(pipe);
  forget_written(pipe, static_cast<std::size_t>(count));
  if (pipe.queued > 0) return 0;
  stop_side(pipe, Side::kWrite);
  if (pipe.flow.paused) {
    const Entered entered(pipe.context);
    if (pipe.flow.maybe_resume(loop, self, pipe.protocol, 0) < 0) return -1;
  }
  if (!pipe.closing || pipe.queued > 0 || std::exchange(pipe.ended, true)) return 0;
  return lose_now(pipe, Py_None);
}

// Readable means that nobody reads any more: it is the other end that was closed.
int reader_gone(Loop&, PyObject* self) {
  WritePipe& pipe = writer_of(self);
  if (pipe.loop == nullptr) return 0;
  note_in_debug(pipe, kInfo, "%r was closed by peer");
  PyObject* reason = pipe.queued == 0 ? nullptr : PyObject_CallNoArgs(PyExc_BrokenPipeError);
  if (PyErr_Occurred() != nullptr) return -1;
  end_writing(pipe, reason);
  Py_XDECREF(reason);
  return 0;
}

int writing_started(Loop&, PyObject* self) {
  WritePipe& pipe = writer_of(self);
  if (pipe.loop == nullptr) return 0;
  if (pipe.watches_reader && !pipe.closing && watch_side(pipe, Side::kRead, reader_gone) < 0 &&
      fatal_writing(pipe, "Fatal error on pipe transport") < 0)
    return -1;
  return pipe.loop == nullptr ? 0 : waiter_done(pipe);
}

bool warn_lost(WritePipe& pipe) {
  State* state = pipe.lost < Endpoint::kLostWrites ? nullptr : state_of_type(Py_TYPE(pipe.self));
  if (state != nullptr) {
    PyObject* done =
        PyObject_CallFunction(state->note, "is", kWarning,
                              "pipe closed by peer or os.write(pipe, data) raised exception.");
    Py_XDECREF(done);
    if (done == nullptr) return false;
  }
  ++pipe.lost;
  return true;
}

int enqueue(WritePipe& pipe, PyObject* data, const Py_buffer& view, std::size_t done) {
  // Only what cannot change is kept as it is.
  PyObject* whole = PyBytes_CheckExact(data)
                        ? Py_NewRef(data)
                        : PyBytes_FromStringAndSize(static_cast<const char*>(view.buf) + done,
                                                    view.len - static_cast<Py_ssize_t>(done));
  if (whole == nullptr) return -1;
  pipe.pieces.push_back({whole, whole == data ? done : 0});
  pipe.queued += pipe.pieces.back().size();
  return pipe.flow.maybe_pause(*pipe.loop, pipe.self, pipe.protocol, pipe.queued);
}

int write_view(WritePipe& pipe, PyObject* data, const Py_buffer& view) {
  std::size_t done = 0;
  if (pipe.pieces.empty()) {
    const ssize_t count = put(pipe, view.buf, static_cast<std::size_t>(view.len));
    if (count < 0 && !would_block(errno)) return write_failed(pipe);
    if (count == view.len) return 0;
    done = static_cast<std::size_t>(std::max<ssize_t>(count, 0));
    if (watch_side(pipe, Side::kWrite, write_job) < 0) return -1;
  }
  return enqueue(pipe, data, view, done);
}

PyObject* write_data(PyObject* self, PyObject* data) {
  WritePipe& pipe = writer_of(self);
  if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
    PyObject* text = PyObject_Repr(data);
    if (text != nullptr) PyErr_SetObject(PyExc_AssertionError, text);
    Py_XDECREF(text);
    return nullptr;
  }
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return nullptr;
  int status = 0;
  if (view.len > 0) {
    if (pipe.lost != 0 || pipe.closing || pipe.loop == nullptr) {
      status = warn_lost(pipe) ? 0 : -1;
    } else {
      const py::Ref loop_kept = py::Ref::borrow(pipe.loop_object);
      status = write_view(pipe, data, view);
    }
  }
  PyBuffer_Release(&view);
  if (status < 0) return nullptr;
  Py_RETURN_NONE;
}

PyObject* close_writing(PyObject* self, PyObject*) {
  WritePipe& pipe = writer_of(self);
  if (pipe.closing || pipe.loop == nullptr) Py_RETURN_NONE;
  pipe.closing = true;
  if (pipe.queued > 0) Py_RETURN_NONE;
  stop_side(pipe, Side::kRead);
  if (!std::exchange(pipe.ended, true)) lose_soon(pipe, nullptr);
  Py_RETURN_NONE;
}

PyObject* abort_writing(PyObject* self, PyObject*) {
  if (writer_of(self).loop != nullptr) end_writing(writer_of(self), nullptr);
  Py_RETURN_NONE;
}

PyObject* can_write_eof(PyObject*, PyObject*) { Py_RETURN_TRUE; }

PyObject* set_limits(PyObject* self, PyObject* arguments, PyObject* options) {
  WritePipe& pipe = writer_of(self);
  if (pipe.flow.set_limits(arguments, options) < 0) return nullptr;
  if (pipe.loop != nullptr &&
      pipe.flow.maybe_pause(*pipe.loop, self, pipe.protocol, pipe.queued) < 0)
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* buffer_size(PyObject* self, PyObject*) {
  return PyLong_FromSize_t(writer_of(self).queued);
}

PyObject* get_protocol_paused(PyObject* self, void*) {
  return PyBool_FromLong(writer_of(self).flow.paused ? 1 : 0);
}
PyObject* get_paused(PyObject* self, void*) {
  return PyBool_FromLong(reader_of(self).paused ? 1 : 0);
}

// Whoever takes the pipe away closes it.
int set_pipe(PyObject* self, PyObject* value, void*) {
  PyObject* file = value == nullptr || value == Py_None ? nullptr : Py_NewRef(value);
  Py_XSETREF(fields_of<Endpoint>(self).file, file);
  return 0;
}

// --- as text

const char* state_of_pipe(const Endpoint& pipe) {
  return pipe.file == nullptr ? " closed" : pipe.closing ? " closing" : "";
}

// Whether it is watched, or that nobody can watch it any more.
const char* polling(const Endpoint& pipe, Side side) {
  if (pipe.file == nullptr) return "closed";
  if (pipe.loop == nullptr || pipe.loop->closed) return "open";
  return watches_side(pipe, side) ? "polling" : "idle";
}

PyObject* repr_reader(PyObject* self) {
  const ReadPipe& pipe = reader_of(self);
  return PyUnicode_FromFormat("<ReadPipeTransport%s fd=%d %s>", state_of_pipe(pipe), pipe.fd,
                              polling(pipe, Side::kRead));
}

PyObject* repr_writer(PyObject* self) {
  const WritePipe& pipe = writer_of(self);
  return PyUnicode_FromFormat("<WritePipeTransport%s fd=%d %s bufsize=%zu>", state_of_pipe(pipe),
                              pipe.fd, polling(pipe, Side::kWrite), pipe.queued);
}

// --- their making and their end

// What `fd` is, and from now on it does not block. 0 with ValueError or OSError set.
mode_t prepare(const Endpoint& pipe, const char* refusal) {
  struct stat about {};
  if (fstat(pipe.fd, &about) < 0) {
    PyErr_SetFromErrno(PyExc_OSError);
    return 0;
  }
  if (!S_ISFIFO(about.st_mode) && !S_ISSOCK(about.st_mode) && !S_ISCHR(about.st_mode)) {
    PyErr_SetString(PyExc_ValueError, refusal);
    return 0;
  }
  const int flags = fcntl(pipe.fd, F_GETFL);
  if (flags < 0 || fcntl(pipe.fd, F_SETFL, flags | O_NONBLOCK) < 0) {
    PyErr_SetFromErrno(PyExc_OSError);
    return 0;
  }
  return about.st_mode;
}

struct Made {
  PyObject* pipe;
  PyObject* protocol;
  PyObject* waiter = nullptr;
  PyObject* extra = nullptr;
};

bool parse(PyObject* arguments, PyObject* options, Made& made) {
  static const char* names[] = {"pipe", "protocol", "waiter", "extra", nullptr};
  return PyArg_ParseTupleAndKeywords(arguments, options, "OO|OO", const_cast<char**>(names),
                                     &made.pipe, &made.protocol, &made.waiter, &made.extra) != 0;
}

int open_pipe(Endpoint& pipe, PyObject* self, Loop& loop, const Made& made) {
  if (open_endpoint(pipe, self, loop, made.pipe, made.protocol, made.extra) < 0) return -1;
  return PyDict_SetItem(pipe.extra, loop.state().names.pipe, made.pipe);
}

int fill(ReadPipe& pipe, PyObject* self, Loop& loop, const Made& made) {
  if (open_pipe(pipe, self, loop, made) < 0 ||
      prepare(pipe, "Pipe transport is for pipes/sockets only.") == 0)
    return -1;
  return start_endpoint(pipe, made.waiter, reading_started);
}

int fill(WritePipe& pipe, PyObject* self, Loop& loop, const Made& made) {
  if (open_pipe(pipe, self, loop, made) < 0) return -1;
  const mode_t mode =
      prepare(pipe, "Pipe transport is only for pipes, sockets and character devices");
  if (mode == 0) return -1;
  pipe.socket = S_ISSOCK(mode);
  pipe.watches_reader = pipe.socket || S_ISFIFO(mode);
  return start_endpoint(pipe, made.waiter, writing_started);
}

template <typename Fields>
PyObject* make(PyObject* loop_object, PyTypeObject* type, PyObject* arguments, PyObject* options) {
  Made made{};
  if (!parse(arguments, options, made)) return nullptr;
  Loop& loop = *reinterpret_cast<LoopObject*>(loop_object)->loop;
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  auto& pipe = *new (&fields_of<Fields>(self)) Fields;
  pipe.shared = loop.state().shared;
  ++pipe.shared->transports;
  if (fill(pipe, self, loop, made) == 0) return self;
  Py_CLEAR(pipe.file);  // the caller's, who closes it
  Py_DECREF(self);
  return nullptr;
}

PyObject* make_reader(PyObject* self, PyObject* arguments, PyObject* options) {
  Loop& loop = *reinterpret_cast<LoopObject*>(self)->loop;
  return make<ReadPipe>(self, loop.state().read_pipe_type, arguments, options);
}

PyObject* make_writer(PyObject* self, PyObject* arguments, PyObject* options) {
  Loop& loop = *reinterpret_cast<LoopObject*>(self)->loop;
  return make<WritePipe>(self, loop.state().write_pipe_type, arguments, options);
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return traverse_endpoint(fields_of<Endpoint>(self), visit, arg);
}

int clear_reader(PyObject* self) {
  clear_endpoint(reader_of(self));
  return 0;
}

int clear_writer(PyObject* self) {
  drop_pieces(writer_of(self));
  clear_endpoint(writer_of(self));
  return 0;
}

template <typename Fields>
void dealloc(PyObject* self, int (*clear)(PyObject*)) {
  if (PyObject_CallFinalizerFromDealloc(self) < 0) return;
  PyTypeObject* type = Py_TYPE(self);
  Shared& shared = *fields_of<Fields>(self).shared;
  PyObject_GC_UnTrack(self);
  PyObject_ClearWeakRefs(self);
  clear(self);
  fields_of<Fields>(self).~Fields();
  shared.leave(shared.transports);
  type->tp_free(self);
  Py_DECREF(type);
}

void dealloc_reader(PyObject* self) { dealloc<ReadPipe>(self, clear_reader); }
void dealloc_writer(PyObject* self) { dealloc<WritePipe>(self, clear_writer); }

PyMethodDef g_reader_methods[] = {
    {"pause_reading", pause_reading, METH_NOARGS, "pause_reading(): receive nothing for now."},
    {"resume_reading", resume_reading, METH_NOARGS, "resume_reading(): receive again."},
    {"is_reading", is_reading, METH_NOARGS, "is_reading(): whether it receives."},
    {"close", close_reading, METH_NOARGS, "close(): close the pipe."},
    {"is_closing", endpoint_is_closing, METH_NOARGS,
     "is_closing(): whether it closes or is closed."},
    {"set_protocol", endpoint_set_protocol, METH_O,
     "set_protocol(protocol): whom to tell from now on."},
    {"get_protocol", endpoint_get_protocol, METH_NOARGS, "get_protocol(): the protocol."},
    {"get_extra_info", as_method(endpoint_get_extra_info), METH_VARARGS | METH_KEYWORDS,
     "get_extra_info(name, default=None): 'pipe'."},
    {}};

PyMethodDef g_writer_methods[] = {
    {"write", write_data, METH_O, "write(data): write it, or queue it until there is room."},
    {"write_eof", close_writing, METH_NOARGS, "write_eof(): close()."},
    {"can_write_eof", can_write_eof, METH_NOARGS, "can_write_eof(): True."},
    {"close", close_writing, METH_NOARGS, "close(): close when what is queued is written."},
    {"abort", abort_writing, METH_NOARGS, "abort(): close now; what is queued is lost."},
    {"is_closing", endpoint_is_closing, METH_NOARGS,
     "is_closing(): whether it closes or is closed."},
    {"set_protocol", endpoint_set_protocol, METH_O,
     "set_protocol(protocol): whom to tell from now on."},
    {"get_protocol", endpoint_get_protocol, METH_NOARGS, "get_protocol(): the protocol."},
    {"get_extra_info", as_method(endpoint_get_extra_info), METH_VARARGS | METH_KEYWORDS,
     "get_extra_info(name, default=None): 'pipe'."},
    {"set_write_buffer_limits", as_method(set_limits), METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits(high=None, low=None): when to pause the protocol, in bytes."},
    {"get_write_buffer_limits", endpoint_limits, METH_NOARGS,
     "get_write_buffer_limits(): (low, high) in bytes."},
    {"get_write_buffer_size", buffer_size, METH_NOARGS,
     "get_write_buffer_size(): bytes that wait."},
    {}};

PyGetSetDef g_reader_attributes[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {"_loop", endpoint_loop, nullptr, nullptr, nullptr},
    {"_pipe", endpoint_file, set_pipe, nullptr, nullptr},
    {"_fileno", endpoint_fd, nullptr, nullptr, nullptr},
    {"_extra", endpoint_extra, nullptr, nullptr, nullptr},
    {"_protocol", endpoint_protocol, nullptr, nullptr, nullptr},
    {"_closing", endpoint_closing, nullptr, nullptr, nullptr},
    {"_paused", get_paused, nullptr, nullptr, nullptr},
    {}};

PyGetSetDef g_writer_attributes[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {"_loop", endpoint_loop, nullptr, nullptr, nullptr},
    {"_pipe", endpoint_file, set_pipe, nullptr, nullptr},
    {"_fileno", endpoint_fd, nullptr, nullptr, nullptr},
    {"_extra", endpoint_extra, nullptr, nullptr, nullptr},
    {"_protocol", endpoint_protocol, nullptr, nullptr, nullptr},
    {"_conn_lost", endpoint_lost, nullptr, nullptr, nullptr},
    {"_closing", endpoint_closing, nullptr, nullptr, nullptr},
    {"_protocol_paused", get_protocol_paused, nullptr, nullptr, nullptr},
    {}};

PyType_Slot g_reader_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc_reader)},
                                {Py_tp_finalize, reinterpret_cast<void*>(finalize_endpoint)},
                                {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(clear_reader)},
                                {Py_tp_repr, reinterpret_cast<void*>(repr_reader)},
                                {Py_tp_methods, g_reader_methods},
                                {Py_tp_getset, g_reader_attributes},
                                {0, nullptr}};

PyType_Slot g_writer_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc_writer)},
                                {Py_tp_finalize, reinterpret_cast<void*>(finalize_endpoint)},
                                {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(clear_writer)},
                                {Py_tp_repr, reinterpret_cast<void*>(repr_writer)},
                                {Py_tp_methods, g_writer_methods},
                                {Py_tp_getset, g_writer_attributes},
                                {0, nullptr}};

PyMethodDef g_loop_methods[] = {
    {"_make_read_pipe_transport", as_method(make_reader), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"_make_write_pipe_transport", as_method(make_writer), METH_VARARGS | METH_KEYWORDS, nullptr},
    {}};

}  // namespace

int pipes_exec(PyObject* module, State& state) {
  state.read_pipe_type = endpoint_type(module, "erlang_loop.ReadPipeTransport", sizeof(ReadPipe),
                                       state.read_pipe_class, g_reader_slots);
  if (state.read_pipe_type == nullptr) return -1;
  state.write_pipe_type = endpoint_type(module, "erlang_loop.WritePipeTransport", sizeof(WritePipe),
                                        state.write_pipe_class, g_writer_slots);
  return state.write_pipe_type == nullptr ? -1 : add_loop_methods(state, g_loop_methods);
}

}  // namespace loop
