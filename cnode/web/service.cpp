#include "cnode/web/service.hpp"

#include <algorithm>
#include <array>
#include <ctime>
#include <new>

#include "cnode/web/connection.hpp"

namespace web {
namespace {

struct ServiceObject {
  PyObject_HEAD Service* service;
};

Service*& service_place(PyObject* self) { return reinterpret_cast<ServiceObject*>(self)->service; }

py::Ref root_path_of(const std::string& prefix) {
  return py::check(
      PyUnicode_FromStringAndSize(prefix.data(), static_cast<Py_ssize_t>(prefix.size())));
}

Service::Application application_of(PyObject* triple) {
  Service::Application application;
  const char* prefix = nullptr;
  PyObject* callable = nullptr;
  PyObject* state = nullptr;
  if (!PyTuple_Check(triple))
    py::raise(PyExc_TypeError, "apps are tuples (prefix, application, state)");
  if (PyArg_ParseTuple(triple, "sOO;apps are tuples (prefix, application, state)", &prefix,
                       &callable, &state) == 0)
    py::throw_fetched();
  application.prefix = prefix;
  while (application.prefix.ends_with('/')) application.prefix.pop_back();
  if (!application.prefix.empty() && application.prefix.front() != '/')
    py::raise(PyExc_ValueError, "a prefix begins with /");
  if (state != Py_None && !PyDict_Check(state))
    py::raise(PyExc_TypeError, "the state of an application is a dict or None");
  application.root_path = root_path_of(application.prefix).release();
  application.callable = Py_NewRef(callable);
  application.state = state == Py_None ? nullptr : Py_NewRef(state);
  return application;
}

void must(bool condition, const char* what) {
  if (!condition) py::raise(PyExc_ValueError, what);
}

}  // namespace

Service& service_of(PyObject* object) {
  Service* service = service_place(object);
  if (service == nullptr) py::raise(PyExc_RuntimeError, "the service is gone");
  return *service;
}

double Service::now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

void Service::open(PyObject* arguments, PyObject* keywords) {
  PyObject* loop = nullptr;
  PyObject* apps = nullptr;
  const char* scheme = "http";
  PyObject* access = Py_None;
  const char* server = "sidewinder";
  Py_ssize_t server_size = 10, line = 8192, head = 65536, headers = 128, message = 16 << 20;
  unsigned long long body = 0;
  int compress = 1, proxy = 0;
  static const char* const names[] = {
      "loop",         "apps",         "scheme",   "access",         "server_header", "max_line",
      "max_head",     "max_headers",  "max_body", "max_message",    "head_seconds",  "idle_seconds",
      "body_seconds", "ping_seconds", "compress", "proxy_protocol", nullptr};
  if (PyArg_ParseTupleAndKeywords(
          arguments, keywords, "OO|$sOy#nnnKnddddpp:Service", const_cast<char**>(names), &loop,
          &apps, &scheme, &access, &server, &server_size, &line, &head, &headers, &body, &message,
          &limits_.head, &limits_.idle, &limits_.body, &limits_.ping, &compress, &proxy) == 0)
    py::throw_fetched();
  must(line > 0 && head > 0 && headers > 0 && message > 0, "limits are more than 0");
  must(limits_.head > 0 && limits_.idle > 0 && limits_.body > 0 && limits_.ping >= 0,
       "times are more than 0");
  limits_.request = {static_cast<std::size_t>(line), static_cast<std::size_t>(head),
                     static_cast<std::size_t>(headers), body};
  limits_.message = static_cast<std::size_t>(message);
  compress_ = compress != 0;
  proxy_protocol_ = proxy != 0;
  const std::string_view name(server, static_cast<std::size_t>(server_size));
  must(name.find_first_of(std::string_view("\r\n\0", 3)) == std::string_view::npos,
       "server_header is one line");
  if (!name.empty()) server_line_ = "server: " + std::string(name) + "\r\n";
  const bool secure = std::string_view(scheme) == "https";
  must(secure || std::string_view(scheme) == "http", "scheme is http or https");

  const py::Ref list = py::check(PySequence_Fast(apps, "apps is a sequence"));
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.get()); ++i)
    applications_.push_back(application_of(PySequence_Fast_GET_ITEM(list.get(), i)));
  must(!applications_.empty(), "apps is empty");
  std::stable_sort(applications_.begin(), applications_.end(),
                   [](const auto& a, const auto& b) { return a.prefix.size() > b.prefix.size(); });
  scheme_ = py::check(PyUnicode_InternFromString(secure ? "https" : "http")).release();
  websocket_scheme_ = py::check(PyUnicode_InternFromString(secure ? "wss" : "ws")).release();
  buffer_ = py::check(PyByteArray_FromStringAndSize(nullptr, kBuffer)).release();
  view_ = py::check(PyMemoryView_FromObject(buffer_)).release();
  loop_ = Py_NewRef(loop);
  access_ = access == Py_None ? nullptr : Py_NewRef(access);
}

const Service::Application* Service::application_for(std::string_view path) const {
  for (const auto& application : applications_) {
    const std::string_view prefix = application.prefix;
    if (path.starts_with(prefix) &&
        (prefix.empty() || path.size() == prefix.size() || path[prefix.size()] == '/'))
      return &application;
  }
  return nullptr;
}

std::string_view Service::date_line() {
  timespec time{};
  clock_gettime(CLOCK_REALTIME_COARSE, &time);
  if (time.tv_sec == date_second_) return date_line_;
  date_second_ = time.tv_sec;
  // Not strftime: names of days and months do not follow the locale.
  static constexpr std::array days{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr std::array months{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  tm parts{};
  gmtime_r(&time.tv_sec, &parts);
  std::array<char, 64> text{};
  const int size =
      std::snprintf(text.data(), text.size(), "date: %s, %02d %s %04d %02d:%02d:%02d GMT\r\n",
                    days.at(static_cast<std::size_t>(parts.tm_wday)), parts.tm_mday,
                    months.at(static_cast<std::size_t>(parts.tm_mon)), parts.tm_year + 1900,
                    parts.tm_hour, parts.tm_min, parts.tm_sec);
  date_line_.assign(text.data(), static_cast<std::size_t>(size));
  return date_line_;
}

PyObject* Service::view() { return view_; }

// Whatever happens to one, the others have their turn; connections come and go meanwhile.
template <typename Action>
void Service::each(Action action) {
  const std::vector<Connection*> all(connections_.begin(), connections_.end());
  for (Connection* one : all) {
    if (!connections_.contains(one)) continue;
    action(*one);
  }
}

void Service::sweep() {
  const double time = now();
  each([&](Connection& one) { one.check(time); });
}

void Service::drain() {
  draining_ = true;
  each([](Connection& one) { one.drain(); });
}

void Service::abort() {
  each([](Connection& one) { one.abort(); });
}

py::Ref Service::stats() const {
  const auto number = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
  return py::check(Py_BuildValue(
      "{s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "connections", number(connections_.size()), "requests",
      number(counters_.requests), "websockets", number(counters_.websockets), "requests_total",
      number(counters_.requests_total), "refused_total", number(counters_.refused_total),
      "bytes_in_total", number(counters_.bytes_in), "bytes_out_total",
      number(counters_.bytes_out)));
}

int Service::traverse(visitproc visit, void* arg) {
  Py_VISIT(loop_);
  Py_VISIT(access_);
  Py_VISIT(view_);
  for (const auto& application : applications_) {
    Py_VISIT(application.callable);
    Py_VISIT(application.state);
  }
  return 0;
}

void Service::clear() {
  Py_CLEAR(loop_);
  Py_CLEAR(access_);
  Py_CLEAR(scheme_);
  Py_CLEAR(websocket_scheme_);
  Py_CLEAR(view_);
  Py_CLEAR(buffer_);
  for (auto& application : applications_) {
    Py_CLEAR(application.callable);
    Py_CLEAR(application.state);
    Py_CLEAR(application.root_path);
  }
  applications_.clear();
}

namespace {

PyObject* service_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  return guarded<PyObject*>(nullptr, [&] {
    py::Ref self = py::check(type->tp_alloc(type, 0));
    State& state = *static_cast<State*>(PyType_GetModuleState(type));
    service_place(self.get()) = new Service(state, self.get());
    service_place(self.get())->open(arguments, keywords);
    return self.release();
  });
}

int service_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return service_place(self) == nullptr ? 0 : service_place(self)->traverse(visit, arg);
}

int service_clear(PyObject* self) {
  if (service_place(self) != nullptr) service_place(self)->clear();
  return 0;
}

void service_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  service_clear(self);
  delete service_place(self);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* service_call(PyObject* self, PyObject*, PyObject*) {
  return guarded<PyObject*>(nullptr, [&] {
    Service& service = service_of(self);
    return new_connection(service.state(), service, self).release();
  });
}

template <void (Service::*kAction)()>
PyObject* service_do(PyObject* self, PyObject*) {
  return guarded<PyObject*>(nullptr, [&] {
    (service_of(self).*kAction)();
    return Py_NewRef(Py_None);
  });
}

PyObject* service_stats(PyObject* self, PyObject*) {
  return guarded<PyObject*>(nullptr, [&] { return service_of(self).stats().release(); });
}

PyMethodDef g_service_methods[] = {
    {"sweep", service_do<&Service::sweep>, METH_NOARGS,
     "sweep(): once a second: cuts off who is late, sends pings."},
    {"drain", service_do<&Service::drain>, METH_NOARGS,
     "drain(): idle connections close, the others after their answer, WebSockets with 1012."},
    {"abort", service_do<&Service::abort>, METH_NOARGS, "abort(): closes what is left."},
    {"stats", service_stats, METH_NOARGS, "stats() -> dict: counters, and what there is now."},
    {}};

PyType_Slot g_service_slots[] = {
    {Py_tp_doc,
     const_cast<char*>(
         "What the connections of one server share; its call makes the protocol of a new one.")},
    {Py_tp_new, reinterpret_cast<void*>(service_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(service_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(service_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(service_clear)},
    {Py_tp_call, reinterpret_cast<void*>(service_call)},
    {Py_tp_methods, g_service_methods},
    {0, nullptr}};

PyType_Spec g_service_spec{"erlang_web._http.Service", sizeof(ServiceObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, g_service_slots};

}  // namespace

int service_exec(PyObject* module, State& state) {
  state.service_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &g_service_spec, nullptr));
  return state.service_type == nullptr ? -1 : PyModule_AddType(module, state.service_type);
}

}  // namespace web
