#include "cnode/loop/tls_engine.hpp"

#include <algorithm>
#include <climits>
#include <string_view>
#include <vector>

namespace loop {
namespace {

constexpr std::size_t kSmall = 4096;          // plaintext that is copied rather than cut to size
constexpr std::size_t kRecord = 16 * 1024;    // plaintext in a record, at most
constexpr std::size_t kRecordOverhead = 128;  // what a record adds to it, generously

py::Ref bytes_of(const char* data, std::size_t size) {
  return py::check(PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(size)));
}

// Lets go of the GIL if a callback that OpenSSL makes into Python would wait for it:
// PyGILState_Ensure() takes it for granted that a thread belongs to one interpreter.
class CallbackRoom {
 public:
  CallbackRoom()
      : saved_(PyGILState_GetThisThreadState() == PyThreadState_Get() ? nullptr
                                                                      : PyEval_SaveThread()) {}
  ~CallbackRoom() {
    if (saved_ != nullptr) PyEval_RestoreThread(saved_);
  }
  CallbackRoom(const CallbackRoom&) = delete;
  CallbackRoom& operator=(const CallbackRoom&) = delete;

 private:
  PyThreadState* saved_;
};

class DirectEngine final : public TlsEngine {
 public:
  DirectEngine(TlsState& state, PyObject* ssl_object, SSL* ssl)
      : TlsEngine(state),
        library_(*state.library),
        wire_(library_),
        ssl_(ssl),
        ssl_object_(py::Ref::borrow(ssl_object)) {}

  bool attach() { return wire_.attach(ssl_); }

  void offer(const char* data, std::size_t size) override { wire_.offer(data, size); }
  void keep() override { wire_.keep(); }
  std::size_t unread() override { return wire_.unread(); }
  std::size_t bound() override;
  std::size_t read(char* to, std::size_t room, End& end) override;
  std::size_t write(const char* from, std::size_t size) override;
  void expect(std::size_t size, std::size_t pieces, bool viewed) override {
    wire_.expect(size + (size / kRecord + pieces) * overhead_, viewed ? &state_.scratch : nullptr);
  }
  std::size_t unsent() override { return wire_.unsent(); }
  py::Ref take() override { return wire_.take(); }
  void send_to(PyObject* transport) override;
  void drop_unsent() override { wire_.drop_unsent(); }
  int traverse(visitproc visit, void* arg) override {
    Py_VISIT(ssl_object_.get());
    return TlsEngine::traverse(visit, arg);
  }
  void clear() override {
    ssl_ = nullptr;
    ssl_object_.reset();
    TlsEngine::clear();
  }

 private:
  int read_once(char* to, std::size_t room);
  int write_once(const char* from, std::size_t size);
  End why(int result);
  void fail(PyObject* method, PyObject* argument);
  void clear_errors() {
    if (library_.ERR_peek_error() != 0) library_.ERR_clear_error();
  }

  const LibSsl& library_;
  Wire wire_;
  SSL* ssl_;  // lives as long as the object
  py::Ref ssl_object_;
  std::size_t overhead_ = kRecordOverhead;
  bool measured_ = false;
};

std::size_t DirectEngine::bound() {
  // A record that OpenSSL has begun to take is not smaller than what it will give.
  return wire_.unread() + wire_.taken() + static_cast<std::size_t>(library_.SSL_pending(ssl_));
}

int DirectEngine::read_once(char* to, std::size_t room) {
  const CallbackRoom callbacks;
  return library_.SSL_read(ssl_, to, static_cast<int>(std::min<std::size_t>(room, INT_MAX)));
}

int DirectEngine::write_once(const char* from, std::size_t size) {
  const CallbackRoom callbacks;
  return library_.SSL_write(ssl_, from, static_cast<int>(std::min<std::size_t>(size, INT_MAX)));
}

End DirectEngine::why(int result) {
  switch (library_.SSL_get_error(ssl_, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      return End::kWait;
    case SSL_ERROR_ZERO_RETURN:
      return End::kClosed;
    default:
      return End::kFailed;
  }
}

// OpenSSL's queue of errors still tells what went wrong, and a connection that has failed fails
// again: Python's own call makes the exception of it, with the text, library and reason it has
// there.
void DirectEngine::fail(PyObject* method, PyObject* argument) {
  py::Ref result = py::Ref::steal(PyObject_CallMethodOneArg(ssl_object_.get(), method, argument));
  if (result) PyErr_SetString(state_.ssl_error, "TLS connection failed");
  failure_ = py::Ref::borrow(py::Error::fetch().exception());
  clear_errors();
}

std::size_t DirectEngine::read(char* to, std::size_t room, End& end) {
  std::size_t got = 0;
  end = End::kFull;
  clear_errors();
  while (got < room) {
    const int count = read_once(to + got, room - got);
    if (count <= 0) {
      end = why(count);
      break;
    }
    got += static_cast<std::size_t>(count);
    wire_.settle();
    if (wire_.unread() == 0 && library_.SSL_has_pending(ssl_) == 0) {
      end = End::kWait;  // as another SSL_read would say, only sooner
      break;
    }
  }
  if (end == End::kFailed) {
    py::Ref one = py::check(PyLong_FromLong(1));
    fail(state_.names.read, one.get());
    if (PyErr_GivenExceptionMatches(failure_.get(), state_.again) != 0) {
      failure_.reset();
      end = End::kWait;
    }
  }
  return got;
}

std::size_t DirectEngine::write(const char* from, std::size_t size) {
  std::size_t done = 0;
  clear_errors();
  while (done < size) {
    const std::size_t before = wire_.unsent();
    const int count = write_once(from + done, size - done);
    if (count <= 0) {
      if (why(count) == End::kWait) break;
      fail(state_.names.write, py::check(PyBytes_FromStringAndSize(nullptr, 0)).get());
      if (PyErr_GivenExceptionMatches(failure_.get(), state_.again) != 0) break;
      throw py::Error(take_failure());
    }
    done += static_cast<std::size_t>(count);
    // How much a record adds is the same for every record, or nearly: what is sent later gets as
    // much room as it takes.
    const std::size_t added = wire_.unsent() - before - static_cast<std::size_t>(count);
    if (added <= kRecordOverhead) overhead_ = measured_ ? std::max(overhead_, added) : added;
    measured_ = true;
  }
  return done;
}

void DirectEngine::send_to(PyObject* transport) {
  const std::string_view first = wire_.sink();
  const std::vector<char> rest = wire_.take_rest();
  int status = 0;
  if (!first.empty()) status = state_.write_native(transport, first.data(), first.size());
  wire_.drop_sink();
  if (status == 0 && !rest.empty())
    status = state_.write_native(transport, rest.data(), rest.size());
  py::check_status(status);
}

class PythonEngine final : public TlsEngine {
 public:
  PythonEngine(TlsState& state, PyObject* ssl_object, bool genuine, PyObject* incoming,
               PyObject* outgoing)
      : TlsEngine(state),
        ssl_object_(py::Ref::borrow(ssl_object)),
        incoming_(py::Ref::borrow(incoming)),
        outgoing_(py::Ref::borrow(outgoing)),
        genuine_(genuine) {}

  void offer(const char* data, std::size_t size) override;
  void keep() override {}
  std::size_t unread() override { return pending(incoming_.get()); }
  std::size_t bound() override { return unread() + taken(); }
  std::size_t read(char* to, std::size_t room, End& end) override;
  std::size_t write(const char* from, std::size_t size) override;
  void expect(std::size_t, std::size_t, bool) override {}
  std::size_t unsent() override { return pending(outgoing_.get()); }
  py::Ref take() override;
  void drop_unsent() override { take(); }
  int traverse(visitproc visit, void* arg) override {
    Py_VISIT(ssl_object_.get());
    Py_VISIT(incoming_.get());
    Py_VISIT(outgoing_.get());
    return TlsEngine::traverse(visit, arg);
  }
  void clear() override {
    ssl_object_.reset();
    incoming_.reset();
    outgoing_.reset();
    TlsEngine::clear();
  }

 private:
  std::size_t pending(PyObject* bio);
  // What the object has taken from the BIO and not given back as plaintext.
  std::size_t taken() { return offered_ - unread(); }
  bool nothing_left();
  std::size_t call(PyObject* method, char* memory, std::size_t size, int access);

  py::Ref ssl_object_, incoming_, outgoing_;
  std::size_t offered_ = 0;  // since the last plaintext
  bool genuine_;
};

void PythonEngine::offer(const char* data, std::size_t size) {
  py::Ref bytes = bytes_of(data, size);
  call_method(incoming_.get(), state_.names.write, bytes.get());
  offered_ += size;
}

std::size_t PythonEngine::pending(PyObject* bio) {
  py::Ref number = py::check(PyObject_GetAttr(bio, state_.names.pending));
  const std::size_t count = PyLong_AsSize_t(number.get());
  if (PyErr_Occurred() != nullptr) py::throw_fetched();
  return count;
}

bool PythonEngine::nothing_left() {
  if (!genuine_ || unread() != 0) return false;
  py::Ref number = call_method(ssl_object_.get(), state_.names.pending);
  return PyLong_AsLong(number.get()) == 0;
}

// read(size, view) or write(view), with a view that does not outlive the call.
std::size_t PythonEngine::call(PyObject* method, char* memory, std::size_t size, int access) {
  const auto length = static_cast<Py_ssize_t>(size);
  py::Ref view = py::check(PyMemoryView_FromMemory(memory, length, access));
  py::Ref result;
  if (access == PyBUF_WRITE) {
    py::Ref number = py::check(PyLong_FromSsize_t(length));
    result = py::Ref::steal(
        PyObject_CallMethodObjArgs(ssl_object_.get(), method, number.get(), view.get(), nullptr));
  } else {
    result = py::Ref::steal(PyObject_CallMethodOneArg(ssl_object_.get(), method, view.get()));
  }
  if (!result) py::throw_fetched();
  call_method(view.get(), state_.names.release);
  const std::size_t count = PyLong_AsSize_t(result.get());
  if (PyErr_Occurred() != nullptr) py::throw_fetched();
  return std::min(count, size);
}

std::size_t PythonEngine::read(char* to, std::size_t room, End& end) {
  std::size_t got = 0;
  end = End::kFull;
  try {
    while (got < room) {
      const std::size_t count = call(state_.names.read, to + got, room - got, PyBUF_WRITE);
      if (count == 0) {
        end = End::kClosed;
        break;
      }
      got += count;
      offered_ = unread();
      if (nothing_left()) {
        end = End::kWait;
        break;
      }
    }
  } catch (const py::Error& error) {
    end = error.matches(state_.again) ? End::kWait : End::kFailed;
    if (end == End::kFailed) failure_ = py::Ref::borrow(error.exception());
  }
  return got;
}

std::size_t PythonEngine::write(const char* from, std::size_t size) {
  std::size_t done = 0;
  try {
    while (done < size)
      done += call(state_.names.write, const_cast<char*>(from) + done, size - done, PyBUF_READ);
  } catch (const py::Error& error) {
    if (!error.matches(state_.again)) throw;
  }
  return done;
}

py::Ref PythonEngine::take() {
  py::Ref data = call_method(outgoing_.get(), state_.names.read);
  if (PyBytes_Check(data.get()) != 0 && PyBytes_GET_SIZE(data.get()) == 0) data.reset();
  return data;
}

// Whether the object's reading and writing is that of ssl.SSLObject itself.
bool is_genuine(const TlsState& state, PyObject* object) {
  auto* base = reinterpret_cast<PyTypeObject*>(state.ssl_object);
  if (PyObject_TypeCheck(object, base) == 0) return false;
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  const py::Ref read = py::check(PyObject_GetAttr(type, state.names.read));
  const py::Ref write = py::check(PyObject_GetAttr(type, state.names.write));
  return read.get() == state.ssl_object_read && write.get() == state.ssl_object_write;
}

// Whether `ssl` is the one that reads from `incoming`: what is put into the one must show up in the
// other.
bool reads_from(TlsState& state, SSL* ssl, PyObject* incoming) {
  const LibSsl& library = *state.library;
  BIO* bio = library.SSL_get_rbio(ssl);
  if (bio == nullptr || library.BIO_method_type(bio) != BIO_TYPE_MEM) return false;
  if (library.BIO_ctrl(bio, BIO_CTRL_PENDING, 0, nullptr) != 0) return false;
  call_method(incoming, state.names.write, bytes_of("proof", 5).get());
  const bool proven = library.BIO_ctrl(bio, BIO_CTRL_PENDING, 0, nullptr) == 5;
  call_method(incoming, state.names.read);
  return proven;
}

std::unique_ptr<TlsEngine> direct_engine(TlsState& state, const TlsConnection& connection,
                                         SSL* ssl) {
  if (state.library == nullptr || ssl == nullptr) return nullptr;
  if (!is_genuine(state, connection.ssl_object.get())) return nullptr;
  if (!reads_from(state, ssl, connection.incoming.get())) return nullptr;
  auto engine = std::make_unique<DirectEngine>(state, connection.ssl_object.get(), ssl);
  if (!engine->attach()) return nullptr;
  return engine;
}

}  // namespace

py::Ref TlsEngine::read_all(End& end) {
  std::size_t room = bound();
  if (room <= kSmall) {
    char buffer[kSmall];
    const std::size_t got = read(buffer, sizeof(buffer), end);
    if (end != End::kFull) return got == 0 ? py::Ref() : bytes_of(buffer, got);
    py::Ref start = bytes_of(buffer, got);
    py::Ref rest = read_all(end);
    if (!rest) return start;
    PyObject* whole = start.release();
    PyBytes_Concat(&whole, rest.get());
    return py::check(whole);
  }
  PyObject* bytes =
      py::check(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(room))).release();
  std::size_t got = 0;
  for (;;) {
    try {
      got += read(PyBytes_AS_STRING(bytes) + got, room - got, end);
    } catch (...) {
      Py_DECREF(bytes);
      throw;
    }
    if (end != End::kFull) break;
    room *= 2;  // more plaintext than ciphertext: it was compressed
    if (_PyBytes_Resize(&bytes, static_cast<Py_ssize_t>(room)) < 0) py::throw_fetched();
  }
  if (got == room) return py::Ref::steal(bytes);
  if (_PyBytes_Resize(&bytes, static_cast<Py_ssize_t>(got)) < 0) py::throw_fetched();
  py::Ref all = py::Ref::steal(bytes);
  if (got == 0) all.reset();
  return all;
}

void TlsEngine::send_to(PyObject* transport) {
  const py::Ref data = take();
  if (data) call_method(transport, state_.names.write, data.get());
}

int TlsEngine::traverse(visitproc visit, void* arg) {
  Py_VISIT(failure_.get());
  return 0;
}

void TlsEngine::clear() { failure_.reset(); }

TlsConnection connect_tls(TlsState& state, PyObject* context, bool server_side,
                          PyObject* server_hostname) {
  TlsConnection made;
  made.incoming = py::check(PyObject_CallNoArgs(state.memory_bio));
  made.outgoing = py::check(PyObject_CallNoArgs(state.memory_bio));
  SSL* ssl = nullptr;
  {
    const SslWatch watch;
    PyObject* stack[] = {nullptr,
                         context,
                         made.incoming.get(),
                         made.outgoing.get(),
                         server_side ? Py_True : Py_False,
                         server_hostname};
    made.ssl_object = py::check(PyObject_VectorcallMethod(
        state.names.wrap_bio, stack + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, state.wrap_arguments));
    ssl = watch.only();
  }
  made.engine = direct_engine(state, made, ssl);
  made.direct = made.engine != nullptr;
  if (!made.engine) {
    made.engine =
        python_engine(state, made.ssl_object.get(), made.incoming.get(), made.outgoing.get());
  }
  return made;
}

std::unique_ptr<TlsEngine> python_engine(TlsState& state, PyObject* ssl_object, PyObject* incoming,
                                         PyObject* outgoing) {
  const bool genuine = is_genuine(state, ssl_object);
  py::Ref inner = py::Ref::borrow(ssl_object);
  if (genuine) {  // one Python frame less a call
    py::Ref found = py::Ref::steal(PyObject_GetAttr(ssl_object, state.names._sslobj));
    if (!found) PyErr_Clear();
    if (found) inner = std::move(found);
  }
  return std::make_unique<PythonEngine>(state, inner.get(), genuine, incoming, outgoing);
}

}  // namespace loop
