// LibSsl: the OpenSSL that Python's own ssl module uses, spoken to without a detour through Python.
//
// Python gives no way from an ssl.SSLObject to the SSL inside, and where it keeps it is its own
// affair. OpenSSL itself tells: whoever has registered extra data hears of every SSL that is made.
// SslWatch listens in its own thread while Python makes one. Nothing of OpenSSL is linked: the
// functions are looked up in the library that _ssl has loaded, so that it is the same one whatever
// its version; where that fails (a _ssl that hides them), there is no LibSsl.
//
// Wire is what such an SSL reads from and writes to instead of Python's MemoryBIOs: it reads
// straight from the buffer that a transport has filled, and writes straight into the bytes object
// that the transport will send.
#pragma once

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "cnode/py/ref.hpp"

namespace loop {

#define LOOP_LIBSSL(X)       \
  X(BIO_clear_flags)         \
  X(BIO_ctrl)                \
  X(BIO_free)                \
  X(BIO_get_data)            \
  X(BIO_get_new_index)       \
  X(BIO_meth_new)            \
  X(BIO_meth_set_create)     \
  X(BIO_meth_set_ctrl)       \
  X(BIO_meth_set_read)       \
  X(BIO_meth_set_write)      \
  X(BIO_method_type)         \
  X(BIO_new)                 \
  X(BIO_set_data)            \
  X(BIO_set_flags)           \
  X(BIO_set_init)            \
  X(BIO_up_ref)              \
  X(CRYPTO_get_ex_new_index) \
  X(ERR_clear_error)         \
  X(ERR_peek_error)          \
  X(SSL_get_error)           \
  X(SSL_get_rbio)            \
  X(SSL_get_wbio)            \
  X(SSL_has_pending)         \
  X(SSL_pending)             \
  X(SSL_read)                \
  X(SSL_set_bio)             \
  X(SSL_write)

struct LibSsl {
  // The one of the extension module _ssl, or null. The same for all interpreters of a process.
  static const LibSsl* of(PyObject* extension);

// A name cannot stand in parentheses: NOLINTNEXTLINE(bugprone-macro-parentheses)
#define LOOP_LIBSSL_DECLARE(name) decltype(&::name) name = nullptr;
  LOOP_LIBSSL(LOOP_LIBSSL_DECLARE)
#undef LOOP_LIBSSL_DECLARE
  BIO_METHOD* wire_method = nullptr;
};

// Hears of every SSL that this thread makes while it lives.
class SslWatch {
 public:
  SslWatch();
  ~SslWatch();
  SslWatch(const SslWatch&) = delete;
  SslWatch& operator=(const SslWatch&) = delete;

  // The one that was made, or null if there was none, or more than one.
  SSL* only() const { return count_ == 1 ? ssl_ : nullptr; }
  void made(SSL* ssl);

 private:
  SSL* ssl_ = nullptr;
  int count_ = 0;
  SslWatch* outer_;
};

// Memory that connections lend one after the other, each for as long as it takes to encrypt and to
// send. Its size is that of the largest batch, with what records add to it.
struct Scratch {
  static constexpr std::size_t kSize = 264 * 1024;

  char* memory;  // made when first needed
  bool busy;

  void release() { busy = false; }
};

class Wire {
 public:
  explicit Wire(const LibSsl& library) : library_(library) {}
  ~Wire();
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  // Puts itself in the place of what `ssl` reads from and writes to. False when there is no memory.
  bool attach(SSL* ssl);

  // Bytes from the peer. They stay the caller's until keep(), which copies those that were not
  // read.
  void offer(const char* data, std::size_t size);
  void keep();
  std::size_t unread() const { return unread_; }
  // What OpenSSL has taken since settle().
  std::size_t taken() const { return taken_; }
  void settle() { taken_ = 0; }

  // Makes room for what comes out next, if nothing waits there: in `scratch` if there is one and it
  // is free, else in a bytes object. Throws py::Error (no memory).
  void expect(std::size_t size, Scratch* scratch);
  std::size_t unsent() const { return sink_used_ + out_.size(); }
  // All that came out, as bytes; null for nothing. Throws py::Error (no memory).
  py::Ref take();
  // The same in two parts, one after the other: where the first lies, until drop_sink(), and the
  // second itself.
  std::string_view sink() const { return {sink_, sink_used_}; }
  std::vector<char> take_rest() { return std::exchange(out_, {}); }
  void drop_sink();
  void drop_unsent();

 private:
  static int read(BIO* bio, char* to, int size);
  static int write(BIO* bio, const char* from, int size);
  static long control(BIO* bio, int command, long number, void* pointer);
  static int create(BIO* bio);
  friend struct WireMethod;

  const LibSsl& library_;
  BIO* bio_ = nullptr;
  const char* next_ = nullptr;  // in a transport's buffer or in held_
  std::size_t unread_ = 0;
  std::size_t taken_ = 0;
  bool borrowed_ = false;
  std::vector<char> held_;
  char* sink_ = nullptr;  // in one of the next two
  py::Ref bytes_;         // that nobody else has seen
  Scratch* scratch_ = nullptr;
  std::size_t sink_size_ = 0;
  std::size_t sink_used_ = 0;
  std::vector<char> out_;  // what came when there was no sink, or more than it holds
};

}  // namespace loop
