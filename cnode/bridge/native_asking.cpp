#include "cnode/bridge/native_asking.hpp"

#include <algorithm>

#include "cnode/base/log.hpp"
#include "cnode/base/trace.hpp"
#include "cnode/bridge/asker.hpp"
#include "cnode/bridge/front.hpp"
#include "cnode/bridge/native_support.hpp"
#include "cnode/bridge/waiting.hpp"

namespace bridge {
namespace {

PyObject* g_served = nullptr;
PyTypeObject* g_question_type = nullptr;

// --- errors
// ------------------------------------------------------------------------------------------------------

[[noreturn]] void raise_erlang(const char* type_name, PyObject* kind, PyObject* reason,
                               PyObject* stack) {
  py::Ref type = py::attribute(py::import("erlang.exceptions").get(), type_name);
  py::Ref error = py::check(PyObject_CallFunctionObjArgs(type.get(), kind, reason, stack, nullptr));
  PyErr_SetObject(type.get(), error.get());
  py::throw_fetched();
}

[[noreturn]] void raise_overloaded(term::Codec& codec) {
  raise_erlang("ErlangError", codec.atom("error").get(), codec.atom("overloaded").get(), nullptr);
}

py::Ref decoded(term::Codec& codec, etf::Reader& in) {
  auto value = codec.decode(in);
  if (value) return std::move(*value);
  py::Ref type = py::attribute(py::import("erlang.exceptions").get(), "DecodeError");
  py::raise(type.get(), value.error().message());
}

// --- where to
// ----------------------------------------------------------------------------------------------------

constexpr const char* kServedCapsule = "sidewinder.served";
using ServedPtr = std::shared_ptr<Served>;

ServedPtr describe_served(const Call& call) {
  auto served = std::make_shared<Served>();
  served->node = call.link ? call.link->peer().name : std::string(call.peer);
  switch (call.kind) {
    case Call::Kind::kRequest:
    case Call::Kind::kSpawn:
    case Call::Kind::kErpc:
    case Call::Kind::kErpcCast:
      served->node = call.from.node.utf8();
      served->process = dist::keep(call.from.raw);
      break;
    default:
      break;  // through the application, whose link process does not say for whom
  }
  return served;
}

// What is being served in this thread or task; null when nothing is.
ServedPtr served_here(term::Codec& codec) {
  if (const Call* call = WorkerPool::current_call();
      call != nullptr && (call->link || !call->peer.empty()))
    return describe_served(*call);
  PyObject* value = nullptr;
  py::check_status(PyContextVar_Get(g_served, nullptr, &value));
  const py::Ref mark = py::Ref::steal(value);
  if (!mark || mark.get() == Py_None) return nullptr;
  if (PyCapsule_IsValid(mark.get(), kServedCapsule) != 0) {
    const auto& served = *static_cast<ServedPtr*>(PyCapsule_GetPointer(mark.get(), kServedCapsule));
    return served->over.load(std::memory_order_relaxed) ? nullptr : served;
  }
  // A server's own: the process whose request it handles.
  etf::Pid pid;
  if (!codec.as_pid(mark.get(), pid)) return nullptr;
  auto served = std::make_shared<Served>();
  const etf::Buffer raw = encode_pid(pid);
  served->node = pid.node;
  served->process = dist::keep(raw.bytes());
  return served;
}

// Its node; empty when it is none, or this one.
std::string served_peer(Runtime& runtime) {
  const ServedPtr served = served_here(runtime.codec());
  return served && served->node != runtime.node().name() ? served->node : std::string();
}

std::string peer_for_call(Runtime& runtime, PyObject* node) {
  if (node != Py_None) return text_argument(node, "a node's name");
  if (std::string peer = served_peer(runtime); !peer.empty()) return peer;
  if (!runtime.home().empty()) return runtime.home();
  std::string peer = runtime.asker().first_peer();
  if (peer.empty()) raise_no_connection("no peer runs the application");
  return peer;
}

// --- questions
// ---------------------------------------------------------------------------------------------------

// Says it to the asker. Without the GIL, from any thread.
using Send = std::function<void(const QuestionPtr&)>;

QuestionPtr make_question(Runtime& runtime, Question::Kind kind, mailbox::WaiterPtr waiter) {
  auto question = std::make_shared<Question>();
  question->kind = kind;
  question->id = runtime.asker().next_id();
  question->waiter = std::move(waiter);
  if (kind != Question::Kind::kCall) question->ref = runtime.node().make_ref();
  return question;
}

void encode_list(term::Codec& codec, etf::Writer& out, PyObject* items, const char* what) {
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
  out.list(static_cast<std::uint32_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    codec.encode(PySequence_Fast_GET_ITEM(items, i), out,
                 std::string(what) + "[" + std::to_string(i) + "]");
  }
  if (count > 0) out.nil();
}

py::Ref sequence(PyObject* object, const char* what) {
  return py::check(PySequence_Fast(object, what));
}

void check_size(const etf::Buffer& message) {
  if (message.size() > etf::kMaxMessage)
    py::raise(PyExc_ValueError, "the arguments are over the message limit");
}

// A pair of traceparent and tracestate; nothing for what is no trace context.
std::optional<base::TraceContext> trace_argument(PyObject* trace) {
  if (trace == Py_None || PyTuple_Check(trace) == 0) return std::nullopt;
  const char *parent = nullptr, *state = nullptr;
  Py_ssize_t parent_size = 0, state_size = 0;
  if (PyArg_ParseTuple(trace, "s#s#", &parent, &parent_size, &state, &state_size) == 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  return base::TraceContext::of({parent, static_cast<std::size_t>(parent_size)},
                                {state, static_cast<std::size_t>(state_size)});
}

Send prepare_call(Runtime& runtime, const QuestionPtr& question, std::uint64_t caller,
                  PyObject* name, PyObject* arguments, const std::string& node, PyObject* trace) {
  const std::string function = text_argument(name, "a function's name");
  auto item = std::make_shared<etf::Buffer>();
  etf::Writer out(*item);
  if (const auto context = trace_argument(trace)) write_trace(out, *question, *context);
  out.tuple(5).atom("call").unsigned_integer(question->id).unsigned_integer(caller);
  out.binary(function);
  encode_list(runtime.codec(), out, sequence(arguments, "the arguments are no sequence").get(),
              "arguments");
  check_size(*item);
  return [&runtime, node, item](const QuestionPtr& asked) {
    runtime.asker().call(asked, node, std::move(*item));
  };
}

// {'$gen_call', {Pid, [alias | Ref]}, Request}
Send prepare_request(Runtime& runtime, const QuestionPtr& question, etf::Bytes from, PyObject* dest,
                     PyObject* request) {
  const Asker::Target target = target_argument(runtime, dest);
  auto message = std::make_shared<etf::Buffer>();
  etf::Writer out(*message);
  out.tuple(3).atom("$gen_call").tuple(2).raw(from);
  out.list(1).atom("alias").reference(question->ref);
  runtime.codec().encode(request, out, "request");
  check_size(*message);
  return [&runtime, target, message](const QuestionPtr& asked) {
    runtime.asker().request(asked, target, std::move(*message));
  };
}

// [Ref, M, F, Args] for erpc:execute_call/4
Send prepare_remote(Runtime& runtime, const QuestionPtr& question, PyObject* node, PyObject* module,
                    PyObject* function, PyObject* arguments) {
  const std::string peer = text_argument(node, "a node's name");
  const std::string m = text_argument(module, "a module's name");
  const std::string f = text_argument(function, "a function's name");
  for (const auto& name : {m, f}) {
    if (!etf::is_utf8(name, 255)) py::raise(PyExc_ValueError, "'" + name + "' is no atom");
  }
  auto list = std::make_shared<etf::Buffer>();
  etf::Writer out(*list);
  out.list(4).reference(question->ref).atom(m).atom(f);
  encode_list(runtime.codec(), out, sequence(arguments, "the arguments are no sequence").get(),
              "arguments");
  out.nil();
  check_size(*list);
  return [&runtime, peer, list](const QuestionPtr& asked) {
    runtime.asker().spawn(asked, peer, list->bytes());
  };
}

// --- answers
// -----------------------------------------------------------------------------------------------------

// {Id, Result}'s Result: docs/protocol.md.
py::Ref call_result(term::Codec& codec, const Question& question) {
  etf::Reader in(question.bytes);
  if (auto word = in.atom()) {
    if (*word == "not_registered")
      raise_erlang("UnknownFunction", codec.atom("error").get(), codec.atom("undef").get(),
                   nullptr);
    raise_erlang("ErlangError", codec.atom("error").get(), codec.atom(word->utf8()).get(), nullptr);
  }
  auto arity = in.tuple();
  auto word = in.atom();
  if (arity && word && *arity == 2 && *word == "ok") return decoded(codec, in);
  if (arity && word && *arity == 2 && *word == "signal") {
    const py::Ref why = decoded(codec, in);
    const py::Ref signal = codec.atom("signal");
    const py::Ref reason = py::check(PyTuple_Pack(2, signal.get(), why.get()));
    raise_erlang("ErlangError", codec.atom("exit").get(), reason.get(), nullptr);
  }
  if (arity && word && *arity == 3) {
    const py::Ref kind = codec.atom(word->utf8());
    const py::Ref reason = decoded(codec, in);
    const py::Ref stack = decoded(codec, in);
    raise_erlang("ErlangError", kind.get(), reason.get(), stack.get());
  }
  etf::Reader whole(question.bytes);
  raise_erlang("ErlangError", codec.atom("error").get(), decoded(codec, whole).get(), nullptr);
}

bool is_no_connection(etf::Bytes reason) {
  etf::Reader in(reason);
  auto word = in.atom();
  return word && *word == "noconnection";
}

// erpc's exit reason: {Ref, return, V}, {Ref, throw | exit, R}, {Ref, error, R, Stack}; anything
// else ended the process before it came to that.
py::Ref remote_result(term::Codec& codec, const Question& question) {
  etf::Reader in(question.bytes);
  auto arity = in.tuple();
  auto ref = in.reference();
  if (arity && ref && ref->words == question.ref.words) {
    auto word = in.atom();
    if (word && *arity == 3 && *word == "return") return decoded(codec, in);
    if (word && (*arity == 3 || *arity == 4)) {
      const py::Ref kind = codec.atom(word->utf8());
      const py::Ref reason = decoded(codec, in);
      const py::Ref stack = *arity == 4 ? decoded(codec, in) : py::Ref();
      raise_erlang("ErlangError", kind.get(), reason.get(), stack.get());
    }
  }
  if (is_no_connection(question.bytes)) raise_no_connection();
  etf::Reader whole(question.bytes);
  const py::Ref why = decoded(codec, whole);
  const py::Ref signal = codec.atom("signal");
  const py::Ref reason = py::check(PyTuple_Pack(2, signal.get(), why.get()));
  raise_erlang("ErlangError", codec.atom("exit").get(), reason.get(), nullptr);
}

py::Ref result_of(term::Codec& codec, const Question& question) {
  etf::Reader in(question.bytes);
  switch (question.told.load(std::memory_order_acquire)) {
    case Question::Told::kNothing:
      py::raise(PyExc_RuntimeError, "the question has not been answered yet");
    case Question::Told::kNoConnection:
      raise_no_connection();
    case Question::Told::kRefused:
      raise_erlang("ErlangError", codec.atom("error").get(), decoded(codec, in).get(), nullptr);
    case Question::Told::kDown:
      if (is_no_connection(question.bytes)) raise_no_connection();
      raise_erlang("ErlangError", codec.atom("exit").get(), decoded(codec, in).get(), nullptr);
    case Question::Told::kAnswer:
      break;
  }
  switch (question.kind) {
    case Question::Kind::kCall:
      return call_result(codec, question);
    case Question::Kind::kRequest:
      return decoded(codec, in);
    case Question::Kind::kRemote:
      return remote_result(codec, question);
  }
  return none();
}

// --- from a thread
// -----------------------------------------------------------------------------------------------

void refuse_on_loop(AsyncLoop& loop, const char* instead) {
  if (!loop.is_loop_thread()) return;
  py::raise(PyExc_RuntimeError,
            std::string("this would block the node's event loop; use await erlang.") + instead);
}

// Sends the question and waits for the answer, both without the GIL. A worker is replaced while it
// waits.
py::Ref ask_and_wait(term::Codec& codec, const Send& forget, const QuestionPtr& question,
                     const std::shared_ptr<ThreadWaiter>& waiter, PyObject* timeout,
                     const Send& send) {
  const auto until = deadline_argument(timeout);
  std::optional<WaitingHere> here;  // only a worker is interrupted while it waits
  if (WorkerPool::current_call() != nullptr) here.emplace(waiter);
  bool refused = false;
  auto woken = ThreadWaiter::Woken::kWoken;
  {
    const py::GilRelease released;
    const WorkerPool::Waiting place;
    refused = place.refused();
    if (!refused) {
      send(question);
      woken = waiter->wait(until);
    }
  }
  if (refused) raise_overloaded(codec);
  while (!question->answered()) {
    if (woken == ThreadWaiter::Woken::kTimeout) {
      forget(question);
      if (question->answered()) break;
      py::raise(PyExc_TimeoutError, "Erlang has not answered in time");
    }
    try {
      raise_pending();
    } catch (const py::Error&) {
      forget(question);
      throw;
    }
    const py::GilRelease released;
    const WorkerPool::Waiting place;
    woken = waiter->wait(until);
  }
  return result_of(codec, *question);
}

py::Ref ask_and_wait(Runtime& runtime, const QuestionPtr& question,
                     const std::shared_ptr<ThreadWaiter>& waiter, PyObject* timeout,
                     const Send& send) {
  const Send forget = [&runtime](const QuestionPtr& asked) { runtime.asker().forget(asked); };
  return ask_and_wait(runtime.codec(), forget, question, waiter, timeout, send);
}

// --- in a worker process, through the node
// -------------------------------------------------------------------------------

struct FrontQuestion {
  AskKind kind;
  Question::Kind answer;  // how its answer is read
  etf::Buffer fields;
};

void put(etf::Buffer& out, std::string_view text) {
  etf::write_u16(out.prepare(2), static_cast<std::uint16_t>(text.size()));
  out.commit(2);
  out.append(etf::Bytes{reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
}

std::string name_argument(PyObject* object, const char* what) {
  std::string name = text_argument(object, what);
  if (!etf::is_utf8(name, 255)) py::raise(PyExc_ValueError, "'" + name + "' is no atom");
  return name;
}

std::string served_node(Front& front) {
  const ServedPtr served = served_here(front.codec());
  return served ? served->node : std::string();
}

void put_list(Front& front, etf::Buffer& fields, PyObject* arguments) {
  etf::Writer out(fields);
  const py::Ref items = sequence(arguments, "the arguments are no sequence");
  encode_list(front.codec(), out, items.get(), "arguments");
  check_size(fields);
}

FrontQuestion front_call(Front& front, PyObject* name, PyObject* arguments, PyObject* node,
                         PyObject* trace) {
  FrontQuestion question{AskKind::kCall, Question::Kind::kCall, {}};
  const std::string function = text_argument(name, "a function's name");
  if (function.size() > UINT16_MAX) py::raise(PyExc_ValueError, "a function's name is too long");
  put(question.fields, function);
  put(question.fields, node != Py_None ? name_argument(node, "a node's name") : served_node(front));
  const auto context = trace_argument(trace);
  put(question.fields, context ? context->parent() : std::string());
  put(question.fields, context ? context->state() : std::string());
  put_list(front, question.fields, arguments);
  return question;
}

FrontQuestion front_message(Front& front, AskKind kind, PyObject* dest, PyObject* term,
                            const char* what) {
  FrontQuestion question{kind, Question::Kind::kRequest, {}};
  etf::Pid pid;
  std::string name;
  std::string node;
  etf::Buffer raw;
  if (front.codec().as_pid(dest, pid)) {
    raw = encode_pid(pid);
  } else if (PyTuple_Check(dest) && PyTuple_GET_SIZE(dest) == 2) {
    name = name_argument(PyTuple_GET_ITEM(dest, 0), "a process's name");
    node = name_argument(PyTuple_GET_ITEM(dest, 1), "a node's name");
  } else if (PyUnicode_Check(dest)) {
    name = name_argument(dest, "a process's name");
  } else {
    py::raise(PyExc_TypeError, "a process is a Pid, a name or (name, node)");
  }
  if (raw.empty() && name.empty())
    py::raise(PyExc_ValueError, "a process's name has 1 to 255 characters");
  put(question.fields, name);
  put(question.fields, node);
  put(question.fields, std::string_view(reinterpret_cast<const char*>(raw.data()), raw.size()));
  etf::Writer out(question.fields);
  front.codec().encode(term, out, what);
  check_size(question.fields);
  return question;
}

FrontQuestion front_remote(Front& front, PyObject* const* arguments) {
  FrontQuestion question{AskKind::kRemote, Question::Kind::kRemote, {}};
  put(question.fields, name_argument(arguments[0], "a node's name"));
  put(question.fields, name_argument(arguments[1], "a module's name"));
  put(question.fields, name_argument(arguments[2], "a function's name"));
  put_list(front, question.fields, arguments[3]);
  return question;
}

std::uint64_t current_number() {
  const Call* call = WorkerPool::current_call();
  return call == nullptr ? 0 : call->number;
}

py::Ref ask_front(Front& front, const FrontQuestion& what, PyObject* timeout, const char* instead) {
  refuse_on_loop(front.loop(), instead);
  auto waiter = std::make_shared<ThreadWaiter>();
  auto question = std::make_shared<Question>();
  question->kind = what.answer;
  question->waiter = waiter;
  const Send forget = [&front](const QuestionPtr& asked) { front.forget(asked); };
  const std::uint64_t call = current_number();
  const std::uint64_t thread = PyThread_get_thread_ident();
  const Send send = [&front, &what, call, thread](const QuestionPtr& asked) {
    front.ask(asked, what.kind, call, thread, what.fields.bytes());
  };
  return ask_and_wait(front.codec(), forget, question, waiter, timeout, send);
}

// Nobody waits for what becomes of it.
void tell_front(Front& front, const FrontQuestion& what) {
  const py::GilRelease released;
  front.ask(nullptr, what.kind, 0, 0, what.fields.bytes());
}

// With what this worker has answered before.
Send flushing(Runtime& runtime, const Send& send) {
  return [&runtime, send](const QuestionPtr& asked) {
    runtime.answers().flush();
    send(asked);
  };
}

PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count != 5) py::raise(PyExc_TypeError, "call(name, arguments, timeout, node, trace)");
    if (Front* front = Front::current())
      return ask_front(*front,
                       front_call(*front, arguments[0], arguments[1], arguments[3], arguments[4]),
                       arguments[2], "async_call");
    Runtime& runtime = running();
    refuse_on_loop(runtime.loop(), "async_call");
    const std::string node = peer_for_call(runtime, arguments[3]);
    auto waiter = std::make_shared<ThreadWaiter>();
    const QuestionPtr question = make_question(runtime, Question::Kind::kCall, waiter);
    ThreadMailbox& mailbox = ThreadMailbox::mine(runtime.asker_pointer());
    question->from_thread = true;
    struct Back {
      ThreadMailbox& mailbox;
      const Question& question;
      ~Back() { mailbox.expected_back = question.answered() && question.expected_back; }
    } back{mailbox, *question};
    const Send send = prepare_call(runtime, question, mailbox.number(), arguments[0], arguments[1],
                                   node, arguments[4]);
    return ask_and_wait(runtime, question, waiter, arguments[2], [&](const QuestionPtr& asked) {
      send(asked);
      mailbox.used(asked->link);
      // With what this worker has answered before.
      if (runtime.asker().may_flush(std::exchange(mailbox.expected_back, false)))
        runtime.answers().flush();
    });
  });
}

// The address that answers are sent to: the process this code is, or one of the thread's own.
etf::Buffer sender_address(Runtime& runtime, PyObject* process) {
  etf::Buffer bytes;
  if (process != Py_None) {
    etf::Writer(bytes).pid(pid_argument(runtime, process));
    return bytes;
  }
  if (runtime.loop().is_loop_thread()) {
    bytes.append(runtime.answers().py_pid());
    return bytes;
  }
  ThreadMailbox& mailbox = ThreadMailbox::mine(runtime.asker_pointer());
  {
    const py::GilRelease released;
    mailbox.address();
  }
  const std::string& address = mailbox.address();
  if (address.empty()) throw std::runtime_error("the node is stopping");
  bytes.append(dist::view(address));
  return bytes;
}

PyObject* gen_call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count != 4) py::raise(PyExc_TypeError, "gen_call(dest, request, timeout, process)");
    if (Front* front = Front::current())
      return ask_front(
          *front, front_message(*front, AskKind::kRequest, arguments[0], arguments[1], "request"),
          arguments[2], "async_gen_call");
    Runtime& runtime = running();
    refuse_on_loop(runtime.loop(), "async_gen_call");
    auto waiter = std::make_shared<ThreadWaiter>();
    const QuestionPtr question = make_question(runtime, Question::Kind::kRequest, waiter);
    const etf::Buffer from = sender_address(runtime, arguments[3]);
    const Send send = prepare_request(runtime, question, from.bytes(), arguments[0], arguments[1]);
    return ask_and_wait(runtime, question, waiter, arguments[2], flushing(runtime, send));
  });
}

PyObject* erpc(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count != 5) py::raise(PyExc_TypeError, "erpc(node, module, function, arguments, timeout)");
    if (Front* front = Front::current())
      return ask_front(*front, front_remote(*front, arguments), arguments[4], "async_erpc");
    Runtime& runtime = running();
    refuse_on_loop(runtime.loop(), "async_erpc");
    auto waiter = std::make_shared<ThreadWaiter>();
    const QuestionPtr question = make_question(runtime, Question::Kind::kRemote, waiter);
    const Send send =
        prepare_remote(runtime, question, arguments[0], arguments[1], arguments[2], arguments[3]);
    return ask_and_wait(runtime, question, waiter, arguments[4], flushing(runtime, send));
  });
}

// --- from a coroutine
// --------------------------------------------------------------------------------------------

struct QuestionObject {
  PyObject_HEAD QuestionPtr question;
  std::shared_ptr<TaskWaiter> waiter;
};

QuestionObject* question_of(PyObject* self) { return reinterpret_cast<QuestionObject*>(self); }

py::Ref ask(const QuestionPtr& question, std::shared_ptr<TaskWaiter> waiter, const Send& send) {
  auto* object = reinterpret_cast<QuestionObject*>(g_question_type->tp_alloc(g_question_type, 0));
  if (object == nullptr) py::throw_fetched();
  new (&object->question) QuestionPtr(question);
  new (&object->waiter) std::shared_ptr<TaskWaiter>(std::move(waiter));
  py::Ref own = py::Ref::steal(reinterpret_cast<PyObject*>(object));
  const py::GilRelease released;
  send(question);
  return own;
}

py::Ref ask_front_later(Front& front, const FrontQuestion& what, PyObject* wake) {
  auto waiter = std::make_shared<TaskWaiter>(front.loop(), wake);
  auto question = std::make_shared<Question>();
  question->kind = what.answer;
  question->waiter = waiter;
  return ask(question, waiter, [&front, &what](const QuestionPtr& asked) {
    front.ask(asked, what.kind, 0, 0, what.fields.bytes());
  });
}

void leave_question(QuestionObject& object) {
  object.waiter->release();
  if (Front* front = Front::current()) {
    if (object.question->answered()) return;
    const py::GilRelease released;
    return front->forget(object.question);
  }
  Runtime* runtime = Runtime::current();
  if (runtime == nullptr || object.question->answered()) return;
  const py::GilRelease released;
  runtime->asker().forget(object.question);
}

void question_free(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  leave_question(*question_of(self));
  question_of(self)->question.~QuestionPtr();
  question_of(self)->waiter.~shared_ptr();
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* question_result(PyObject* self, PyObject*) {
  return guarded([&] {
    Front* front = Front::current();
    term::Codec& codec = front != nullptr ? front->codec() : running().codec();
    return result_of(codec, *question_of(self)->question);
  });
}

PyObject* question_leave(PyObject* self, PyObject*) {
  return guarded([&] {
    leave_question(*question_of(self));
    return none();
  });
}

PyObject* ask_call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count != 5) py::raise(PyExc_TypeError, "ask_call(name, arguments, node, wake, trace)");
    if (Front* front = Front::current())
      return ask_front_later(
          *front, front_call(*front, arguments[0], arguments[1], arguments[2], arguments[4]),
          arguments[3]);
    Runtime& runtime = running();
    const std::string node = peer_for_call(runtime, arguments[2]);
    auto waiter = std::make_shared<TaskWaiter>(runtime.loop(), arguments[3]);
    const QuestionPtr question = make_question(runtime, Question::Kind::kCall, waiter);
    return ask(question, waiter,
               prepare_call(runtime, question, 0, arguments[0], arguments[1], node, arguments[4]));
  });
}

PyObject* ask_request(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count != 4) py::raise(PyExc_TypeError, "ask_request(dest, request, process, wake)");
    if (Front* front = Front::current())
      return ask_front_later(
          *front, front_message(*front, AskKind::kRequest, arguments[0], arguments[1], "request"),
          arguments[3]);
    Runtime& runtime = running();
    auto waiter = std::make_shared<TaskWaiter>(runtime.loop(), arguments[3]);
    const QuestionPtr question = make_question(runtime, Question::Kind::kRequest, waiter);
    const etf::Buffer from = sender_address(runtime, arguments[2]);
    return ask(question, waiter,
               prepare_request(runtime, question, from.bytes(), arguments[0], arguments[1]));
  });
}

PyObject* ask_remote(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count != 5)
      py::raise(PyExc_TypeError, "ask_remote(node, module, function, arguments, wake)");
    if (Front* front = Front::current())
      return ask_front_later(*front, front_remote(*front, arguments), arguments[4]);
    Runtime& runtime = running();
    auto waiter = std::make_shared<TaskWaiter>(runtime.loop(), arguments[4]);
    const QuestionPtr question = make_question(runtime, Question::Kind::kRemote, waiter);
    return ask(
        question, waiter,
        prepare_remote(runtime, question, arguments[0], arguments[1], arguments[2], arguments[3]));
  });
}

// --- who is served, where to work, what to say
// -----------------------------------------------------------------

PyObject* served(PyObject*, PyObject*) {
  return guarded([] {
    Front* front = Front::current();
    term::Codec& codec = front != nullptr ? front->codec() : running().codec();
    const ServedPtr served = served_here(codec);
    if (!served) return none();
    if (served->process.empty()) return codec.atom(served->node);
    etf::Reader in(dist::view(served->process));
    return codec.pid(*in.pid());
  });
}

PyObject* flush(PyObject*, PyObject*) {
  return guarded([] {
    if (Front::current() != nullptr) return none();  // what is asked there leaves at once
    Runtime& runtime = running();
    {
      const py::GilRelease released;
      runtime.answers().flush();
    }
    return none();
  });
}

// Runs a callable on a worker, then done(value, exception) on the node's loop thread.
PyObject* run_in_worker(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* job = nullptr;
    PyObject* done = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &job, &done) == 0) py::throw_fetched();
    Runtime& runtime = running();
    auto call = std::make_shared<Call>();
    call->kind = Call::Kind::kJob;
    Py_INCREF(job);
    Py_INCREF(done);
    call->job = job;
    call->job_done = done;
    {
      const py::GilRelease released;
      runtime.pool().push_job(std::move(call));
    }
    return none();
  });
}

PyObject* log(PyObject*, PyObject* arguments) {
  return guarded([&] {
    int level = 0;
    PyObject* text = nullptr;
    int always = 0;
    PyObject* ids = Py_None;
    if (PyArg_ParseTuple(arguments, "iU|pO", &level, &text, &always, &ids) == 0)
      py::throw_fetched();
    std::string trace, span;
    if (ids != Py_None) {
      const char *trace_id = nullptr, *span_id = nullptr;
      if (PyArg_ParseTuple(ids, "ss", &trace_id, &span_id) == 0) py::throw_fetched();
      trace = trace_id;
      span = span_id;
    }
    const std::string line = py::text_of(text);
    // Python's levels.
    auto severity = level >= 50   ? spdlog::level::critical
                    : level >= 40 ? spdlog::level::err
                    : level >= 30 ? spdlog::level::warn
                    : level >= 20 ? spdlog::level::info
                    : level >= 10 ? spdlog::level::debug
                                  : spdlog::level::trace;
    if (always != 0) severity = std::max(severity, spdlog::get_level());
    {
      const py::GilRelease released;
      const base::LogTrace marked(trace, span);
      spdlog::log(severity, "{}", line);
    }
    return none();
  });
}

// {log, Level, Text, Meta} to a peer's logger; False where no peer takes it.
PyObject* log_to_peer(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* level = nullptr;
    PyObject* text = nullptr;
    PyObject* meta = nullptr;
    PyObject* node = nullptr;
    if (PyArg_ParseTuple(arguments, "UUOO", &level, &text, &meta, &node) == 0) py::throw_fetched();
    if (Front* front = Front::current()) {
      FrontQuestion log{AskKind::kLog, Question::Kind::kRequest, {}};
      put(log.fields, node != Py_None ? text_argument(node, "a node's name") : served_node(*front));
      etf::Writer out(log.fields);
      out.tuple(4).atom("log").atom(py::text_of(level)).binary(py::text_of(text));
      front->codec().encode(meta, out, "metadata");
      tell_front(*front, log);
      return boolean(true);
    }
    Runtime& runtime = running();
    std::string peer;
    if (node != Py_None)
      peer = text_argument(node, "a node's name");
    else if (peer = served_peer(runtime); peer.empty())
      peer = runtime.home().empty() ? runtime.asker().first_peer() : runtime.home();
    if (peer.empty()) return boolean(false);
    etf::Buffer item;
    etf::Writer out(item);
    out.tuple(4).atom("log").atom(py::text_of(level)).binary(py::text_of(text));
    runtime.codec().encode(meta, out, "metadata");
    bool taken = false;
    {
      const py::GilRelease released;
      taken = runtime.asker().tell_coordinator(peer, item.bytes());
    }
    return boolean(taken);
  });
}

PyObject* exit_signal(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* from = nullptr;
    PyObject* to = nullptr;
    PyObject* reason = nullptr;
    if (PyArg_ParseTuple(arguments, "OOO", &from, &to, &reason) == 0) py::throw_fetched();
    Runtime& runtime = running();
    auto sender = std::make_shared<etf::Buffer>(encode_pid(pid_argument(runtime, from)));
    auto target = std::make_shared<etf::Buffer>(encode_pid(pid_argument(runtime, to)));
    auto why = std::make_shared<etf::Buffer>();
    etf::Writer out(*why);
    runtime.codec().encode(reason, out, "reason");
    // A signal to a process whose node is not connected is lost, as in Erlang.
    on_reactor(runtime, [sender, target, why](dist::Node& node) {
      const etf::PidView pid = view_of(*target);
      return node.exit_signal(sender->bytes(), pid.node.utf8(), pid, why->bytes());
    });
    return none();
  });
}

PyObject* watch_nodes(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* process = nullptr;
    int on = 0;
    if (PyArg_ParseTuple(arguments, "Op", &process, &on) == 0) py::throw_fetched();
    Runtime& runtime = running();
    const dist::ProcessId id = local_id(pid_argument(runtime, process));
    on_reactor(runtime, [&runtime, id, on](dist::Node&) {
      runtime.router().watch_nodes(id, on != 0);
      return true;
    });
    return none();
  });
}

PyMethodDef question_methods[] = {
    {"result", question_result, METH_NOARGS, nullptr},
    {"leave", question_leave, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot question_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(question_free)},
    {Py_tp_methods, question_methods},
    {0, nullptr},
};
PyType_Spec question_spec = {"erlang._native.Question", sizeof(QuestionObject), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                             question_slots};

template <class Function>
PyCFunction fast(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

PyMethodDef asking_methods[] = {
    {"call", fast(call), METH_FASTCALL, "call(name, arguments, timeout, node)"},
    {"gen_call", fast(gen_call), METH_FASTCALL, "gen_call(dest, request, timeout, process)"},
    {"erpc", fast(erpc), METH_FASTCALL, "erpc(node, module, function, arguments, timeout)"},
    {"ask_call", fast(ask_call), METH_FASTCALL,
     "ask_call(name, arguments, node, wake) -> Question"},
    {"ask_request", fast(ask_request), METH_FASTCALL,
     "ask_request(dest, request, process, wake) -> Question"},
    {"ask_remote", fast(ask_remote), METH_FASTCALL,
     "ask_remote(node, module, function, arguments, wake) -> Question"},
    {"served", served, METH_NOARGS, "served() -> Pid | Atom | None: for whom this code runs."},
    {"flush", flush, METH_NOARGS, "flush(): sends what was asked since the last time."},
    {"run_in_worker", run_in_worker, METH_VARARGS, "run_in_worker(callable, done)"},
    {"log", log, METH_VARARGS, "log(level, text, always=False): a line of the node's log."},
    {"log_to_peer", log_to_peer, METH_VARARGS, "log_to_peer(level, text, metadata, node) -> bool"},
    {"exit_signal", exit_signal, METH_VARARGS, "exit_signal(process, pid, reason)"},
    {"watch_nodes", watch_nodes, METH_VARARGS, "watch_nodes(process, on)"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

py::Ref send_through(Front& front, PyObject* dest, PyObject* term) {
  const FrontQuestion message = front_message(front, AskKind::kSend, dest, term, "message");
  // There it would block; whether the node is connected is not told then.
  if (front.loop().is_loop_thread()) {
    tell_front(front, message);
    return none();
  }
  const py::Ref outcome = ask_front(front, message, Py_None, "async_send");
  if (outcome.get() != Py_None && py::text_of(outcome.get()) == "full")
    py::raise(PyExc_BlockingIOError, "the mailbox of the process is full");
  return none();
}

py::Ref tell_of(Front& front, const char* what, const std::string& argument) {
  FrontQuestion question{AskKind::kInfo, Question::Kind::kRequest, {}};
  put(question.fields, what);
  put(question.fields, argument.substr(0, UINT16_MAX));
  if (!front.loop().is_loop_thread())
    return ask_front(front, question, Py_None, "an executor for this");
  // The answer comes from the node's reactor, which waits for nobody.
  auto waiter = std::make_shared<ThreadWaiter>();
  auto asked = std::make_shared<Question>();
  asked->kind = question.answer;
  asked->waiter = waiter;
  {
    const py::GilRelease released;
    front.ask(asked, question.kind, 0, 0, question.fields.bytes());
    waiter->wait(std::nullopt);
  }
  return result_of(front.codec(), *asked);
}

py::Ref mark_served(Call& call) {
  if (!call.link && call.peer.empty()) return {};
  call.served = describe_served(call);
  auto* own = new ServedPtr(call.served);
  PyObject* capsule = PyCapsule_New(own, kServedCapsule, [](PyObject* object) {
    delete static_cast<ServedPtr*>(PyCapsule_GetPointer(object, kServedCapsule));
  });
  if (capsule == nullptr) {
    delete own;
    py::throw_fetched();
  }
  return py::Ref::steal(capsule);
}

int add_asking(PyObject* module) {
  try {
    if (g_served == nullptr)
      g_served = py::check(PyContextVar_New("erlang_served", nullptr)).release();
    if (g_question_type == nullptr)
      g_question_type =
          reinterpret_cast<PyTypeObject*>(py::check(PyType_FromSpec(&question_spec)).release());
    py::check_status(PyModule_AddObjectRef(module, "SERVED", g_served));
    py::check_status(PyModule_AddFunctions(module, asking_methods));
    return 0;
  } catch (py::Error& error) {
    std::move(error).restore();
    return -1;
  }
}

}  // namespace bridge
