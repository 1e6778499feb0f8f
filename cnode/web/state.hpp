// State: what one interpreter's copy of the module keeps: its types, names and the Python objects
// it calls.
#pragma once

#include "cnode/py/python.hpp"

#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "cnode/py/error.hpp"
#include "cnode/py/ref.hpp"

namespace web {

// Interned names: member, text.
#define WEB_NAMES(X)                                           \
  X(abort, "abort")                                            \
  X(add_done_callback, "add_done_callback")                    \
  X(asgi, "asgi")                                              \
  X(asyncio_future_blocking, "_asyncio_future_blocking")       \
  X(body, "body")                                              \
  X(bytes, "bytes")                                            \
  X(can_write_eof, "can_write_eof")                            \
  X(cancel, "cancel")                                          \
  X(client, "client")                                          \
  X(close, "close")                                            \
  X(code, "code")                                              \
  X(copy, "copy")                                              \
  X(create_future, "create_future")                            \
  X(done, "done")                                              \
  X(error, "error")                                            \
  X(exception, "exception")                                    \
  X(extensions, "extensions")                                  \
  X(get_extra_info, "get_extra_info")                          \
  X(get_write_buffer_size, "get_write_buffer_size")            \
  X(headers, "headers")                                        \
  X(http, "http")                                              \
  X(http_disconnect, "http.disconnect")                        \
  X(http_request, "http.request")                              \
  X(http_response_body, "http.response.body")                  \
  X(http_response_start, "http.response.start")                \
  X(http_version, "http_version")                              \
  X(is_closing, "is_closing")                                  \
  X(method, "method")                                          \
  X(more_body, "more_body")                                    \
  X(path, "path")                                              \
  X(pause_reading, "pause_reading")                            \
  X(peername, "peername")                                      \
  X(query_string, "query_string")                              \
  X(raw_path, "raw_path")                                      \
  X(reason, "reason")                                          \
  X(resume_reading, "resume_reading")                          \
  X(root_path, "root_path")                                    \
  X(scheme, "scheme")                                          \
  X(server, "server")                                          \
  X(set_result, "set_result")                                  \
  X(sockname, "sockname")                                      \
  X(spec_version, "spec_version")                              \
  X(state, "state")                                            \
  X(status, "status")                                          \
  X(subprotocol, "subprotocol")                                \
  X(subprotocols, "subprotocols")                              \
  X(text, "text")                                              \
  X(throw_, "throw")                                           \
  X(type, "type")                                              \
  X(version, "version")                                        \
  X(websocket, "websocket")                                    \
  X(websocket_accept, "websocket.accept")                      \
  X(websocket_close, "websocket.close")                        \
  X(websocket_connect, "websocket.connect")                    \
  X(websocket_disconnect, "websocket.disconnect")              \
  X(websocket_receive, "websocket.receive")                    \
  X(websocket_response, "websocket.http.response")             \
  X(websocket_response_body, "websocket.http.response.body")   \
  X(websocket_response_start, "websocket.http.response.start") \
  X(websocket_send, "websocket.send")                          \
  X(write, "write")                                            \
  X(write_eof, "write_eof")

struct State {
  PyTypeObject* service_type;
  PyTypeObject* connection_type;
  PyTypeObject* exchange_type;
  PyTypeObject* ready_type;
  PyTypeObject* waiting_type;

  PyObject* task_class;     // asyncio.Task
  PyObject* ensure_future;  // asyncio.ensure_future
  PyObject* logger;         // logging.getLogger("erlang_web")
  PyObject* sha1;           // hashlib.sha1
  PyObject* to_base64;      // binascii.b2a_base64
  PyObject* client_gone;    // ClientDisconnected
  PyObject* task_names;     // ("loop", "context")
  PyObject* empty_bytes;
  PyObject* asgi;  // {"version": "3.0", "spec_version": …}
  PyObject* version_10;
  PyObject* version_11;
  PyObject* ready_none;  // the awaitable of what is done already

#define WEB_DECLARE(name, text) PyObject* name;
  struct Names {
    WEB_NAMES(WEB_DECLARE)
  } names;
#undef WEB_DECLARE

  // Header names and methods that everybody sends, made once. Owned.
  std::unordered_map<std::string_view, PyObject*>* header_names;
  std::unordered_map<std::string_view, PyObject*>* methods;
};

extern PyModuleDef g_module;
State& state_of(PyObject* module);

// --- calls

template <typename... Arguments>
py::Ref call_method(PyObject* object, PyObject* name, Arguments... arguments) {
  PyObject* all[] = {object, arguments...};
  return py::check(PyObject_VectorcallMethod(name, all, sizeof...(arguments) + 1, nullptr));
}

inline bool is_true(PyObject* object) {
  const int truth = PyObject_IsTrue(object);
  py::check_status(truth);
  return truth != 0;
}

inline py::Ref bytes_from(std::string_view text) {
  return py::check(PyBytes_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
}
// Latin-1: what may be any byte.
inline py::Ref text_from(std::string_view text) {
  return py::check(
      PyUnicode_DecodeLatin1(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr));
}
inline void set_item(PyObject* dict, PyObject* key, const py::Ref& value) {
  py::check_status(PyDict_SetItem(dict, key, value.get()));
}

// Calls `action`, whose py::Error becomes the exception of this thread.
template <typename Result, typename Action>
Result guarded(Result failed, Action action) {
  try {
    return action();
  } catch (py::Error& error) {
    std::move(error).restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return failed;
}

// The bytes of anything with a buffer, for a scope.
class BytesView {
 public:
  explicit BytesView(PyObject* object) {
    if (PyBytes_CheckExact(object)) {
      view_ = {PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object))};
      return;
    }
    py::check_status(PyObject_GetBuffer(object, &buffer_, PyBUF_SIMPLE));
    owned_ = true;
    view_ = {static_cast<const char*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
  }
  ~BytesView() {
    if (owned_) PyBuffer_Release(&buffer_);
  }
  BytesView(const BytesView&) = delete;
  BytesView& operator=(const BytesView&) = delete;
  std::string_view text() const { return view_; }

 private:
  Py_buffer buffer_{};
  bool owned_ = false;
  std::string_view view_;
};

}  // namespace web
