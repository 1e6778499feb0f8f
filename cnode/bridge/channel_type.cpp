#include "cnode/bridge/channel_type.hpp"

#include <chrono>
#include <cstring>
#include <optional>

#include "cnode/base/log.hpp"
#include "cnode/bridge/native_support.hpp"
#include "cnode/bridge/runtime.hpp"
#include "cnode/bridge/waiting.hpp"
#include "cnode/py/error.hpp"
#include "cnode/py/gil.hpp"

namespace bridge {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kDecodedAtOnce = 256;  // messages under one hold of the GIL
constexpr std::size_t kLargeBody = 64 * 1024;

PyObject* g_nothing = nullptr;  // what _take() returns when there is nothing

// --- the types
// -----------------------------------------------------------------------------------------------------

struct ChannelObject {
  PyObject_HEAD ChannelPtr channel;
  term::BinaryPolicy binary;
};
struct TurnObject {
  PyObject_HEAD ChannelPtr channel;
  std::shared_ptr<TaskWaiter> waiter;
  bool for_room;
};

// A large message of a byte channel, where the link put it: whoever receives it makes it bytes, or
// looks at it in place.
struct BodyObject {
  PyObject_HEAD std::shared_ptr<const etf::Buffer> owner;
  etf::Bytes bytes;
};

PyTypeObject* g_turn_type = nullptr;
PyTypeObject* g_body_type = nullptr;

ChannelObject* of(PyObject* self) { return reinterpret_cast<ChannelObject*>(self); }
TurnObject* turn_of(PyObject* self) { return reinterpret_cast<TurnObject*>(self); }
BodyObject* body_of(PyObject* self) { return reinterpret_cast<BodyObject*>(self); }

enum class Form { kValue, kView };

// For a consumer that has given its turn back: the bytes are copied without the GIL, and meanwhile
// it is the next one's.
py::Ref in_form(py::Ref value, Form form) {
  if (form == Form::kView) return py::check(PyMemoryView_FromObject(value.get()));
  if (Py_TYPE(value.get()) != g_body_type) return value;
  const etf::Bytes bytes = body_of(value.get())->bytes;
  py::Ref made =
      py::check(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes.size())));
  char* to = PyBytes_AS_STRING(made.get());
  const py::GilRelease released;
  std::memcpy(to, bytes.data(), bytes.size());
  return made;
}

DecodedValues& decoded(Channel& channel) {
  if (!channel.consumer_state) {
    // The reactor may be the last to let a channel go, and has no GIL.
    channel.consumer_state =
        std::shared_ptr<DecodedValues>(new DecodedValues, [](DecodedValues* it) {
          Runtime* runtime = Runtime::current();
          if (it->values.empty() || PyGILState_Check() != 0)
            delete it;
          else if (runtime != nullptr)
            runtime->loop().post([it] { delete it; });
        });
  }
  return *std::static_pointer_cast<DecodedValues>(channel.consumer_state);
}

[[noreturn]] void raise_closed(const Channel& channel) {
  const char* name =
      channel.kind() == Channel::Kind::kBytes ? "ByteChannelClosed" : "ChannelClosed";
  const py::Ref type = py::attribute(py::import("erlang.exceptions").get(), name);
  py::raise(type.get(), "the channel is closed: " + channel.reason());
}

// A message of a byte channel: bytes, or a large one as it lies in the batch; null when it is no
// binary.
PyObject* bytes_in(const mailbox::Batch& batch, const mailbox::Slice& slice) {
  etf::Reader in(batch.bytes->bytes().subspan(slice.offset, slice.size));
  const auto bytes = in.binary();
  if (!bytes) return nullptr;
  if (slice.size < kLargeBody)
    return py::check(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes->data()),
                                               static_cast<Py_ssize_t>(bytes->size())))
        .release();
  py::Ref body = py::check(g_body_type->tp_alloc(g_body_type, 0));
  new (&body_of(body.get())->owner) std::shared_ptr<const etf::Buffer>(batch.bytes);
  new (&body_of(body.get())->bytes) etf::Bytes(*bytes);
  return body.release();
}

// Decodes the next batch behind what is decoded. False when there is none.
bool decode_more(ChannelObject& self, DecodedValues& ready) {
  Channel& channel = *self.channel;
  std::unique_lock decoding(ready.decoding, std::try_to_lock);
  if (!decoding) {
    // Somebody decodes and gave the GIL up for a long copy.
    const py::GilRelease released;
    decoding.lock();
  }
  if (ready.values.size() > channel.in().reserved()) return true;
  auto batch = channel.in().take(kDecodedAtOnce);
  if (!batch) return false;
  Runtime& runtime = running();
  term::DecodeOptions options;
  options.binary =
      channel.kind() == Channel::Kind::kBytes ? term::BinaryPolicy::kBytes : self.binary;
  for (std::size_t i = batch->next; i < batch->slices.size(); ++i) {
    const mailbox::Slice& slice = batch->slices[i];
    etf::Reader in(batch->bytes->bytes().subspan(slice.offset, slice.size));
    DecodedValues::Value value{nullptr, slice.cost, batch->sender, false};
    try {
      if (channel.kind() == Channel::Kind::kBytes) value.object = bytes_in(*batch, slice);
      if (value.object != nullptr) {
        ready.values.push(value);
        continue;
      }
      auto term = runtime.codec().decode(in, options);
      if (term) {
        value.object = term->release();
      } else {
        value.is_error = true;
        const py::Ref type = py::attribute(py::import("erlang.exceptions").get(), "DecodeError");
        value.object =
            py::check(PyObject_CallFunction(type.get(), "s", term.error().message().c_str()))
                .release();
      }
    } catch (const py::Error& error) {
      value.is_error = true;
      Py_INCREF(error.exception());
      value.object = error.exception();
    }
    ready.values.push(value);
  }
  return true;
}

// The next value for a consumer: one it was granted, or one that nobody was. Null when there is
// none.
py::Ref take(ChannelObject& self, bool granted) {
  Channel& channel = *self.channel;
  DecodedValues& ready = decoded(channel);
  while (ready.values.size() <= (granted ? 0 : channel.in().reserved())) {
    if (!decode_more(self, ready)) return {};
  }
  const DecodedValues::Value value = ready.values.pop();
  channel.in().hand_out(value.cost);
  channel.consumed(value.sender, value.cost);
  py::Ref object = py::Ref::steal(value.object);
  if (value.is_error) throw py::Error(std::move(object));
  return object;
}

// As take(), and then gives the turn back.
py::Ref take_turn(ChannelObject& self, const mailbox::WaiterPtr& waiter) {
  struct Leave {
    Channel& channel;
    const mailbox::WaiterPtr& waiter;
    ~Leave() { channel.in().leave(waiter); }
  } leave{*self.channel, waiter};
  return take(self, self.channel->in().granted(waiter));
}

enum class Ended { kClosed, kTimeout };

// Waits for a value; without one, why.
py::Ref receive(ChannelObject& self, std::optional<Clock::time_point> until, Form form,
                Ended& ended) {
  Channel& channel = *self.channel;
  for (;;) {
    if (py::Ref value = take(self, false)) return in_form(std::move(value), form);
    if (until && Clock::now() >= *until) {
      ended =
          channel.input_ended() && channel.in().available() == 0 ? Ended::kClosed : Ended::kTimeout;
      return {};
    }
    auto waiter = std::make_shared<ThreadWaiter>();
    switch (channel.in().wait(waiter)) {
      case mailbox::ChannelQueue::Wait::kTryAgain:
        continue;
      case mailbox::ChannelQueue::Wait::kClosed:
        ended = Ended::kClosed;
        return {};
      case mailbox::ChannelQueue::Wait::kWaiting:
        break;
    }
    const WaitingHere here(waiter);
    ThreadWaiter::Woken woken = ThreadWaiter::Woken::kWoken;
    {
      const py::GilRelease released;
      woken = waiter->wait(until);
    }
    if (woken == ThreadWaiter::Woken::kInterrupted) {
      channel.in().leave(waiter);
      raise_pending();
      continue;
    }
    // Also after a timeout: the turn may have come in the same moment.
    if (py::Ref value = take_turn(self, waiter)) return in_form(std::move(value), form);
  }
}

// --- methods
// -------------------------------------------------------------------------------------------------------

PyObject* channel_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  return guarded([&] {
    static const char* names[] = {"pid", "binary", nullptr};
    PyObject* who = nullptr;
    const char* binary = "auto";
    if (PyArg_ParseTupleAndKeywords(arguments, keywords, "O|s", const_cast<char**>(names), &who,
                                    &binary) == 0)
      py::throw_fetched();
    Runtime& runtime = running();
    const etf::Pid pid = pid_argument(runtime, who);
    if (!is_local(runtime, pid))
      py::raise(PyExc_ValueError, "a channel of another node is used from Erlang there");
    ChannelPtr channel = runtime.channels().find(local_id(pid));
    if (!channel) {
      // It was closed and is drained: so is this one.
      const etf::Buffer encoded = encode_pid(pid);
      channel = std::make_shared<Channel>(local_id(pid), encoded.bytes(), Channel::Kind::kTerms, 0,
                                          runtime.answers());
      channel->close("it is no more");
    }
    const std::string_view policy = binary;
    if (policy != "auto" && policy != "str" && policy != "bytes")
      py::raise(PyExc_ValueError, "binary is 'auto', 'str' or 'bytes'");
    py::Ref self = py::check(type->tp_alloc(type, 0));
    new (&of(self.get())->channel) ChannelPtr(std::move(channel));
    of(self.get())->binary = policy == "str"     ? term::BinaryPolicy::kStr
                             : policy == "bytes" ? term::BinaryPolicy::kBytes
                                                 : term::BinaryPolicy::kAuto;
    return self;
  });
}

void channel_free(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  of(self)->channel.~ChannelPtr();
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* channel_pid(PyObject* self, void*) {
  return guarded([&] {
    etf::Reader in(of(self)->channel->pid());
    return running().codec().pid(*in.pid());
  });
}

PyObject* channel_closed(PyObject* self, void*) {
  return guarded([&] { return boolean(of(self)->channel->closed()); });
}

PyObject* channel_is_bytes(PyObject* self, void*) {
  return guarded([&] { return boolean(of(self)->channel->kind() == Channel::Kind::kBytes); });
}

PyObject* channel_next(PyObject* self) {
  return guarded([&] {
    Ended ended = Ended::kClosed;
    // Null and no exception: the iteration is over.
    return receive(*of(self), std::nullopt, Form::kValue, ended);
  });
}

template <Form form>
PyObject* channel_receive(PyObject* self, PyObject* arguments, PyObject* keywords) {
  return guarded([&] {
    static const char* names[] = {"timeout", nullptr};
    PyObject* timeout = Py_None;
    if (PyArg_ParseTupleAndKeywords(arguments, keywords, "|O", const_cast<char**>(names),
                                    &timeout) == 0)
      py::throw_fetched();
    Ended ended = Ended::kClosed;
    py::Ref value = receive(*of(self), deadline_argument(timeout), form, ended);
    if (value) return value;
    if (ended == Ended::kClosed) raise_closed(*of(self)->channel);
    py::raise(PyExc_TimeoutError, "no message in time");
  });
}

// _take(turn=None): a value, NOTHING, or ChannelClosed raised.
template <Form form>
PyObject* channel_take(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    ChannelObject& own = *of(self);
    py::Ref value;
    if (count == 1 && Py_TYPE(arguments[0]) == g_turn_type) {
      TurnObject* turn = turn_of(arguments[0]);
      turn->waiter->release();
      value = take_turn(own, turn->waiter);
    } else {
      value = take(own, false);
    }
    if (value) return in_form(std::move(value), form);
    if (own.channel->input_ended() && own.channel->in().available() <= own.channel->in().reserved())
      raise_closed(*own.channel);
    return py::Ref::borrow(g_nothing);
  });
}

// _wait(wake): queues up; a Turn, or None when it is better to try again.
PyObject* channel_wait(PyObject* self, PyObject* wake) {
  return guarded([&] {
    Channel& channel = *of(self)->channel;
    auto waiter = std::make_shared<TaskWaiter>(running().loop(), wake);
    py::Ref turn = py::check(g_turn_type->tp_alloc(g_turn_type, 0));
    new (&turn_of(turn.get())->channel) ChannelPtr(of(self)->channel);
    new (&turn_of(turn.get())->waiter) std::shared_ptr<TaskWaiter>(waiter);
    turn_of(turn.get())->for_room = false;
    if (channel.in().wait(waiter) == mailbox::ChannelQueue::Wait::kWaiting) return turn;
    waiter->release();
    return none();
  });
}

// _wait_for_room(wake, bytes): the same for a sender.
PyObject* channel_wait_for_room(PyObject* self, PyObject* arguments) {
  return guarded([&] {
    PyObject* wake = nullptr;
    Py_ssize_t bytes = 0;
    if (PyArg_ParseTuple(arguments, "On", &wake, &bytes) == 0) py::throw_fetched();
    Channel& channel = *of(self)->channel;
    auto waiter = std::make_shared<TaskWaiter>(running().loop(), wake);
    py::Ref turn = py::check(g_turn_type->tp_alloc(g_turn_type, 0));
    new (&turn_of(turn.get())->channel) ChannelPtr(of(self)->channel);
    new (&turn_of(turn.get())->waiter) std::shared_ptr<TaskWaiter>(waiter);
    turn_of(turn.get())->for_room = true;
    if (channel.wait_for_room(waiter, static_cast<std::size_t>(bytes)) == Channel::Wait::kWaiting)
      return turn;
    waiter->release();
    return none();
  });
}

PyObject* turn_leave(PyObject* self, PyObject*) {
  return guarded([&] {
    TurnObject* turn = turn_of(self);
    turn->waiter->release();
    if (turn->for_room)
      turn->channel->stop_waiting_for_room(turn->waiter);
    else
      turn->channel->in().leave(turn->waiter);
    return none();
  });
}

void turn_free(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  TurnObject* turn = turn_of(self);
  turn->waiter->release();
  if (turn->for_room)
    turn->channel->stop_waiting_for_room(turn->waiter);
  else
    turn->channel->in().leave(turn->waiter);  // nothing, once it has been left
  turn->waiter.~shared_ptr();
  turn->channel.~ChannelPtr();
  type->tp_free(self);
  Py_DECREF(type);
}

etf::Buffer encode_message(ChannelObject& self, PyObject* term) {
  etf::Buffer bytes;
  etf::Writer out(bytes);
  if (self.channel->kind() == Channel::Kind::kBytes && PyObject_CheckBuffer(term) == 0)
    py::raise(PyExc_TypeError, "a byte channel carries bytes");
  running().codec().encode(term, out, "message");
  return bytes;
}

// _try_send(term) -> 0, or the bytes it takes when there is no room for so many.
PyObject* channel_try_send(PyObject* self, PyObject* term) {
  return guarded([&] {
    etf::Buffer message = encode_message(*of(self), term);
    const std::size_t size = message.size();
    switch (of(self)->channel->send(message)) {
      case Channel::Sent::kSent:
        return py::check(PyLong_FromLong(0));
      case Channel::Sent::kFull:
        return py::check(PyLong_FromSize_t(size));
      case Channel::Sent::kClosed:
        break;
    }
    raise_closed(*of(self)->channel);
  });
}

// send(term, timeout=None): waits for room.
PyObject* channel_send(PyObject* self, PyObject* arguments, PyObject* keywords) {
  return guarded([&] {
    static const char* names[] = {"", "timeout", nullptr};
    PyObject* term = nullptr;
    PyObject* timeout = Py_None;
    if (PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O", const_cast<char**>(names), &term,
                                    &timeout) == 0)
      py::throw_fetched();
    Channel& channel = *of(self)->channel;
    const auto until = deadline_argument(timeout);
    etf::Buffer message = encode_message(*of(self), term);
    const std::size_t size = message.size();
    for (;;) {
      switch (channel.send(message)) {
        case Channel::Sent::kSent:
          return none();
        case Channel::Sent::kClosed:
          raise_closed(channel);
        case Channel::Sent::kFull:
          break;
      }
      if (until && Clock::now() >= *until) py::raise(PyExc_TimeoutError, "no room in time");
      auto waiter = std::make_shared<ThreadWaiter>();
      if (channel.wait_for_room(waiter, size) == Channel::Wait::kTryAgain) continue;
      const WaitingHere here(waiter);
      ThreadWaiter::Woken woken = ThreadWaiter::Woken::kWoken;
      {
        const py::GilRelease released;
        woken = waiter->wait(until);
      }
      channel.stop_waiting_for_room(waiter);
      if (woken == ThreadWaiter::Woken::kInterrupted) raise_pending();
    }
  });
}

PyObject* channel_close(PyObject* self, PyObject*) {
  return guarded([&] {
    running().channels().close(of(self)->channel, "normal");
    return none();
  });
}

PyObject* channel_info(PyObject* self, PyObject*) {
  return guarded([&] {
    const Channel::Info info = of(self)->channel->info();
    const auto number = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
    return py::check(Py_BuildValue("{s:K,s:K,s:O,s:K,s:K,s:K,s:K}", "size", number(info.size),
                                   "max_size", number(info.max_size), "closed",
                                   info.closed ? Py_True : Py_False, "received",
                                   number(info.received), "consumed", number(info.consumed), "sent",
                                   number(info.sent), "size_out", number(info.waiting_out)));
  });
}

template <class Function>
PyCFunction method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef channel_methods[] = {
    {"receive", method(channel_receive<Form::kValue>), METH_VARARGS | METH_KEYWORDS,
     "receive(timeout=None): the next message, in seconds; TimeoutError, ChannelClosed."},
    {"send", method(channel_send), METH_VARARGS | METH_KEYWORDS,
     "send(term, timeout=None): to whoever receives in Erlang; waits for room."},
    {"close", channel_close, METH_NOARGS, "close(): again and again if you like."},
    {"info", channel_info, METH_NOARGS, "info() -> dict[str, int | bool]"},
    {"_receive_view", method(channel_receive<Form::kView>), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"_take", method(channel_take<Form::kValue>), METH_FASTCALL, nullptr},
    {"_take_view", method(channel_take<Form::kView>), METH_FASTCALL, nullptr},
    {"_wait", channel_wait, METH_O, nullptr},
    {"_wait_for_room", channel_wait_for_room, METH_VARARGS, nullptr},
    {"_try_send", channel_try_send, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef channel_fields[] = {
    {"pid", channel_pid, nullptr, "The channel as a process.", nullptr},
    {"closed", channel_closed, nullptr, "Whether nothing comes in any more.", nullptr},
    {"_is_bytes", channel_is_bytes, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyType_Slot channel_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(channel_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(channel_free)},
    {Py_tp_iter, reinterpret_cast<void*>(PyObject_SelfIter)},
    {Py_tp_iternext, reinterpret_cast<void*>(channel_next)},
    {Py_tp_methods, channel_methods},
    {Py_tp_getset, channel_fields},
    {0, nullptr},
};
PyType_Spec channel_spec = {"erlang._native.Channel", sizeof(ChannelObject), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, channel_slots};

void body_free(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  body_of(self)->owner.~shared_ptr();
  type->tp_free(self);
  Py_DECREF(type);
}

int body_buffer(PyObject* self, Py_buffer* view, int flags) {
  const etf::Bytes bytes = body_of(self)->bytes;
  return PyBuffer_FillInfo(view, self, const_cast<std::uint8_t*>(bytes.data()),
                           static_cast<Py_ssize_t>(bytes.size()), 1, flags);
}

PyType_Slot body_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(body_free)},
    {Py_bf_getbuffer, reinterpret_cast<void*>(body_buffer)},
    {0, nullptr},
};
PyType_Spec body_spec = {"erlang._native.Body", sizeof(BodyObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, body_slots};

PyMethodDef turn_methods[] = {
    {"leave", turn_leave, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot turn_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(turn_free)},
    {Py_tp_methods, turn_methods},
    {0, nullptr},
};
PyType_Spec turn_spec = {"erlang._native.Turn", sizeof(TurnObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, turn_slots};

}  // namespace

DecodedValues::~DecodedValues() {
  while (!values.empty()) Py_DECREF(values.pop().object);
}

int add_channel_type(PyObject* module) {
  try {
    if (g_nothing == nullptr)
      g_nothing =
          py::check(PyObject_CallNoArgs(reinterpret_cast<PyObject*>(&PyBaseObject_Type))).release();
    if (g_turn_type == nullptr)
      g_turn_type =
          reinterpret_cast<PyTypeObject*>(py::check(PyType_FromSpec(&turn_spec)).release());
    if (g_body_type == nullptr)
      g_body_type =
          reinterpret_cast<PyTypeObject*>(py::check(PyType_FromSpec(&body_spec)).release());
    const py::Ref type = py::check(PyType_FromSpec(&channel_spec));
    py::check_status(PyModule_AddObjectRef(module, "Channel", type.get()));
    py::check_status(PyModule_AddObjectRef(module, "NOTHING", g_nothing));
    return 0;
  } catch (py::Error& error) {
    std::move(error).restore();
    return -1;
  }
}

}  // namespace bridge
