#include "cnode/py/python.hpp"

#include "cnode/main/web_server.hpp"

#include <asio/post.hpp>

#include <utility>

#include "cnode/base/log.hpp"
#include "cnode/bridge/runtime.hpp"
#include "cnode/py/error.hpp"

namespace node_main {
namespace {

constexpr const char* kCapsule = "sidewinder.web_server";
// What a server that is told to stop may take beyond its time: for the ends of its applications,
// which have a second at least.
constexpr std::chrono::milliseconds kFarewell{2'500};

PyMethodDef g_told{"told", nullptr, METH_VARARGS, nullptr};

std::uint64_t counter(PyObject* stats, const char* name) {
  PyObject* value = PyDict_GetItemString(stats, name);
  const unsigned long long found = value != nullptr ? PyLong_AsUnsignedLongLong(value) : 0;
  if (PyErr_Occurred() == nullptr) return found;
  PyErr_Clear();
  return 0;
}

}  // namespace

WebServer::WebServer(asio::io_context& reactor, bridge::Runtime& runtime, WebConfig config,
                     Hooks hooks)
    : reactor_(reactor),
      runtime_(runtime),
      config_(std::move(config)),
      hooks_(std::move(hooks)),
      limit_(reactor) {
  g_told.ml_meth = &WebServer::told;
}

WebServer::~WebServer() = default;

void WebServer::start() {
  runtime_.loop().post([this] {
    if (stopping_) return;
    try {
      make_program();
      py::check(PyObject_CallMethod(program_.get(), "start", nullptr));
    } catch (const py::Error& error) {
      const auto what = error.describe();
      auto line = "serve: " + what.type + ": " + what.message;
      asio::post(reactor_, [this, line = std::move(line)] { hooks_.failed(line); });
    }
  });
}

void WebServer::make_program() {
  const py::Ref module = py::import("erlang_web._serve");
  const py::Ref capsule = py::check(PyCapsule_New(this, kCapsule, nullptr));
  const py::Ref callback = py::check(PyCFunction_New(&g_told, capsule.get()));
  program_ = py::check(
      PyObject_CallMethod(module.get(), "Program", "OO", options().get(), callback.get()));
}

py::Ref WebServer::options() const {
  py::Ref options = py::check(PyDict_New());
  const auto put = [&](const char* name, PyObject* value) {
    const py::Ref owned = py::check(value);
    py::check_status(PyDict_SetItemString(options.get(), name, owned.get()));
  };
  const auto text = [](const std::string& value) {
    return PyUnicode_DecodeFSDefaultAndSize(value.data(), static_cast<Py_ssize_t>(value.size()));
  };
  const py::Ref mounts = py::check(PyList_New(0));
  for (const auto& [prefix, target] : config_.mounts) {
    const py::Ref mount = py::check(Py_BuildValue("(NN)", text(prefix), text(target)));
    py::check_status(PyList_Append(mounts.get(), mount.get()));
  }
  put("mounts", Py_NewRef(mounts.get()));
  const py::Ref bind = py::check(PyList_New(0));
  for (const auto& address : config_.bind) {
    const py::Ref one = py::check(text(address));
    py::check_status(PyList_Append(bind.get(), one.get()));
  }
  put("bind", Py_NewRef(bind.get()));
  for (const auto& [name, value] : config_.texts) put(name, text(value));
  for (const auto& [name, value] : config_.switches) put(name, PyBool_FromLong(value ? 1 : 0));
  for (const auto& [name, value] : config_.numbers) put(name, PyLong_FromUnsignedLongLong(value));
  return options;
}

PyObject* WebServer::told(PyObject* self, PyObject* arguments) {
  const char* what = nullptr;
  PyObject* value = nullptr;
  if (PyArg_ParseTuple(arguments, "sO", &what, &value) == 0) return nullptr;
  static_cast<WebServer*>(PyCapsule_GetPointer(self, kCapsule))->hear(what, value);
  Py_RETURN_NONE;
}

void WebServer::hear(const std::string& what, PyObject* value) {
  if (what == "serving") {
    asio::post(reactor_, [this] { serving_ = !stopping_; });
  } else if (what == "failed") {
    std::string line = py::text_of(value);
    asio::post(reactor_, [this, line = std::move(line)] { hooks_.failed(line); });
  } else if (what == "stats") {
    const Counters now{counter(value, "connections"),    counter(value, "requests"),
                       counter(value, "websockets"),     counter(value, "requests_total"),
                       counter(value, "refused_total"),  counter(value, "bytes_in_total"),
                       counter(value, "bytes_out_total")};
    asio::post(reactor_, [this, now] { counted_ = now; });
  } else {
    const bool clean = PyLong_AsLong(value) == 0;
    asio::post(reactor_, [this, clean] {
      clean_ = clean;
      stopped();
    });
  }
}

void WebServer::stop(std::chrono::milliseconds limit, std::function<void()> done) {
  stopping_ = true;
  serving_ = false;
  clean_ = false;
  done_ = std::move(done);
  limit_.expires_after(limit + kFarewell);
  limit_.async_wait([this](asio::error_code error) {
    if (error) return;
    spdlog::warn("the web server did not stop in time: something blocks the event loop");
    blocked_ = true;
    stopped();
  });
  const double seconds = std::chrono::duration<double>(limit).count();
  runtime_.loop().post([this, seconds] {
    const auto finished = [this] { asio::post(reactor_, [this] { stopped(); }); };
    if (!program_) return finished();
    const py::Ref ignored =
        py::Ref::steal(PyObject_CallMethod(program_.get(), "stop", "d", seconds));
    if (ignored) return;
    spdlog::error("the web server cannot stop: {}", py::Error::fetch().describe().message);
    finished();
  });
}

void WebServer::stopped() {
  limit_.cancel();
  if (auto done = std::exchange(done_, nullptr)) done();
}

}  // namespace node_main
