#include "cnode/bridge/native_module.hpp"

#include "cnode/base/log.hpp"
#include "cnode/bridge/channel_type.hpp"
#include "cnode/bridge/front.hpp"
#include "cnode/bridge/lookup.hpp"
#include "cnode/bridge/native_asking.hpp"
#include "cnode/bridge/native_support.hpp"
#include "cnode/bridge/runtime.hpp"
#include "cnode/bridge/waiting.hpp"
#include "cnode/py/error.hpp"
#include "cnode/py/gil.hpp"
#include "cnode/term/codec.hpp"

namespace bridge {
namespace {

void send_message(Runtime& runtime, const Asker::Target& to, PyObject* term) {
  etf::Bytes from = runtime.answers().py_pid();
  if (to.node == runtime.node().name()) {
    etf::Buffer message;
    etf::Writer out(message);
    runtime.codec().encode(term, out, "message");
    if (to.pid) {
      if (!is_local(runtime, *to.pid)) return;
      if (auto channel = runtime.channels().find(local_id(*to.pid))) {
        const auto payload = std::make_shared<const etf::Buffer>(std::move(message));
        return runtime.channels().deliver(channel, payload, payload->bytes());
      }
      if (auto process = runtime.processes().find(local_id(*to.pid))) {
        if (!runtime.processes().deliver(process, std::move(message))) {
          py::raise(PyExc_BlockingIOError, "the mailbox of the process is full");
        }
      }
      return;
    }
    auto shared = std::make_shared<etf::Buffer>(std::move(message));
    runtime.answers().post([&runtime, name = to.name, shared](dist::Node& node) {
      if (dist::Process* process = node.processes().find(name)) {
        runtime.processes().deliver(process->id, shared->bytes());
      }
    });
    return;
  }
  auto link = runtime.node().link_to(to.node);
  if (!link) raise_no_connection(to.node.c_str());
  dist::Message message;
  etf::Writer out(message.bytes);
  if (to.pid) {
    const etf::Buffer pid = encode_pid(*to.pid);
    if (link->has(dist::kSendSender))
      dist::append_send_sender(out, from, pid.bytes());
    else
      dist::append_send(out, pid.bytes());
    message.lane = dist::lane_of(view_of(pid));
  } else {
    dist::append_reg_send(out, from, to.name);
    message.lane = std::hash<std::string>{}(to.name) | 1;
  }
  message.end_control();
  runtime.codec().encode(term, out, "message");
  auto outbox = runtime.answers().outbox(link->id());
  if (!outbox) return;
  outbox->add(std::move(message));
  outbox->flush();
}

PyObject* node_name(PyObject*, PyObject*) {
  return guarded([] {
    if (Front* front = Front::current()) return tell_of(*front, "node");
    Runtime* runtime = Runtime::current();
    if (runtime == nullptr) return none();
    return runtime->codec().atom(runtime->node().name());
  });
}

PyObject* nodes(PyObject*, PyObject*) {
  return guarded([] {
    if (Front* front = Front::current()) return tell_of(*front, "nodes");
    Runtime& runtime = running();
    const auto names = runtime.node().peers();
    py::Ref list = py::check(PyList_New(0));
    for (const auto& name : names) {
      py::Ref atom = runtime.codec().atom(name);
      py::check_status(PyList_Append(list.get(), atom.get()));
    }
    return list;
  });
}

PyObject* make_ref(PyObject*, PyObject*) {
  return guarded([] {
    Runtime& runtime = running();
    etf::Buffer bytes;
    etf::Writer(bytes).reference(runtime.node().make_ref());
    etf::Reader in(bytes.bytes());
    return runtime.codec().reference(*in.reference());
  });
}

PyObject* server_pid(PyObject*, PyObject*) {
  return guarded([] {
    if (Front* front = Front::current()) return tell_of(*front, "server_pid");
    Runtime& runtime = running();
    etf::Reader in(runtime.answers().py_pid());
    auto pid = in.pid();
    if (!pid) return none();
    return runtime.codec().pid(*pid);
  });
}

PyObject* send(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* to = nullptr;
    PyObject* term = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &to, &term) == 0) py::throw_fetched();
    if (Front* front = Front::current()) return send_through(*front, to, term);
    Runtime& runtime = running();
    send_message(runtime, target_argument(runtime, to), term);
    return none();
  });
}

PyObject* reply(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* to = nullptr;
    PyObject* tag = nullptr;
    PyObject* term = nullptr;
    if (PyArg_ParseTuple(arguments, "OOO", &to, &tag, &term) == 0) py::throw_fetched();
    Runtime& runtime = running();
    const etf::Pid pid = pid_argument(runtime, to);
    if (pid.node == runtime.node().name()) {
      etf::Buffer answer;
      etf::Writer answer_out(answer);
      answer_out.tuple(2);
      runtime.codec().encode(tag, answer_out, "tag");
      runtime.codec().encode(term, answer_out, "reply");
      if (runtime.asker().on_reply(0, answer.bytes())) return none();
      py::Ref pair = py::check(PyTuple_Pack(2, tag, term));
      Asker::Target local;
      local.pid = pid;
      local.node = pid.node;
      send_message(runtime, local, pair.get());
      return none();
    }
    auto link = runtime.node().link_to(pid.node);
    if (!link) return none();  // whoever asked is gone, and so is the question
    etf::Buffer encoded_tag;
    etf::Writer tag_out(encoded_tag);
    runtime.codec().encode(tag, tag_out, "tag");
    const etf::Buffer encoded_pid = encode_pid(pid);
    dist::Message message = dist::begin_gen_reply(*link, runtime.answers().py_pid(),
                                                  view_of(encoded_pid), encoded_tag.bytes());
    etf::Writer out(message.bytes);
    runtime.codec().encode(term, out, "reply");
    auto outbox = runtime.answers().outbox(link->id());
    if (!outbox) return none();
    outbox->add(std::move(message));
    outbox->flush();
    return none();
  });
}

// Loop thread.
void begin_process(PyProcess& process) {
  const py::Ref begin = py::Ref::steal(std::exchange(process.begin, nullptr));
  Runtime* runtime = Runtime::current();
  if (!begin || process.ended || runtime == nullptr) return;
  try {
    const etf::Buffer encoded = encode_pid(process.pid);
    const py::Ref pid = runtime->codec().pid(view_of(encoded));
    py::check(PyObject_CallOneArg(begin.get(), pid.get()));
  } catch (const py::Error& error) {
    spdlog::error("a process cannot begin: {}", error.describe().message);
  }
}

PyObject* spawn_process(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* deliver = nullptr;
    PyObject* stop = nullptr;
    PyObject* name = Py_None;
    PyObject* begin = Py_None;
    if (PyArg_ParseTuple(arguments, "OO|OO", &deliver, &stop, &name, &begin) == 0)
      py::throw_fetched();
    Runtime& runtime = running();
    const std::string wanted =
        name == Py_None ? std::string() : text_argument(name, "a process's name");
    auto process = std::make_shared<PyProcess>();
    Py_INCREF(deliver);
    Py_INCREF(stop);
    process->deliver = deliver;
    process->stop = stop;
    Processes& processes = runtime.processes();
    const bool made = on_reactor(runtime, [process, wanted, &processes](dist::Node& node) {
      if (!wanted.empty() && node.processes().find(wanted) != nullptr) return false;
      dist::Process& created = node.create_process(wanted);
      process->id = created.id;
      etf::Reader in(dist::view(created.pid));
      process->pid = in.pid()->value();
      processes.add(process);
      return true;
    });
    if (!made) {
      Py_CLEAR(process->deliver);
      Py_CLEAR(process->stop);
      py::raise(PyExc_ValueError, "the name '" + wanted + "' is taken");
    }
    const etf::Buffer encoded = encode_pid(process->pid);
    py::Ref pid = runtime.codec().pid(view_of(encoded));
    // From here, and not by the caller: a cancellation may strike it at once, and the process would
    // be nobody's.
    if (begin != Py_None) {
      Py_INCREF(begin);
      process->begin = begin;
      runtime.loop().post([process] { begin_process(*process); });
    }
    return pid;
  });
}

PyObject* exit_process(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* who = nullptr;
    PyObject* reason = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &who, &reason) == 0) py::throw_fetched();
    Runtime& runtime = running();
    const etf::Pid pid = pid_argument(runtime, who);
    etf::Buffer encoded;
    etf::Writer out(encoded);
    runtime.codec().encode(reason, out, "reason");
    if (auto process = runtime.processes().find(local_id(pid)); process && is_local(runtime, pid)) {
      process->ended = true;
      runtime.processes().remove(process->id);
      py::Ref deliver = py::Ref::steal(std::exchange(process->deliver, nullptr));
      py::Ref stop = py::Ref::steal(std::exchange(process->stop, nullptr));
      runtime.answers().exit_process(process->id, std::move(encoded));
    }
    return none();
  });
}

PyObject* set_trap_exit(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* who = nullptr;
    int on = 0;
    if (PyArg_ParseTuple(arguments, "Op", &who, &on) == 0) py::throw_fetched();
    Runtime& runtime = running();
    if (auto process = runtime.processes().find(local_id(pid_argument(runtime, who))))
      process->trap_exit = on != 0;
    return none();
  });
}

PyObject* whereis(PyObject*, PyObject* name) {
  return guarded([&] {
    if (Front* front = Front::current())
      return tell_of(*front, "whereis", text_argument(name, "a process's name"));
    Runtime& runtime = running();
    const std::string wanted = text_argument(name, "a process's name");
    const std::string raw = on_reactor(runtime, [wanted](dist::Node& node) {
      dist::Process* process = node.processes().find(wanted);
      return process == nullptr ? std::string() : process->pid;
    });
    if (raw.empty()) return none();
    etf::Reader in(dist::view(raw));
    return runtime.codec().pid(*in.pid());
  });
}

PyObject* register_name(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* name = nullptr;
    PyObject* who = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &name, &who) == 0) py::throw_fetched();
    Runtime& runtime = running();
    const std::string wanted = text_argument(name, "a process's name");
    const etf::Pid pid = pid_argument(runtime, who);
    if (!is_local(runtime, pid))
      py::raise(PyExc_ValueError, "only processes of this node can be registered");
    const bool done = on_reactor(runtime, [wanted, id = local_id(pid)](dist::Node& node) {
      dist::Process* process = node.processes().find(id);
      return process != nullptr && node.processes().register_name(*process, wanted);
    });
    if (!done) py::raise(PyExc_ValueError, "the name is taken, or the process has one or is gone");
    return none();
  });
}

PyObject* unregister_name(PyObject*, PyObject* name) {
  return guarded([&] {
    Runtime& runtime = running();
    const std::string wanted = text_argument(name, "a process's name");
    const bool done = on_reactor(runtime, [wanted](dist::Node& node) {
      dist::Process* process = node.processes().find(wanted);
      return process != nullptr && !process->system && node.processes().unregister_name(wanted);
    });
    if (!done) py::raise(PyExc_ValueError, "no process of that name");
    return none();
  });
}

PyObject* registered(PyObject*, PyObject*) {
  return guarded([] {
    if (Front* front = Front::current()) return tell_of(*front, "registered");
    Runtime& runtime = running();
    const auto names =
        on_reactor(runtime, [](dist::Node& node) { return node.processes().names(); });
    py::Ref list = py::check(PyList_New(0));
    for (const auto& name : names) {
      py::Ref atom = runtime.codec().atom(name);
      py::check_status(PyList_Append(list.get(), atom.get()));
    }
    return list;
  });
}

PyObject* monitor(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* owner = nullptr;
    PyObject* target = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &owner, &target) == 0) py::throw_fetched();
    Runtime& runtime = running();
    const etf::Pid pid = pid_argument(runtime, owner);
    const Asker::Target to = target_argument(runtime, target);
    const etf::Ref ref = runtime.node().make_ref();
    auto raw =
        std::make_shared<etf::Buffer>(to.pid ? encode_pid(*to.pid) : dist::encode_atom(to.name));
    send_signal(runtime, local_id(pid),
                [=, node_name = to.node](dist::Node& node, dist::Process& own) {
                  node.monitor(own, node_name, raw->bytes(), ref);
                });
    etf::Buffer bytes;
    etf::Writer(bytes).reference(ref);
    etf::Reader in(bytes.bytes());
    return runtime.codec().reference(*in.reference());
  });
}

PyObject* demonitor(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* owner = nullptr;
    PyObject* reference = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &owner, &reference) == 0) py::throw_fetched();
    Runtime& runtime = running();
    const etf::Pid pid = pid_argument(runtime, owner);
    etf::Ref ref;
    if (!runtime.codec().as_reference(reference, ref))
      py::raise(PyExc_TypeError, "a Ref is needed");
    const dist::RefKey key{0, ref.creation, ref.words};
    send_signal(runtime, local_id(pid),
                [key](dist::Node& node, dist::Process& own) { node.demonitor(own, key); });
    return none();
  });
}

enum class LinkVerb { kLink, kUnlink };

py::Ref change_link(PyObject* arguments, LinkVerb verb) {
  PyObject* owner = nullptr;
  PyObject* target = nullptr;
  if (PyArg_ParseTuple(arguments, "OO", &owner, &target) == 0) py::throw_fetched();
  Runtime& runtime = running();
  const etf::Pid pid = pid_argument(runtime, owner);
  auto raw = std::make_shared<etf::Buffer>(encode_pid(pid_argument(runtime, target)));
  send_signal(runtime, local_id(pid), [raw, verb](dist::Node& node, dist::Process& own) {
    const etf::PidView view = view_of(*raw);
    if (verb == LinkVerb::kLink)
      node.link(own, view.node.utf8(), view);
    else
      node.unlink(own, view);
  });
  return none();
}

PyObject* link_process(PyObject*, PyObject* arguments) {
  return guarded([&] { return change_link(arguments, LinkVerb::kLink); });
}
PyObject* unlink_process(PyObject*, PyObject* arguments) {
  return guarded([&] { return change_link(arguments, LinkVerb::kUnlink); });
}

PyObject* stats(PyObject*, PyObject*) {
  return guarded([] {
    Runtime& runtime = running();
    const auto& counters = runtime.node().counters();
    return py::check(Py_BuildValue(
        "{s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:K,s:K,s:K,s:n,s:n,s:K,s:K,s:K,s:K}", "workers",
        static_cast<Py_ssize_t>(runtime.pool().workers()), "worker_threads",
        static_cast<Py_ssize_t>(runtime.pool().threads()), "blocked",
        static_cast<Py_ssize_t>(runtime.pool().blocked()), "asking",
        static_cast<Py_ssize_t>(runtime.asker().open()), "asking_threads",
        static_cast<Py_ssize_t>(runtime.asker().threads()), "busy",
        static_cast<Py_ssize_t>(runtime.pool().busy()), "waiting",
        static_cast<Py_ssize_t>(runtime.pool().waiting()), "tasks",
        static_cast<Py_ssize_t>(runtime.loop().tasks()), "completed",
        static_cast<unsigned long long>(runtime.pool().completed()), "refused",
        static_cast<unsigned long long>(runtime.pool().refused()), "replaced_workers",
        static_cast<unsigned long long>(runtime.pool().replaced()), "processes",
        static_cast<Py_ssize_t>(runtime.processes().size()), "channels",
        static_cast<Py_ssize_t>(runtime.channels().open()), "handshakes_failed",
        static_cast<unsigned long long>(counters.handshakes_failed.load()), "frames_rejected",
        static_cast<unsigned long long>(counters.frames_rejected.load()), "links_opened",
        static_cast<unsigned long long>(counters.links_opened.load()), "links_closed",
        static_cast<unsigned long long>(counters.links_closed.load())));
  });
}

PyObject* event_loop(PyObject*, PyObject*) {
  return guarded([] {
    Front* front = Front::current();
    PyObject* loop = (front != nullptr ? front->loop() : running().loop()).loop();
    return loop == nullptr ? none() : py::Ref::borrow(loop);
  });
}

PyObject* wakes_in_loop(PyObject*, PyObject* loop) {
  return guarded([&] { return boolean(wakes_in(loop)); });
}

PyObject* in_node(PyObject*, PyObject*) {
  return guarded(
      [] { return boolean(Runtime::current() != nullptr || Front::current() != nullptr); });
}

PyObject* resolve(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* module = nullptr;
    PyObject* function = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &module, &function) == 0) py::throw_fetched();
    return look_up(text_argument(module, "a module's name"),
                   text_argument(function, "a function's name"));
  });
}

PyObject* allowed(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* module = nullptr;
    PyObject* function = nullptr;
    if (PyArg_ParseTuple(arguments, "OO", &module, &function) == 0) py::throw_fetched();
    return boolean(is_allowed(text_argument(module, "a module's name"),
                              text_argument(function, "a function's name")));
  });
}

PyMethodDef methods[] = {
    {"node", node_name, METH_NOARGS,
     "node() -> Atom | None: this node's name; None outside a node."},
    {"nodes", nodes, METH_NOARGS, "nodes() -> list[Atom]: the connected peers."},
    {"in_node", in_node, METH_NOARGS, "in_node() -> bool"},
    {"make_ref", make_ref, METH_NOARGS, "make_ref() -> Ref: a new unique reference."},
    {"server_pid", server_pid, METH_NOARGS, "server_pid() -> Pid: the process `py`."},
    {"send", send, METH_VARARGS, "send(dest, term): to a Pid, a name, or (name, node)."},
    {"reply", reply, METH_VARARGS, "reply(pid, tag, term): answers a '$gen_call'."},
    {"spawn_process", spawn_process, METH_VARARGS,
     "spawn_process(deliver, stop, name=None, begin=None) -> Pid"},
    {"exit_process", exit_process, METH_VARARGS,
     "exit_process(pid, reason): a process of this node ends."},
    {"set_trap_exit", set_trap_exit, METH_VARARGS, "set_trap_exit(pid, on)"},
    {"whereis", whereis, METH_O, "whereis(name) -> Pid | None"},
    {"register", register_name, METH_VARARGS, "register(name, pid)"},
    {"unregister", unregister_name, METH_O, "unregister(name)"},
    {"registered", registered, METH_NOARGS, "registered() -> list[Atom]"},
    {"monitor", monitor, METH_VARARGS, "monitor(owner, target) -> Ref"},
    {"demonitor", demonitor, METH_VARARGS, "demonitor(owner, ref)"},
    {"link", link_process, METH_VARARGS, "link(owner, pid)"},
    {"unlink", unlink_process, METH_VARARGS, "unlink(owner, pid)"},
    {"resolve", resolve, METH_VARARGS,
     "resolve(module, function): what a peer's call of that name would call."},
    {"allowed", allowed, METH_VARARGS,
     "allowed(module, function) -> bool: whether the allow-list has that name."},
    {"stats", stats, METH_NOARGS, "stats() -> dict[str, int]: counters of this node."},
    {"event_loop", event_loop, METH_NOARGS,
     "event_loop(): the node's asyncio loop, or None before it runs."},
    {"wakes_in", wakes_in_loop, METH_O,
     "wakes_in(loop): whether what a coroutine of this loop waits for is told in its thread."},
    {nullptr, nullptr, 0, nullptr},
};

int fill(PyObject* module) {
  if (term::add_to_module(module) < 0) return -1;
  if (add_channel_type(module) < 0) return -1;
  if (add_asking(module) < 0) return -1;
  return PyModule_AddFunctions(module, methods);
}

PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(fill)},
    {0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_native",
                          "What Python sees of the node.",
                          0,
                          nullptr,
                          slots,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace
}  // namespace bridge

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&bridge::definition); }
