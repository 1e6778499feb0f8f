#include "cnode/bridge/invoker.hpp"

#include <array>
#include <vector>

#include "cnode/base/log.hpp"
#include "cnode/bridge/lookup.hpp"
#include "cnode/bridge/worker_pool.hpp"

namespace bridge {

using base::ErrorCode;
namespace {

constexpr std::size_t kMaxNames = 20'000;
constexpr std::size_t kInlineArguments = 8;
constexpr std::size_t kMaxWaiting = 1000;  // eval and exec of one caller

std::string_view as_text(etf::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// An atom's or a binary's text; module and function names come as either.
base::Result<std::string_view> name_text(etf::Reader& in) {
  auto tag = in.peek();
  if (!tag) return tag.error();
  if (*tag == etf::kBinary) {
    auto bytes = in.binary();
    if (!bytes) return bytes.error();
    return as_text(*bytes);
  }
  auto atom = in.atom();
  if (!atom) return atom.error();
  if (atom->latin1 && !etf::is_utf8(atom->text))
    return base::Error{ErrorCode::kUnsupported, 0, "a Latin-1 name"};
  return atom->text;
}

// TraceParent or {TraceParent, TraceState}, both binaries; anything else is none.
std::optional<base::TraceContext> trace_in(etf::Bytes term) {
  etf::Reader in(term);
  if (auto parent = in.binary()) return base::TraceContext::of(as_text(*parent));
  etf::Reader pair(term);
  auto arity = pair.tuple();
  if (!arity || *arity != 2) return std::nullopt;
  auto parent = pair.binary();
  auto state = pair.binary();
  if (!parent || !state) return std::nullopt;
  return base::TraceContext::of(as_text(*parent), as_text(*state));
}

bool is_coroutine(PyObject* value) {
  if (PyCoro_CheckExact(value)) return true;
  // Coroutines of compiled modules have a type of their own, with send() where a Future has none.
  const auto* async = Py_TYPE(value)->tp_as_async;
  if (async == nullptr || async->am_await == nullptr) return false;
  return PyObject_HasAttrString(value, "send") != 0 &&
         PyObject_HasAttrString(value, "cr_frame") != 0;
}

// How others look names up: as the invoker of this program does. Set and cleared under the GIL.
struct Names {
  const Invoker* invoker = nullptr;
  std::function<py::Ref(std::string_view module, std::string_view function)> look_up;
  std::function<bool(std::string_view module, std::string_view function)> is_allowed;
};
Names g_names;

const Names& names() {
  if (g_names.invoker == nullptr)
    py::raise(PyExc_RuntimeError, "this interpreter does not run inside a node");
  return g_names;
}

bool is_own_function(PyObject* object, std::string_view module) {
  if (!PyFunction_Check(object)) return false;
  const py::Ref home = py::attribute(object, "__module__");
  return PyUnicode_Check(home.get()) && py::text_of(home.get()) == module;
}

[[noreturn]] void raise_not_allowed(std::string_view module, std::string_view function) {
  const py::Ref type = py::attribute(py::import("erlang.exceptions").get(), "NotAllowed");
  throw py::Error(py::check(PyObject_CallFunction(
      type.get(), "s#s#", module.data(), static_cast<Py_ssize_t>(module.size()), function.data(),
      static_cast<Py_ssize_t>(function.size()))));
}

// The reason that an erlang.exceptions.Refused gives, as a term; nullopt for every other exception,
// and where that reason is no term.
std::optional<etf::Buffer> own_reason(term::Codec& codec, const py::Error& error) {
  try {
    const py::Ref refused = py::attribute(py::import("erlang.exceptions").get(), "Refused");
    if (!error.matches(refused.get())) return std::nullopt;
    const py::Ref reason = py::attribute(error.exception(), "reason");
    etf::Buffer bytes;
    etf::Writer out(bytes);
    codec.encode(reason.get(), out, "reason");
    return bytes;
  } catch (const py::Error&) {
    return std::nullopt;
  }
}

bool is_coroutine_function(PyObject* callable) {
  PyObject* plain = PyMethod_Check(callable) ? PyMethod_GET_FUNCTION(callable) : callable;
  if (!PyFunction_Check(plain)) return false;
  const auto* code = reinterpret_cast<PyCodeObject*>(PyFunction_GET_CODE(plain));
  return (code->co_flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE)) != 0;
}

}  // namespace

py::Ref look_up(std::string_view module, std::string_view function) {
  return names().look_up(module, function);
}

bool is_allowed(std::string_view module, std::string_view function) {
  return names().is_allowed(module, function);
}

struct Invoker::Request {
  enum class Verb { kCall, kEval, kExec };
  Verb verb = Verb::kCall;
  std::string_view module;
  std::string_view function;
  etf::Bytes arguments;  // everything from the arguments' tag on, unchecked
  etf::Bytes keywords;   // likewise; empty when there are none
  std::string_view code;
  etf::Bytes locals;
  etf::PidView caller;
  term::BinaryPolicy binary = term::BinaryPolicy::kAuto;
  std::optional<base::TraceContext> trace;
};

// While it lives the code of a call runs in the call's trace context.
class Invoker::Tracing {
 public:
  Tracing(const Invoker& invoker, const Call& call)
      : invoker_(invoker), log_(call.trace.get()), tokens_(invoker.enter_trace(call)) {}
  ~Tracing() { invoker_.leave_trace(tokens_); }
  Tracing(const Tracing&) = delete;
  Tracing& operator=(const Tracing&) = delete;

 private:
  const Invoker& invoker_;
  const base::LogTrace log_;
  const py::Ref tokens_;
};

Invoker::Invoker(term::Codec& codec, Answers& answers, CallMetrics& metrics, Options options,
                 Hooks hooks)
    : codec_(codec),
      answers_(answers),
      metrics_(metrics),
      options_(std::move(options)),
      hooks_(std::move(hooks)) {
  const py::Ref trace = py::import("erlang._trace");
  enter_trace_ = py::attribute(trace.get(), "enter");
  leave_trace_ = py::attribute(trace.get(), "leave");
  cancelled_ = py::attribute(py::import("erlang.exceptions").get(), "Cancelled");
  py::Ref builtins = py::import("builtins");
  for (const char* name : {"eval", "exec", "compile", "__import__"}) {
    evaluators_.push_back(py::attribute(builtins.get(), name));
  }
  async_cancelled_ = py::attribute(py::import("asyncio").get(), "CancelledError");
  g_names.invoker = this;
  g_names.look_up = [this](std::string_view module, std::string_view function) {
    const bool code = module == "builtins" && (function == "eval" || function == "exec");
    if (!options_.allow.allows(module, function) || (code && !options_.eval))
      raise_not_allowed(module, function);
    try {
      return resolve(module, function);
    } catch (const NotAllowed&) {
      raise_not_allowed(module, function);
    }
  };
  g_names.is_allowed = [this](std::string_view module, std::string_view function) {
    return options_.allow.allows(module, function);
  };
}

Invoker::~Invoker() {
  if (g_names.invoker == this) g_names = Names();
}

// --- requests
// ----------------------------------------------------------------------------------------------------

// The map at the end of a request: what is not known in it is for others.
std::optional<base::Error> Invoker::read_options(etf::Reader& in, Request& request) {
  const auto wrong = [](std::string what) {
    return base::Error{ErrorCode::kWrongType, 0, std::move(what)};
  };
  auto pairs = in.map();
  if (!pairs) return wrong("options");
  for (std::uint32_t i = 0; i < *pairs; ++i) {
    auto key = in.atom();
    if (!key) return wrong("options");
    if (*key == "binary") {
      auto value = in.atom();
      if (!value) return wrong("options");
      if (*value == "auto")
        request.binary = term::BinaryPolicy::kAuto;
      else if (*value == "str")
        request.binary = term::BinaryPolicy::kStr;
      else if (*value == "bytes")
        request.binary = term::BinaryPolicy::kBytes;
      else
        return wrong("options: binary");
    } else {
      auto value = in.term();
      if (!value) return value.error();
      if (*key == "trace") request.trace = trace_in(*value);
    }
  }
  return std::nullopt;
}

base::Result<Invoker::Request> Invoker::parse(const Call& call) const {
  const auto wrong = [](std::string what) {
    return base::Error{ErrorCode::kWrongType, 0, std::move(what)};
  };
  Request request;
  request.binary = options_.binary;
  request.caller = call.from;
  if (call.kind == Call::Kind::kSpawn || call.kind == Call::Kind::kErpc ||
      call.kind == Call::Kind::kErpcCast) {
    request.module = call.module;
    request.function = call.function;
    request.arguments = call.request;
    return request;
  }

  etf::Reader in(call.request);
  auto arity = in.tuple();
  if (!arity) return wrong("not a tuple");
  auto verb = in.atom();
  if (!verb) return wrong("no verb");
  std::uint32_t left = *arity - 1;
  const bool cast = *verb == "cast";
  if (call.kind == Call::Kind::kBatchItem && !cast) {
    auto id = in.unsigned_integer();
    if (!id) return wrong("no id");
    --left;
  }
  if (*verb == "call" || cast) {
    if (left < 3 || left > 5) return wrong("arity");
    auto module = name_text(in);
    if (!module) return wrong("module");
    auto function = name_text(in);
    if (!function) return wrong("function");
    request.module = *module;
    request.function = *function;
    if (left == 3) {
      request.arguments = in.rest();
      return request;
    }
    auto arguments = in.term();
    if (!arguments) return arguments.error();
    request.arguments = *arguments;
    request.keywords = in.rest();
    if (left == 5) {
      auto keywords = in.term();
      if (!keywords) return keywords.error();
      request.keywords = *keywords;
      if (auto error = read_options(in, request)) return *error;
    }
    return request;
  }
  const bool eval = *verb == "eval";
  if (!eval && !(*verb == "exec")) return wrong("verb");
  request.verb = eval ? Request::Verb::kEval : Request::Verb::kExec;
  if (call.kind == Call::Kind::kBatchItem) {
    auto caller = in.pid();
    if (!caller) return wrong("caller");
    request.caller = *caller;
    --left;
  }
  const std::uint32_t most = eval ? 3 : 2;  // with options behind the locals, or the code
  if (left < 1 || left > most) return wrong("arity");
  auto code = name_text(in);
  if (!code) return wrong("code");
  request.code = *code;
  if (eval && left == 2) request.locals = in.rest();
  if (eval && left == 3) {
    auto locals = in.term();
    if (!locals) return locals.error();
    request.locals = *locals;
  }
  if (left == most) {
    if (auto error = read_options(in, request)) return *error;
  }
  return request;
}

bool Invoker::allowed(const Call& call, const Request& request) {
  const bool code = request.verb != Request::Verb::kCall;
  std::string_view module = request.module;
  std::string_view function = request.function;
  if (code) {
    module = "builtins";
    function = request.verb == Request::Verb::kEval ? "eval" : "exec";
  }
  if ((!code || options_.eval) && options_.allow.allows(module, function)) return true;
  refuse_not_allowed(call, module, function);
  return false;
}

void Invoker::refuse_not_allowed(const Call& call, std::string_view module,
                                 std::string_view function) {
  refuse(call, [&](etf::Writer& out) {
    out.tuple(2).atom("not_allowed").tuple(2).binary(module).binary(function);
  });
}

void Invoker::run(const CallPtr& call) noexcept {
  try {
    if (call->kind == Call::Kind::kFreeNamespace) return free_namespace(call->caller);
    if (call->cancelled.load(std::memory_order_relaxed)) {
      return refuse(*call, "cancelled", Result::kCancelled);
    }
    auto request = parse(*call);
    if (!request) {
      if (request.error().code != ErrorCode::kWrongType)
        return report_bad_term(*call, request.error());
      etf::Reader in(call->request);
      auto whole = in.term();
      if (!whole) return report_bad_term(*call, whole.error());
      if (call->kind == Call::Kind::kCast) {
        spdlog::warn("{}: a cast that is none of ours was dropped",
                     call->link ? call->link->peer().name : call->from.node.utf8());
      }
      return refuse(*call, [&](etf::Writer& out) { out.tuple(2).atom("bad_request").raw(*whole); });
    }
    if (!allowed(*call, *request)) return;
    try {
      run_parsed(call, *request);
    } catch (const NotAllowed&) {
      refuse_not_allowed(*call, request->module, request->function);
    }
  } catch (const py::Error& error) {
    WorkerPool::leave_user_code();
    report(*call, error);
  } catch (const std::exception& error) {
    WorkerPool::leave_user_code();
    spdlog::error("a call failed inside the node: {}", error.what());
    refuse(*call, "system_limit");
  }
}

void Invoker::run_parsed(const CallPtr& call, const Request& request) {
  if (request.trace) call->trace = std::make_shared<const base::TraceContext>(*request.trace);
  const Tracing tracing(*this, *call);
  if (request.verb == Request::Verb::kCall) return call_function(call, request);
  run_code(call, request);
}

void Invoker::call_function(const CallPtr& call, const Request& request) {
  // Arguments lie behind one free slot, which lets a bound method put its self there without
  // copying.
  std::vector<py::Ref> arguments;
  term::DecodeOptions decode{request.binary};
  etf::Reader in(request.arguments);
  auto tag = in.peek();
  if (tag && *tag == etf::kString) {
    auto list = codec_.decode(in, decode);
    if (!list) return report_bad_term(*call, list.error());
    const Py_ssize_t count = PyList_GET_SIZE(list->get());
    for (Py_ssize_t i = 0; i < count; ++i)
      arguments.push_back(py::Ref::borrow(PyList_GET_ITEM(list->get(), i)));
  } else {
    auto count = in.list();
    if (!count) return report_bad_term(*call, count.error());
    arguments.reserve(std::min<std::size_t>(*count, 1024));
    for (std::uint32_t i = 0; i < *count; ++i) {
      auto value = codec_.decode(in, decode);
      if (!value) return report_bad_term(*call, value.error());
      arguments.push_back(std::move(*value));
    }
    if (*count > 0) {
      auto tail = in.nil();
      if (!tail)
        return report_bad_term(
            *call, {ErrorCode::kUnsupported, in.offset(), "the arguments are no proper list"});
    }
  }
  py::Ref keywords;
  if (!request.keywords.empty()) {
    etf::Reader map(request.keywords);
    auto kw_tag = map.peek();
    if (*kw_tag != etf::kNil) {
      auto value = codec_.decode(map, decode);
      if (!value) return report_bad_term(*call, value.error());
      if (!PyDict_Check(value->get())) {
        return report_bad_term(*call,
                               {ErrorCode::kUnsupported, 0, "the keyword arguments are no map"});
      }
      // Keys may have come as atoms; Python wants plain strings.
      keywords = py::check(PyDict_New());
      PyObject* key = nullptr;
      PyObject* item = nullptr;
      Py_ssize_t position = 0;
      while (PyDict_Next(value->get(), &position, &key, &item) != 0) {
        if (!PyUnicode_Check(key)) py::raise(PyExc_TypeError, "keyword arguments must have names");
        py::Ref plain = py::check(PyUnicode_FromObject(key));
        py::check_status(PyDict_SetItem(keywords.get(), plain.get(), item));
      }
    }
  }

  py::Ref callable = resolve(request.module, request.function);
  call->function_counts = metrics_.function(request.module, request.function);
  std::array<PyObject*, kInlineArguments + 1> few{};
  std::vector<PyObject*> many;
  PyObject** slots = few.data();
  if (arguments.size() > kInlineArguments) {
    many.resize(arguments.size() + 1);
    slots = many.data();
  }
  for (std::size_t i = 0; i < arguments.size(); ++i) slots[i + 1] = arguments[i].get();
  py::Ref value = py::check(
      PyObject_VectorcallDict(callable.get(), slots + 1,
                              arguments.size() | PY_VECTORCALL_ARGUMENTS_OFFSET, keywords.get()));
  if (is_coroutine_function(callable.get())) note_async(request);
  deliver(call, std::move(value));
}

// What a call's own code returned: its answer, or a coroutine that will have it.
void Invoker::deliver(const CallPtr& call, py::Ref value) {
  WorkerPool::leave_user_code();
  if (is_coroutine(value.get())) {
    if (hooks_.start_task(call, value)) return;
    py::check(PyObject_CallMethod(value.get(), "close", nullptr));
    return refuse(*call, "overloaded");
  }
  answer(*call, value.get());
}

// --- eval and exec
// -----------------------------------------------------------------------------------------------

void Invoker::run_code(const CallPtr& call, const Request& request) {
  call->function_counts =
      metrics_.function("builtins", request.verb == Request::Verb::kEval ? "eval" : "exec");
  const std::string caller(as_text(request.caller.raw));
  auto [found, fresh] = namespaces_.try_emplace(caller);
  Namespace& space = found->second;
  if (space.busy) {
    if (space.waiting.size() >= kMaxWaiting) {
      return refuse(*call, "overloaded");
    }
    space.waiting.push_back(call);
    return;
  }
  if (fresh) {
    space.globals = py::check(PyDict_New());
    py::Ref builtins = py::import("builtins");
    py::check_status(PyDict_SetItemString(space.globals.get(), "__builtins__", builtins.get()));
    py::Ref name = py::check(PyUnicode_FromString("__main__"));
    py::check_status(PyDict_SetItemString(space.globals.get(), "__name__", name.get()));
    hooks_.watch(caller);
  }
  space.busy = true;
  // Looked up again afterwards: the code may run for long, and the caller may end meanwhile.
  const auto leave = [&] {
    auto again = namespaces_.find(caller);
    if (again == namespaces_.end()) return;
    again->second.busy = false;
    if (again->second.waiting.empty()) return;
    CallPtr next = std::move(again->second.waiting.front());
    again->second.waiting.pop_front();
    hooks_.run_again(std::move(next));
  };
  try {
    py::Ref value = evaluate(space, request);
    deliver(call, std::move(value));
  } catch (...) {
    leave();
    throw;
  }
  leave();
}

py::Ref Invoker::evaluate(Namespace& space, const Request& request) {
  py::Ref globals = py::Ref::borrow(space.globals.get());
  if (!request.locals.empty()) {
    etf::Reader in(request.locals);
    auto locals = codec_.decode(in, {request.binary});
    if (!locals) py::raise(PyExc_ValueError, "locals: " + locals.error().message());
    if (!PyDict_Check(locals->get())) py::raise(PyExc_TypeError, "locals must be a map");
    if (PyDict_GET_SIZE(locals->get()) > 0) {
      // A copy, so that the names given with one request are gone after it; as globals, so that
      // comprehensions and lambdas see them.
      globals = py::check(PyDict_Copy(space.globals.get()));
      PyObject* key = nullptr;
      PyObject* item = nullptr;
      Py_ssize_t position = 0;
      while (PyDict_Next(locals->get(), &position, &key, &item) != 0) {
        if (!PyUnicode_Check(key)) py::raise(PyExc_TypeError, "locals must have names");
        py::Ref plain = py::check(PyUnicode_FromObject(key));
        py::check_status(PyDict_SetItem(globals.get(), plain.get(), item));
      }
    }
  }
  const std::string source(request.code);
  if (source.find('\0') != std::string::npos)
    py::raise(PyExc_ValueError, "source code contains null bytes");
  const int mode = request.verb == Request::Verb::kEval ? Py_eval_input : Py_file_input;
  const std::size_t start = mode == Py_eval_input ? source.find_first_not_of(" \t") : 0;
  py::Ref code = py::check(Py_CompileString(
      source.c_str() + (start == std::string::npos ? 0 : start), "<erlang>", mode));
  return py::check(PyEval_EvalCode(code.get(), globals.get(), globals.get()));
}

void Invoker::free_namespace(const std::string& caller) {
  auto found = namespaces_.find(caller);
  if (found == namespaces_.end()) return;
  auto gone = namespaces_.extract(found);  // destroyed last: its objects may run code of their own
  for (auto& call : gone.mapped().waiting) call->done = true;
}

// --- names
// -------------------------------------------------------------------------------------------------------

PyObject* Invoker::interned(std::string_view text) {
  const std::string key(text);
  if (auto found = names_.find(key); found != names_.end()) return found->second.get();
  PyObject* name = PyUnicode_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size()));
  if (name == nullptr) py::throw_fetched();
  // Peers choose these names, so the cache has an end.
  if (names_.size() >= kMaxNames) names_.clear();
  return names_.emplace(key, py::Ref::steal(name)).first->second.get();
}

py::Ref Invoker::module(std::string_view name) {
  const std::string key(name);
  PyObject* text = interned(name);
  if (auto known = modules_.find(key); known != modules_.end()) {
    py::Ref present = py::Ref::steal(PyImport_GetModule(text));
    if (!present && PyErr_Occurred() != nullptr) py::throw_fetched();
    if (present.get() == known->second.get()) return present;
  }
  py::Ref hold = py::Ref::borrow(text);
  py::Ref module = py::check(PyImport_Import(hold.get()));
  if (modules_.size() >= kMaxNames) modules_.clear();
  modules_[key] = py::Ref::borrow(module.get());
  return module;
}

py::Ref Invoker::resolve(std::string_view module_name, std::string_view function) {
  if (module_name.empty() || function.empty())
    py::raise(PyExc_ValueError, "empty module or function name");
  const std::string_view called = function;
  py::Ref object = module(module_name);
  // With an allow-list a name is not a way into what the module imports: a module on the way, or at
  // its end, must be importable by that very name.
  const bool closed = !options_.allow.open();
  std::string path(module_name);
  for (;;) {
    const std::size_t dot = function.find('.');
    py::Ref name = py::Ref::borrow(interned(function.substr(0, dot)));
    object = py::check(PyObject_GetAttr(object.get(), name.get()));
    if (closed) {
      path += '.';
      path += function.substr(0, dot);
      if (PyModule_Check(object.get())) check_module(object.get(), path);
    }
    if (dot == std::string_view::npos) break;
    function.remove_prefix(dot + 1);
  }
  if (!options_.eval) check_no_evaluation(object.get());
  // What an entry module merely imports is no entry.
  if (closed && is_entry(module_name, called) && !is_own_function(object.get(), module_name))
    throw NotAllowed();
  return object;
}

void Invoker::check_module(PyObject* object, std::string_view name) {
  py::Ref known = py::Ref::steal(PyImport_GetModule(interned(name)));
  if (!known && PyErr_Occurred() != nullptr) py::throw_fetched();
  if (known.get() != object) throw NotAllowed();
}

// With eval switched off its helpers in builtins are not to be had by another name either.
void Invoker::check_no_evaluation(PyObject* object) {
  for (const auto& evaluator : evaluators_) {
    if (evaluator.get() == object) throw NotAllowed();
  }
}

bool Invoker::is_async(const CallPtr& call) noexcept {
  try {
    if (call->cancelled.load(std::memory_order_relaxed)) return true;  // answered without a worker
    const Payload held = call->payload;  // a worker may take it, and be done with it, meanwhile
    if (call->link && !held) return false;
    auto request = parse(*call);
    if (!request || request->verb != Request::Verb::kCall) return false;
    if (!options_.allow.allows(request->module, request->function)) return true;
    if (!modules_.contains(std::string(request->module))) return false;  // importing may take long
    py::Ref function = resolve(request->module, request->function);
    return is_coroutine_function(function.get());
  } catch (const NotAllowed&) {
    return true;  // refused without a worker
  } catch (const py::Error&) {
    return false;
  }
}

std::optional<Invoker::FunctionName> Invoker::name_of(const Call& call) {
  if (call.kind == Call::Kind::kErpc) return FunctionName{call.module, call.function};
  if (call.kind != Call::Kind::kRequest && call.kind != Call::Kind::kBatchItem) return std::nullopt;
  etf::Reader in(call.request);
  auto arity = in.tuple();
  auto verb = in.atom();
  if (!arity || !verb || !(*verb == "call")) return std::nullopt;
  if (call.kind == Call::Kind::kBatchItem && !in.unsigned_integer()) return std::nullopt;
  auto module = name_text(in);
  if (!module) return std::nullopt;
  auto function = name_text(in);
  if (!function) return std::nullopt;
  return FunctionName{*module, *function};
}

std::size_t Invoker::NameHash::operator()(const FunctionName& name) const {
  const std::hash<std::string_view> hash;
  return hash(name.module) * 31 + hash(name.function);
}

std::size_t Invoker::NameHash::operator()(const std::pair<std::string, std::string>& name) const {
  return (*this)(FunctionName{name.first, name.second});
}

bool Invoker::was_async(const Call& call) const {
  if (!knows_async_.load(std::memory_order_acquire)) return false;
  const auto name = name_of(call);
  if (!name) return false;
  const std::lock_guard lock(async_mutex_);
  return async_.find(*name) != async_.end();
}

void Invoker::note_async(const Request& request) {
  const FunctionName name{request.module, request.function};
  const std::lock_guard lock(async_mutex_);
  if (async_.find(name) != async_.end()) return;
  // Peers choose these names.
  if (async_.size() >= kMaxNames) async_.clear();
  async_.emplace(std::string(name.module), std::string(name.function));
  knows_async_.store(true, std::memory_order_release);
}

void Invoker::forget_async(const Call& call) {
  const auto name = name_of(call);
  if (!name) return;
  const std::lock_guard lock(async_mutex_);
  if (auto found = async_.find(*name); found != async_.end()) async_.erase(found);
}

// --- answers
// -----------------------------------------------------------------------------------------------------

void Invoker::answer(const Call& call, PyObject* value) {
  const auto ran = CallMetrics::Clock::now();
  Reply reply(call, answers_);
  if (!reply.wanted()) return over(call, Result::kOk, ran);
  reply.begin_ok();
  if (call.kind != Call::Kind::kSpawn) {
    codec_.encode(value, reply.out());
    if (reply.out().buffer().size() > etf::kMaxMessage)
      py::raise(PyExc_ValueError, "the result is over the message limit");
  }
  reply.finish(true);
  over(call, Result::kOk, ran);
}

void Invoker::finish(const Call& call, PyObject* value, PyObject* exception) noexcept {
  try {
    if (exception != nullptr) return report(call, py::Error(py::Ref::borrow(exception)));
    answer(call, value);
  } catch (const py::Error& error) {
    report(call, error);
  } catch (const std::exception& error) {
    spdlog::error("an answer failed inside the node: {}", error.what());
    refuse(call, "system_limit");
  }
}

py::Ref Invoker::enter_trace(const Call& call) const {
  if (!call.trace) return {};
  return py::check(PyObject_CallFunction(enter_trace_.get(), "s#s#", call.trace->parent().data(),
                                         static_cast<Py_ssize_t>(call.trace->parent().size()),
                                         call.trace->state().data(),
                                         static_cast<Py_ssize_t>(call.trace->state().size())));
}

void Invoker::leave_trace(const py::Ref& tokens) const noexcept {
  if (!tokens) return;
  const py::Ref left = py::Ref::steal(PyObject_CallOneArg(leave_trace_.get(), tokens.get()));
  if (!left) PyErr_Clear();
}

void Invoker::report(const Call& call, const py::Error& error) {
  const base::LogTrace log(call.trace.get());
  if (error.matches(cancelled_.get()) || error.matches(async_cancelled_.get()))
    return refuse(call, "cancelled", Result::kCancelled);
  const py::Description told = error.describe();
  if (call.kind == Call::Kind::kCast || call.kind == Call::Kind::kErpcCast ||
      call.kind == Call::Kind::kSpawn) {
    spdlog::error("a cast or process raised {}: {}\n{}", told.type, told.message, told.traceback);
  }
  if (const auto own = own_reason(codec_, error)) {
    return refuse(call, [&](etf::Writer& out) { out.raw(own->bytes()); });
  }
  const auto reason = [&](etf::Writer& out) {
    out.tuple(4).atom("python").binary(told.type).binary(told.message).binary(told.traceback);
  };
  refuse(call, reason, Result::kError);
}

void Invoker::report_bad_term(const Call& call, const base::Error& error) {
  const bool untrusted = error.code == ErrorCode::kTruncated ||
                         error.code == ErrorCode::kUnknownTag ||
                         error.code == ErrorCode::kMalformed;
  if (untrusted && answers_.results() != nullptr) answers_.results()->distrust(call);
  refuse(call, [&](etf::Writer& out) { out.tuple(2).atom("bad_term").binary(error.message()); });
  if (untrusted && call.link) {
    spdlog::warn("{}: a message that cannot be understood ({}); closing the link",
                 call.link->peer().name, error.message());
    answers_.flush();
    call.link->close("a message that cannot be understood");
  }
}

void Invoker::over(const Call& call, Result result, CallMetrics::Clock::time_point ran) {
  WorkerPool::over(metrics_.answered(call, result, ran));
  if (call.link) call.payload.reset();  // the Router may remember the call for a while
}

void Invoker::refuse(const Call& call, std::string_view reason, Result result) {
  refuse(
      call, [&](etf::Writer& out) { out.atom(reason); }, result);
}

void Invoker::refuse(const Call& call, const std::function<void(etf::Writer&)>& reason,
                     Result result) {
  WorkerPool::leave_user_code();
  const auto ran = CallMetrics::Clock::now();
  Reply reply(call, answers_);
  if (!reply.wanted()) return over(call, result, ran);
  reply.begin_error();
  reason(reply.out());
  reply.finish(false);
  over(call, result, ran);
}

}  // namespace bridge
