// TlsEngine: the records of one TLS connection: ciphertext in and out on one side, plaintext on the
// other.
//
// The handshake and the farewell are Python's: SSLObject.do_handshake() and unwrap() are called on
// the object itself, so whatever a subclass adds to them happens. In between an engine carries the
// data, in one of two ways:
//   DirectEngine  calls SSL_read and SSL_write on the SSL inside the SSLObject: no copies but
//   OpenSSL's own, no
//                 exception where there is nothing to read
//   PythonEngine  calls SSLObject.read and write over MemoryBIOs: where the first is not to be had,
//   or where somebody
//                 has replaced those methods
#pragma once

#include <cstddef>
#include <memory>

#include "cnode/loop/libssl.hpp"
#include "cnode/loop/tls.hpp"
#include "cnode/py/error.hpp"

namespace loop {

// Why read() came to an end.
enum class End {
  kWait,    // there is no more for now
  kFull,    // there is no more room
  kClosed,  // the peer has said that nothing follows
  kFailed   // failure() says why
};

class TlsEngine {
 public:
  virtual ~TlsEngine() = default;

  // Ciphertext from the peer. It stays the caller's until keep(), which copies what was not read.
  virtual void offer(const char* data, std::size_t size) = 0;
  virtual void keep() = 0;
  virtual std::size_t unread() = 0;

  // Plaintext from the peer: as much as there is and fits. `end` tells why no more.
  virtual std::size_t read(char* to, std::size_t room, End& end) = 0;
  // How much there can be at most, of what was offered.
  virtual std::size_t bound() = 0;
  // All there is, as bytes; null for nothing.
  py::Ref read_all(End& end);
  py::Ref take_failure() { return std::move(failure_); }

  // Plaintext for the peer; returns how much was taken, which is less than all only while a
  // handshake is under way.
  virtual std::size_t write(const char* from, std::size_t size) = 0;
  // Says that `size` bytes of plaintext follow in `pieces` pieces and that what becomes of them is
  // sent at once, by send_to() if `viewed`.
  virtual void expect(std::size_t size, std::size_t pieces, bool viewed) = 0;
  // Ciphertext for the peer.
  virtual std::size_t unsent() = 0;
  virtual py::Ref take() = 0;
  // Hands it to a native transport from where it lies.
  virtual void send_to(PyObject* transport);
  virtual void drop_unsent() = 0;

  virtual int traverse(visitproc visit, void* arg);
  // Lets go of all Python objects; nothing else may be called from then on.
  virtual void clear();

 protected:
  explicit TlsEngine(TlsState& state) : state_(state) {}

  TlsState& state_;
  py::Ref failure_;
};

// Python's objects of a connection, and the engine over them.
struct TlsConnection {
  py::Ref incoming, outgoing;  // ssl.MemoryBIO
  py::Ref ssl_object;
  std::unique_ptr<TlsEngine> engine;
  bool direct = false;
};

// Calls sslcontext.wrap_bio(). Throws py::Error.
TlsConnection connect_tls(TlsState& state, PyObject* context, bool server_side,
                          PyObject* server_hostname);

// An engine over any object with the methods of an SSLObject that was made on these two.
std::unique_ptr<TlsEngine> python_engine(TlsState& state, PyObject* ssl_object, PyObject* incoming,
                                         PyObject* outgoing);

template <typename... Arguments>
py::Ref call_method(PyObject* object, PyObject* name, Arguments*... arguments) {
  PyObject* stack[] = {nullptr, object, arguments...};
  return py::check(PyObject_VectorcallMethod(
      name, stack + 1, (1 + sizeof...(arguments)) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

}  // namespace loop
