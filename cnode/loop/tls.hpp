// TLS for the loop: SSLProtocol, a native asyncio.sslproto.SSLProtocol, and the transport it gives
// to the application.
//
//   any transport ──ciphertext──▶ SSLProtocol ──plaintext──▶ the application's protocol
//        ▲                             │ ▲                              │
//        └───────ciphertext────────────┘ └──────plaintext── its transport ◀── write()
//
// It behaves as asyncio's: the same states, time-outs, messages and limits (tls_protocol.hpp), over
// Python's own SSLContext and SSLObject (tls_engine.hpp). This header is all the rest of the loop
// needs.
#pragma once

#include <cstddef>

#include "cnode/loop/libssl.hpp"
#include "cnode/loop/stream_reader.hpp"

namespace loop {

// Python objects that TLS calls or compares with, looked up once.
#define LOOP_TLS_OBJECTS(X)                                                 \
  X(again)              /* (SSLWantReadError, SSLSyscallError) */           \
  X(buffered_protocol)  /* asyncio.BufferedProtocol */                      \
  X(call_weakly)        /* call_weakly(weak reference, name of a method) */ \
  X(cancelled_error)    /* asyncio.CancelledError */                        \
  X(certificate_error)  /* ssl.CertificateError */                          \
  X(constants)          /* asyncio.constants */                             \
  X(create_context)     /* asyncio.sslproto._create_transport_context */    \
  X(debug_arguments)    /* ("exc_info",) */                                 \
  X(logger)             /* asyncio.log.logger */                            \
  X(memory_bio)         /* ssl.MemoryBIO; null if there is no ssl module */ \
  X(protocol_states)    /* asyncio.sslproto.SSLProtocolState, in order */   \
  X(application_states) /* asyncio.sslproto.AppProtocolState, in order */   \
  X(ssl_error)          /* ssl.SSLError */                                  \
  X(ssl_object)         /* ssl.SSLObject */                                 \
  X(ssl_object_read)    /* ssl.SSLObject.read */                            \
  X(ssl_object_write)   /* ssl.SSLObject.write */                           \
  X(timeout_error)      /* asyncio.TimeoutError */                          \
  X(wrap_arguments)     /* ("server_side", "server_hostname") */

// Interned names: for each NAME a member `NAME`, whose text is the same.
#define LOOP_TLS_NAMES(X)     \
  X(SSL_HANDSHAKE_TIMEOUT)    \
  X(SSL_SHUTDOWN_TIMEOUT)     \
  X(_check_handshake_timeout) \
  X(_check_shutdown_timeout)  \
  X(_do_read)                 \
  X(_force_close)             \
  X(_loop)                    \
  X(_resume)                  \
  X(_sslobj)                  \
  X(abort)                    \
  X(buffer_updated)           \
  X(call_exception_handler)   \
  X(call_later)               \
  X(call_soon)                \
  X(cancel)                   \
  X(cancelled)                \
  X(cipher)                   \
  X(close)                    \
  X(compression)              \
  X(connection_lost)          \
  X(connection_made)          \
  X(data_received)            \
  X(debug)                    \
  X(do_handshake)             \
  X(eof_received)             \
  X(exception)                \
  X(get_buffer)               \
  X(get_debug)                \
  X(get_extra_info)           \
  X(getpeercert)              \
  X(is_closing)               \
  X(message)                  \
  X(pause_reading)            \
  X(pause_writing)            \
  X(peercert)                 \
  X(pending)                  \
  X(protocol)                 \
  X(read)                     \
  X(release)                  \
  X(resume_reading)           \
  X(resume_writing)           \
  X(set_exception)            \
  X(set_result)               \
  X(ssl_object)               \
  X(sslcontext)               \
  X(time)                     \
  X(transport)                \
  X(unwrap)                   \
  X(warning)                  \
  X(wrap_bio)                 \
  X(write)

// What one interpreter's copy of the module keeps for TLS: all zero at first, filled by tls_exec().
// Objects point at it and keep it alive through their type and its module.
struct TlsState {
  PyTypeObject* protocol_type;
  PyTypeObject* transport_type;
  const LibSsl* library;  // null where OpenSSL is reached through Python alone
  Scratch scratch;
  const StreamReaderState* stream_reader;  // the module's
  // Set by whoever has them: the type of the native transport, and a call that writes to one of
  // these what lies in memory that is good for the time of the call. -1 with an exception set.
  PyTypeObject* native_transport;  // borrowed
  int (*write_native)(PyObject* transport, const char* data, std::size_t size);
#define LOOP_TLS_DECLARE(name) PyObject* name;
  LOOP_TLS_OBJECTS(LOOP_TLS_DECLARE)
  struct Names {
    LOOP_TLS_NAMES(LOOP_TLS_DECLARE)
  } names;
#undef LOOP_TLS_DECLARE
};

// Makes the types and adds them to the module, as SSLProtocol and _SSLProtocolTransport. -1 with an
// exception set.
int tls_exec(PyObject* module, TlsState& state);
int tls_traverse(TlsState& state, visitproc visit, void* arg);
void tls_clear(TlsState& state);

// The state of the module that made `type`, given by whoever owns it. Null with an exception set.
TlsState* tls_state_of_type(PyTypeObject* type);

// For a native transport: whether `protocol` is an SSLProtocol that takes bytes straight from the
// transport's own buffer, and the call that hands them over, instead of get_buffer() and
// buffer_updated(). -1 with an exception set.
bool tls_takes_bytes(const TlsState& state, PyObject* protocol);
int tls_feed(PyObject* protocol, const char* data, std::size_t size);

}  // namespace loop
