#include "cnode/loop/stream_reader.hpp"

#include <cstring>
#include <utility>

#include "cnode/py/error.hpp"

namespace loop {
namespace {

template <typename Visit>
int each(StreamReaderState& state, Visit visit) {
  StreamReaderState::Names& names = state.names;
  for (PyObject** place :
       {&state.reader_class, &state.feed_data, &state.data_received, &names.buffer,
        &names.cancelled, &names.eof, &names.feed_data, &names.limit, &names.pause_reading,
        &names.paused, &names.reader_wr, &names.set_result, &names.transport, &names.waiter}) {
    if (const int status = visit(*place)) return status;
  }
  return 0;
}

void look_up(StreamReaderState& state) {
  const py::Ref asyncio = py::import("asyncio");
  state.reader_class = py::attribute(asyncio.get(), "StreamReader").release();
  state.feed_data = py::attribute(state.reader_class, "feed_data").release();
  const py::Ref protocol = py::attribute(asyncio.get(), "StreamReaderProtocol");
  state.data_received = py::attribute(protocol.get(), "data_received").release();
  StreamReaderState::Names& names = state.names;
  const std::pair<PyObject*&, const char*> texts[] = {{names.buffer, "_buffer"},
                                                      {names.cancelled, "cancelled"},
                                                      {names.eof, "_eof"},
                                                      {names.feed_data, "feed_data"},
                                                      {names.limit, "_limit"},
                                                      {names.pause_reading, "pause_reading"},
                                                      {names.paused, "_paused"},
                                                      {names.reader_wr, "_stream_reader_wr"},
                                                      {names.set_result, "set_result"},
                                                      {names.transport, "_transport"},
                                                      {names.waiter, "_waiter"}};
  for (const auto& [name, text] : texts)
    name = py::check(PyUnicode_InternFromString(text)).release();
}

py::Ref get(const py::Ref& object, PyObject* name) {
  return py::Ref::steal(PyObject_GetAttr(object.get(), name));
}

// 0, 1, or -1 with an exception set.
int is_true(const py::Ref& object, PyObject* name) {
  const py::Ref value = get(object, name);
  return value ? PyObject_IsTrue(value.get()) : -1;
}

}  // namespace

int stream_reader_exec(StreamReaderState& state) {
  try {
    look_up(state);
    return 0;
  } catch (py::Error& error) {
    std::move(error).restore();
    return -1;
  }
}

int stream_reader_traverse(StreamReaderState& state, visitproc visit, void* arg) {
  return each(state, [&](PyObject*& object) {
    Py_VISIT(object);
    return 0;
  });
}

void stream_reader_clear(StreamReaderState& state) {
  each(state, [](PyObject*& object) {
    Py_CLEAR(object);
    return 0;
  });
}

bool is_stream_protocol(const StreamReaderState& state, PyObject* protocol) {
  const py::Ref method = py::Ref::steal(PyObject_GetAttrString(protocol, "data_received"));
  if (!method) PyErr_Clear();  // a BufferedProtocol has none
  return method && PyMethod_Check(method.get()) &&
         PyMethod_GET_FUNCTION(method.get()) == state.data_received;
}

int StreamReaderFeed::find(PyObject* protocol) {
  const py::Ref weak = py::Ref::steal(PyObject_GetAttr(protocol, state_.names.reader_wr));
  if (!weak) return -1;
  if (!PyWeakref_CheckRef(weak.get())) return 0;
  py::Ref reader = py::Ref::steal(PyObject_CallNoArgs(weak.get()));
  if (!reader) return -1;
  if (reader.get() == Py_None) return 0;
  reader_ = std::move(reader);
  return look_at_reader();
}

// Its buffer, if feed_data() would be asyncio's and not complain.
int StreamReaderFeed::look_at_reader() {
  if (reinterpret_cast<PyObject*>(Py_TYPE(reader_.get())) != state_.reader_class) return 0;
  const py::Ref feed = get(reader_, state_.names.feed_data);
  if (!feed) return -1;
  if (!PyMethod_Check(feed.get()) || PyMethod_GET_FUNCTION(feed.get()) != state_.feed_data)
    return 0;
  const int eof = is_true(reader_, state_.names.eof);
  if (eof != 0) return eof < 0 ? -1 : 0;
  py::Ref buffer = get(reader_, state_.names.buffer);
  if (!buffer) return -1;
  if (PyByteArray_CheckExact(buffer.get())) buffer_ = std::move(buffer);
  return 0;
}

char* StreamReaderFeed::room(std::size_t size) {
  before_ = static_cast<std::size_t>(PyByteArray_GET_SIZE(buffer_.get()));
  if (PyByteArray_Resize(buffer_.get(), static_cast<Py_ssize_t>(before_ + size)) < 0)
    return nullptr;
  return PyByteArray_AS_STRING(buffer_.get()) + before_;
}

int StreamReaderFeed::fed(std::size_t count) {
  if (PyByteArray_Resize(buffer_.get(), static_cast<Py_ssize_t>(before_ + count)) < 0) return -1;
  if (count == 0) return 0;
  return wake() < 0 ? -1 : pause_if_full();
}

int StreamReaderFeed::give(PyObject* data) {
  if (!reader_) return 0;
  if (buffer_ && PyBytes_CheckExact(data)) {
    const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(data));
    char* place = room(size);
    if (place == nullptr) return -1;
    std::memcpy(place, PyBytes_AS_STRING(data), size);
    return fed(size);
  }
  const py::Ref done =
      py::Ref::steal(PyObject_CallMethodOneArg(reader_.get(), state_.names.feed_data, data));
  return done ? 0 : -1;
}

// StreamReader._wakeup_waiter().
int StreamReaderFeed::wake() {
  const py::Ref waiter = get(reader_, state_.names.waiter);
  if (!waiter) return -1;
  if (waiter.get() == Py_None) return 0;
  if (PyObject_SetAttr(reader_.get(), state_.names.waiter, Py_None) < 0) return -1;
  const py::Ref cancelled =
      py::Ref::steal(PyObject_CallMethodNoArgs(waiter.get(), state_.names.cancelled));
  const int is_cancelled = cancelled ? PyObject_IsTrue(cancelled.get()) : -1;
  if (is_cancelled != 0) return is_cancelled < 0 ? -1 : 0;
  const py::Ref set =
      py::Ref::steal(PyObject_CallMethodOneArg(waiter.get(), state_.names.set_result, Py_None));
  return set ? 0 : -1;
}

int StreamReaderFeed::pause_if_full() {
  const py::Ref limit = get(reader_, state_.names.limit);
  if (!limit) return -1;
  const double bound = PyFloat_AsDouble(limit.get());  // of any size
  if (bound == -1.0 && PyErr_Occurred() != nullptr) return -1;
  if (static_cast<double>(PyByteArray_GET_SIZE(buffer_.get())) <= 2 * bound) return 0;
  const py::Ref transport = get(reader_, state_.names.transport);
  if (!transport) return -1;
  const int paused = is_true(reader_, state_.names.paused);
  if (transport.get() == Py_None || paused != 0) return paused < 0 ? -1 : 0;
  const py::Ref done =
      py::Ref::steal(PyObject_CallMethodNoArgs(transport.get(), state_.names.pause_reading));
  if (done) return PyObject_SetAttr(reader_.get(), state_.names.paused, Py_True);
  if (!PyErr_ExceptionMatches(PyExc_NotImplementedError)) return -1;
  PyErr_Clear();
  return PyObject_SetAttr(reader_.get(), state_.names.transport, Py_None);  // cannot be paused
}

}  // namespace loop
