#include "cnode/loop/datagram.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <new>

#include "cnode/loop/address.hpp"
#include "cnode/loop/endpoint.hpp"
#include "cnode/py/error.hpp"
#include "cnode/py/integer.hpp"

namespace loop {
namespace {

constexpr std::size_t kPeers = 64;
// Looking for several costs a seventh of an echo where there is but one: after one, the next few
// are received alone.
constexpr unsigned kProbe = 4;   // how many a look is for
constexpr unsigned kAlone = 32;  // and after how many it is taken again

// As asyncio counts what waits: later versions with a header, and empty datagrams are sent.
#if PY_VERSION_HEX >= 0x030D0000
constexpr std::size_t kHeader = 8;
constexpr bool kSendsEmpty = true;
#else
constexpr std::size_t kHeader = 0;
constexpr bool kSendsEmpty = false;
#endif

// The address of a peer and the object that stands for it.
struct Peer {
  PyObject* object = nullptr;
  socklen_t size = 0;
  sockaddr_in6 address{};  // or a sockaddr_in
};

struct Unsent {
  PyObject* data;     // bytes
  PyObject* address;  // None for where the socket is connected to
};

struct Datagram : Endpoint {
  PyObject* remote = nullptr;  // the only address that may be sent to, None for any
  int family = AF_UNSPEC;
  bool connected = false;  // as asyncio sees it: the peer has a name
  bool has_peer = false;   // as the kernel sees it
  bool native = false;     // addresses of its family are ours to read and write
  bool batches = false;    // UDP: several can be received at once
  unsigned batch = 1;      // how many to receive at once
  unsigned singles = 0;    // received since more than one was looked for
  std::unique_ptr<std::array<Peer, kPeers>> peers;  // by port: who sent before sends again
  PyObject* last_to = nullptr;                      // what was read last, so as not to do it again
  sockaddr_storage last_address{};
  socklen_t last_size = 0;
  std::deque<Unsent> queue;
  std::size_t queued = 0;  // bytes
};

Datagram& of(PyObject* self) { return fields_of<Datagram>(self); }

void drop_queue(Datagram& datagram) {
  std::deque<Unsent> gone;
  gone.swap(datagram.queue);
  datagram.queued = 0;
  for (const Unsent& each : gone) {
    Py_DECREF(each.data);
    Py_DECREF(each.address);
  }
}

void force_close(Datagram& datagram, PyObject* reason) {
  if (datagram.lost != 0) return;
  drop_queue(datagram);
  stop_side(datagram, Side::kWrite);
  if (!datagram.closing) {
    datagram.closing = true;
    stop_side(datagram, Side::kRead);
  }
  ++datagram.lost;
  lose_soon(datagram, reason);
}

// Takes the exception that is set: tells of it and ends the transport. -1 for what has to leave the
// loop.
int fatal(Datagram& datagram, const char* message) {
  if (must_leave()) return -1;
  const py::Error error = py::Error::fetch();
  PyObject* done = PyObject_CallFunction(datagram.state().report_fatal, "OOs", datagram.self,
                                         error.exception(), message);
  Py_XDECREF(done);
  if (done == nullptr) {
    if (must_leave()) return -1;
    PyErr_WriteUnraisable(datagram.self);
  }
  if (datagram.loop != nullptr) force_close(datagram, error.exception());
  return 0;
}

// --- peers

unsigned port_of(const sockaddr_in6& address) {
  return ntohs(address.sin6_port);  // in the same place as a sockaddr_in's
}

// The object for the address of a datagram that came in.
PyObject* peer_object(Datagram& datagram, const sockaddr_storage& address, socklen_t size) {
  const auto* plain = reinterpret_cast<const sockaddr*>(&address);
  if (size < sizeof(sockaddr_in) || size > sizeof(sockaddr_in6) || address.ss_family == AF_UNIX)
    return address_object(plain, size);
  const auto& inet = reinterpret_cast<const sockaddr_in6&>(address);
  if (!datagram.peers) datagram.peers = std::make_unique<std::array<Peer, kPeers>>();
  Peer& peer = (*datagram.peers)[port_of(inet) % kPeers];
  if (peer.size == size && std::memcmp(&peer.address, &address, size) == 0)
    return Py_NewRef(peer.object);
  PyObject* object = address_object(plain, size);
  if (object == nullptr) return nullptr;
  Py_XSETREF(peer.object, Py_NewRef(object));
  peer.size = size;
  std::memcpy(&peer.address, &address, size);
  return object;
}

// The peer that `object` was made for.
const Peer* known_peer(const Datagram& datagram, PyObject* object) {
  long long port = 0;
  if (!datagram.peers || !PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) < 2 ||
      !PyLong_CheckExact(PyTuple_GET_ITEM(object, 1)) ||
      !py::one_digit(PyTuple_GET_ITEM(object, 1), port) || port < 0)
    return nullptr;
  const Peer& peer = (*datagram.peers)[static_cast<std::size_t>(port) % kPeers];
  return peer.object == object ? &peer : nullptr;
}

// Where `object` is; null for what is the socket object's to read.
const sockaddr* find_address(Datagram& datagram, PyObject* object, socklen_t& size) {
  if (const Peer* peer = known_peer(datagram, object)) {
    size = peer->size;
    return reinterpret_cast<const sockaddr*>(&peer->address);
  }
  const bool again = object == datagram.last_to;
  if (!again) {
    Py_CLEAR(datagram.last_to);
    if (!parse_address(datagram.family, object, datagram.last_address, datagram.last_size))
      return nullptr;
    datagram.last_to = Py_NewRef(object);  // it cannot change: only what is immutable is read
  }
  size = datagram.last_size;
  return reinterpret_cast<const sockaddr*>(&datagram.last_address);
}

// --- receiving

int error_from_kernel(Datagram& datagram) {
  PyErr_SetFromErrno(PyExc_OSError);
  const py::Error error = py::Error::fetch();
  PyObject* exception = error.exception();
  return tell_protocol(datagram, datagram.state().names.error_received, &exception, 1);
}

// Takes over both references.
int deliver(Datagram& datagram, PyObject* data, PyObject* address) {
  int status = 0;
  if (data == nullptr || address == nullptr) {
    status = fatal(datagram, "Fatal read error on datagram transport");
  } else if (!datagram.closing) {
    PyObject* arguments[] = {data, address};
    status = tell_protocol(datagram, datagram.state().names.datagram_received, arguments, 2);
  }
  Py_XDECREF(data);
  Py_XDECREF(address);
  return status;
}

int read_by_python(Datagram& datagram) {
  PyObject* pair = PyObject_CallMethod(datagram.file, "recvfrom", "n",
                                       static_cast<Py_ssize_t>(Loop::kBufferSize));
  if (pair != nullptr && PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2) {
    PyObject* data = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
    PyObject* address = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
    Py_DECREF(pair);
    return deliver(datagram, data, address);
  }
  Py_XDECREF(pair);
  if (PyErr_ExceptionMatches(PyExc_BlockingIOError) != 0 ||
      PyErr_ExceptionMatches(PyExc_InterruptedError) != 0) {
    PyErr_Clear();
    return 0;
  }
  if (PyErr_ExceptionMatches(PyExc_OSError) == 0)
    return fatal(datagram, "Fatal read error on datagram transport");
  const py::Error error = py::Error::fetch();
  PyObject* exception = error.exception();
  return tell_protocol(datagram, datagram.state().names.error_received, &exception, 1);
}

int read_one(Datagram& datagram) {
  sockaddr_storage address;
  socklen_t size = sizeof address;
  char* room = datagram.loop->buffer();
  const ssize_t count = recvfrom(datagram.fd, room, Loop::kBufferSize, MSG_DONTWAIT,
                                 reinterpret_cast<sockaddr*>(&address), &size);
  if (count < 0) return would_block(errno) ? 0 : error_from_kernel(datagram);
  PyObject* data = PyBytes_FromStringAndSize(room, count);
  return deliver(datagram, data, data == nullptr ? nullptr : peer_object(datagram, address, size));
}

// A few at once, all of them Python's before the first is told of: what is told may read as well.
int read_many(Datagram& datagram) {
  struct Taken {
    PyObject* data;
    PyObject* address;
  };
  Loop& loop = *datagram.loop;
  DatagramRoom::Owner room = loop.take_datagram_room();
  const unsigned wanted = std::max(datagram.batch, kProbe);
  room->prepare(wanted);
  const int count = recvmmsg(datagram.fd, room->messages, wanted, MSG_DONTWAIT, nullptr);
  if (count < 0) {
    const int error = errno;
    loop.give_datagram_room(std::move(room));
    errno = error;
    return would_block(error) ? 0 : error_from_kernel(datagram);
  }
  std::array<Taken, DatagramRoom::kMessages> taken;
  const auto received = static_cast<unsigned>(count);
  for (unsigned i = 0; i < received; ++i) {
    const mmsghdr& message = room->messages[i];
    PyObject* data =
        PyBytes_FromStringAndSize(room->slot(i), static_cast<Py_ssize_t>(message.msg_len));
    taken[i].data = data;
    taken[i].address = data == nullptr
                           ? nullptr
                           : peer_object(datagram, room->addresses[i], message.msg_hdr.msg_namelen);
  }
  loop.give_datagram_room(std::move(room));
  if (received == wanted)
    datagram.batch = std::min(2 * received, DatagramRoom::kMessages);
  else
    datagram.batch = received <= 1 ? 1 : received + 1;
  int status = 0;
  for (unsigned i = 0; i < received; ++i) {
    if (status == 0 && datagram.lost == 0) {
      status = deliver(datagram, taken[i].data, taken[i].address);
    } else {
      Py_XDECREF(taken[i].data);
      Py_XDECREF(taken[i].address);
    }
  }
  return status;
}

int read_job(Loop&, PyObject* self) {
  Datagram& datagram = of(self);
  if (datagram.lost != 0 || datagram.closing) return 0;
  if (!datagram.native) return read_by_python(datagram);
  if (!datagram.batches || (datagram.batch == 1 && ++datagram.singles < kAlone))
    return read_one(datagram);
  datagram.singles = 0;
  return read_many(datagram);
}

// --- sending

enum class Sent : std::uint8_t { kDone, kAgain, kError, kRaised };

bool without_address(const Datagram& datagram, PyObject* address) {
  return datagram.connected || (datagram.has_peer && address == Py_None);
}

Sent sent_by_python(Datagram& datagram, PyObject* data, PyObject* address) {
  State::Names& names = datagram.state().names;
  PyObject* done =
      without_address(datagram, address)
          ? PyObject_CallMethodOneArg(datagram.file, names.send, data)
          : PyObject_CallMethodObjArgs(datagram.file, names.sendto, data, address, nullptr);
  Py_XDECREF(done);
  if (done != nullptr) return Sent::kDone;
  if (PyErr_ExceptionMatches(PyExc_BlockingIOError) != 0 ||
      PyErr_ExceptionMatches(PyExc_InterruptedError) != 0) {
    PyErr_Clear();
    return Sent::kAgain;
  }
  return PyErr_ExceptionMatches(PyExc_OSError) != 0 ? Sent::kError : Sent::kRaised;
}

Sent sent(ssize_t count) {
  if (count >= 0) return Sent::kDone;
  if (would_block(errno)) return Sent::kAgain;
  PyErr_SetFromErrno(PyExc_OSError);
  return Sent::kError;
}

// Sends one datagram; an exception is set for the last two of its results.
Sent send_one(Datagram& datagram, PyObject* data, PyObject* address) {
  const sockaddr* to = nullptr;
  socklen_t size = 0;
  if (!without_address(datagram, address)) {
    to = datagram.native ? find_address(datagram, address, size) : nullptr;
    if (to == nullptr) return sent_by_python(datagram, data, address);
    if (PySys_Audit("socket.sendto", "OO", datagram.file, address) < 0) return Sent::kRaised;
  }
  constexpr int kFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
  if (PyBytes_CheckExact(data))
    return sent(sendto(datagram.fd, PyBytes_AS_STRING(data),
                       static_cast<std::size_t>(PyBytes_GET_SIZE(data)), kFlags, to, size));
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return Sent::kRaised;
  const ssize_t count =
      sendto(datagram.fd, view.buf, static_cast<std::size_t>(view.len), kFlags, to, size);
  const int error = errno;
  PyBuffer_Release(&view);
  errno = error;
  return sent(count);
}

void forget_first(Datagram& datagram) {
  const Unsent first = datagram.queue.front();
  datagram.queue.pop_front();
  datagram.queued -= static_cast<std::size_t>(PyBytes_GET_SIZE(first.data)) + kHeader;
  Py_DECREF(first.data);
  Py_DECREF(first.address);
}

// What of the queue's beginning can leave in one call: fills `messages`, returns how many.
unsigned gather(Datagram& datagram, mmsghdr* messages, iovec* pieces, sockaddr_storage* addresses) {
  unsigned count = 0;
  for (const Unsent& each : datagram.queue) {
    if (count == DatagramRoom::kMessages) break;
    msghdr& head = messages[count].msg_hdr;
    head = {};
    if (!without_address(datagram, each.address)) {
      socklen_t size = 0;
      if (!datagram.native || !parse_address(datagram.family, each.address, addresses[count], size))
        break;
      head.msg_name = &addresses[count];
      head.msg_namelen = size;
    }
    pieces[count] = {PyBytes_AS_STRING(each.data),
                     static_cast<std::size_t>(PyBytes_GET_SIZE(each.data))};
    head.msg_iov = &pieces[count];
    head.msg_iovlen = 1;
    ++count;
  }
  return count;
}

Sent send_queued(Datagram& datagram) {
  mmsghdr messages[DatagramRoom::kMessages];
  iovec pieces[DatagramRoom::kMessages];
  sockaddr_storage addresses[DatagramRoom::kMessages];
  const unsigned ready = gather(datagram, messages, pieces, addresses);
  if (ready == 0) {  // what comes first is the socket object's to send
    const py::Ref data = py::Ref::borrow(datagram.queue.front().data);
    const py::Ref address = py::Ref::borrow(datagram.queue.front().address);
    const Sent result = sent_by_python(datagram, data.get(), address.get());
    if (result != Sent::kAgain && !datagram.queue.empty()) forget_first(datagram);
    return result;
  }
  const int count = sendmmsg(datagram.fd, messages, ready, MSG_DONTWAIT | MSG_NOSIGNAL);
  const Sent result = sent(count);
  for (int i = 0; i < count; ++i) forget_first(datagram);
  if (result == Sent::kError) forget_first(datagram);
  return result;
}

int write_job(Loop& loop, PyObject* self) {
  Datagram& datagram = of(self);
  if (datagram.lost != 0) return 0;
  Sent result = Sent::kDone;
  while (!datagram.queue.empty() && datagram.lost == 0 && result == Sent::kDone)
    result = send_queued(datagram);
  if (result == Sent::kRaised) return fatal(datagram, "Fatal write error on datagram transport");
  if (result == Sent::kError) {
    const py::Error error = py::Error::fetch();
    PyObject* exception = error.exception();
    return tell_protocol(datagram, loop.state().names.error_received, &exception, 1);
  }
  if (datagram.flow.paused) {
    const Entered entered(datagram.context);
    if (datagram.flow.maybe_resume(loop, self, datagram.protocol, datagram.queued) < 0) return -1;
  }
  if (!datagram.queue.empty() || datagram.loop == nullptr) return 0;
  stop_side(datagram, Side::kWrite);
  if (!datagram.closing || datagram.lost != 0) return 0;
  ++datagram.lost;
  return lose_now(datagram, Py_None);
}

bool warn_lost(Datagram& datagram) {
  State* state =
      datagram.lost < Endpoint::kLostWrites ? nullptr : state_of_type(Py_TYPE(datagram.self));
  if (state != nullptr) {
    PyObject* done = PyObject_CallNoArgs(state->warn_lost_writes);
    Py_XDECREF(done);
    if (done == nullptr) return false;
  }
  ++datagram.lost;
  return true;
}

int tell_error(Datagram& datagram) {
  const py::Error error = py::Error::fetch();
  PyObject* done = PyObject_CallMethodOneArg(
      datagram.protocol, datagram.state().names.error_received, error.exception());
  Py_XDECREF(done);
  return done == nullptr ? -1 : 0;
}

int enqueue(Datagram& datagram, PyObject* data, PyObject* address) {
  PyObject* whole = PyBytes_FromObject(data);  // it must not change while it waits
  if (whole == nullptr) return -1;
  datagram.queue.push_back({whole, Py_NewRef(address)});
  datagram.queued += static_cast<std::size_t>(PyBytes_GET_SIZE(whole)) + kHeader;
  return datagram.flow.maybe_pause(*datagram.loop, datagram.self, datagram.protocol,
                                   datagram.queued);
}

int send_or_queue(Datagram& datagram, PyObject* data, PyObject* address) {
  if (datagram.queue.empty()) {
    switch (send_one(datagram, data, address)) {
      case Sent::kDone:
        return 0;
      case Sent::kError:
        return tell_error(datagram);
      case Sent::kRaised:
        return fatal(datagram, "Fatal write error on datagram transport");
      case Sent::kAgain:
        if (watch_side(datagram, Side::kWrite, write_job) < 0) return -1;
    }
  }
  return enqueue(datagram, data, address);
}

// 1 if `address` is right for a transport that has a remote address, 0 with ValueError set.
int is_remote(Datagram& datagram, PyObject* address) {
  if (address == Py_None || address == datagram.remote) return 1;
  const int same = PyObject_RichCompareBool(address, datagram.remote, Py_EQ);
  if (same == 0)
    PyErr_Format(PyExc_ValueError, "Invalid address: must be None or %S", datagram.remote);
  return same;
}

bool is_empty(PyObject* data) {
  if (PyBytes_CheckExact(data)) return PyBytes_GET_SIZE(data) == 0;
  const Py_ssize_t size = PyObject_Size(data);
  if (size < 0) PyErr_Clear();
  return size == 0;
}

bool sendto_arguments(PyObject* const* arguments, Py_ssize_t count, PyObject* names,
                      PyObject*& data, PyObject*& address) {
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  data = count > 0 ? arguments[0] : nullptr;
  address = count > 1 ? arguments[1] : nullptr;
  bool right = count <= 2;
  for (Py_ssize_t i = 0; i < named && right; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    PyObject** place = nullptr;
    if (PyUnicode_CompareWithASCIIString(name, "data") == 0) place = &data;
    if (PyUnicode_CompareWithASCIIString(name, "addr") == 0) place = &address;
    right = place != nullptr && *place == nullptr;
    if (right) *place = arguments[count + i];
  }
  if (address == nullptr) address = Py_None;
  if (right && data != nullptr) return true;
  PyErr_SetString(PyExc_TypeError, "sendto() takes data and addr=None");
  return false;
}

PyObject* send_to(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  Datagram& datagram = of(self);
  PyObject* data = nullptr;
  PyObject* address = nullptr;
  if (!sendto_arguments(arguments, count, names, data, address)) return nullptr;
  if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
    PyObject* name = PyType_GetName(Py_TYPE(data));
    if (name != nullptr)
      PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not %R", name);
    Py_XDECREF(name);
    return nullptr;
  }
  if (!kSendsEmpty && is_empty(data)) Py_RETURN_NONE;
  if (datagram.remote != nullptr) {
    if (is_remote(datagram, address) <= 0) return nullptr;
    address = datagram.remote;
  }
  if ((datagram.lost != 0 && datagram.remote != nullptr) || datagram.loop == nullptr) {
    if (!warn_lost(datagram)) return nullptr;
    Py_RETURN_NONE;
  }
  const py::Ref loop_kept = py::Ref::borrow(datagram.loop_object);
  if (send_or_queue(datagram, data, address) < 0) return nullptr;
  Py_RETURN_NONE;
}

// --- the rest of the transport

PyObject* close_transport(PyObject* self, PyObject*) {
  Datagram& datagram = of(self);
  if (datagram.closing || datagram.loop == nullptr) Py_RETURN_NONE;
  datagram.closing = true;
  stop_side(datagram, Side::kRead);
  if (!datagram.queue.empty()) Py_RETURN_NONE;
  ++datagram.lost;
  stop_side(datagram, Side::kWrite);
  lose_soon(datagram, nullptr);
  Py_RETURN_NONE;
}

PyObject* abort_transport(PyObject* self, PyObject*) {
  if (of(self).loop != nullptr) force_close(of(self), nullptr);
  Py_RETURN_NONE;
}

PyObject* set_limits(PyObject* self, PyObject* arguments, PyObject* options) {
  Datagram& datagram = of(self);
  if (datagram.flow.set_limits(arguments, options) < 0) return nullptr;
  if (datagram.loop != nullptr &&
      datagram.flow.maybe_pause(*datagram.loop, self, datagram.protocol, datagram.queued) < 0)
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* buffer_size(PyObject* self, PyObject*) { return PyLong_FromSize_t(of(self).queued); }

PyObject* repr(PyObject* self) {
  const Datagram& datagram = of(self);
  const char* state = datagram.file == nullptr ? " closed" : datagram.closing ? " closing" : "";
  if (datagram.loop == nullptr || datagram.loop->closed)
    return PyUnicode_FromFormat("<DatagramTransport%s fd=%d>", state, datagram.fd);
  return PyUnicode_FromFormat("<DatagramTransport%s fd=%d read=%s write=<%s, bufsize=%zu>>", state,
                              datagram.fd, watches_side(datagram, Side::kRead) ? "polling" : "idle",
                              watches_side(datagram, Side::kWrite) ? "polling" : "idle",
                              datagram.queued);
}

PyObject* get_address(PyObject* self, void*) {
  PyObject* remote = of(self).remote;
  return Py_NewRef(remote == nullptr ? Py_None : remote);
}

// --- its making

int started(Loop&, PyObject* self) {
  Datagram& datagram = of(self);
  if (datagram.loop == nullptr) return 0;
  if (!datagram.closing && watch_side(datagram, Side::kRead, read_job) < 0 &&
      fatal(datagram, "Fatal read error on datagram transport") < 0)
    return -1;
  return waiter_done(datagram);
}

// What a method of the socket says of one of its ends, None if it has none.
PyObject* name_of(PyObject* sock, PyObject* method) {
  PyObject* name = PyObject_CallMethodNoArgs(sock, method);
  if (name != nullptr || PyErr_ExceptionMatches(PyExc_OSError) == 0) return name;
  PyErr_Clear();
  Py_RETURN_NONE;
}

int put(Datagram& datagram, PyObject* name, PyObject* value) {
  if (value == nullptr) return -1;
  const int status = PyDict_SetItem(datagram.extra, name, value);
  Py_DECREF(value);
  return status;
}

int fill_extra(Datagram& datagram) {
  State& state = datagram.state();
  State::Names& names = state.names;
  if (put(datagram, names.socket, PyObject_CallOneArg(state.transport_socket, datagram.file)) < 0 ||
      put(datagram, names.sockname, name_of(datagram.file, names.getsockname)) < 0)
    return -1;
  const int known = PyDict_Contains(datagram.extra, names.peername);
  if (known < 0 ||
      (known == 0 && put(datagram, names.peername, name_of(datagram.file, names.getpeername)) < 0))
    return -1;
  PyObject* peer = PyDict_GetItemWithError(datagram.extra, names.peername);
  const int named = peer == nullptr ? -1 : PyObject_IsTrue(peer);
  datagram.connected = named == 1;
  sockaddr_storage address;
  socklen_t size = sizeof address;
  datagram.has_peer = getpeername(datagram.fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  return named < 0 ? -1 : 0;
}

void learn_kind(Datagram& datagram) {
  int kind = 0;
  socklen_t size = sizeof kind;
  getsockopt(datagram.fd, SOL_SOCKET, SO_DOMAIN, &datagram.family, &size);
  size = sizeof kind;
  getsockopt(datagram.fd, SOL_SOCKET, SO_TYPE, &kind, &size);
  const bool inet = datagram.family == AF_INET || datagram.family == AF_INET6;
  datagram.native = inet || datagram.family == AF_UNIX;
  datagram.batches = inet && kind == SOCK_DGRAM;
}

int fill(Datagram& datagram, PyObject* self, Loop& loop, PyObject* const* arguments) {
  PyObject* sock = arguments[0];
  PyObject* protocol = arguments[1];
  PyObject* address = arguments[2];
  PyObject* waiter = arguments[3];
  PyObject* extra = arguments[4];
  if (open_endpoint(datagram, self, loop, sock, protocol, extra) < 0) return -1;
  learn_kind(datagram);
  const int given = PyObject_IsTrue(address);
  if (given < 0 || fill_extra(datagram) < 0) return -1;
  if (given != 0) datagram.remote = Py_NewRef(address);
  loop.own(datagram.fd, self);
  return start_endpoint(datagram, waiter, started);
}

int clear(PyObject* self) {
  Datagram& datagram = of(self);
  drop_queue(datagram);
  clear_endpoint(datagram);
  Py_CLEAR(datagram.remote);
  Py_CLEAR(datagram.last_to);
  return 0;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Datagram& datagram = of(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(datagram.remote);
  Py_VISIT(datagram.last_to);
  for (const Unsent& each : datagram.queue) Py_VISIT(each.address);
  // The peers' objects hold nothing but a text and numbers.
  return traverse_endpoint(datagram, visit, arg);
}

void dealloc(PyObject* self) {
  if (PyObject_CallFinalizerFromDealloc(self) < 0) return;
  PyTypeObject* type = Py_TYPE(self);
  Shared& shared = *of(self).shared;
  PyObject_GC_UnTrack(self);
  PyObject_ClearWeakRefs(self);
  clear(self);
  Datagram& datagram = of(self);
  if (datagram.peers)
    for (const Peer& peer : *datagram.peers) Py_XDECREF(peer.object);
  datagram.~Datagram();
  shared.leave(shared.transports);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef g_methods[] = {
    {"sendto", as_method(send_to), METH_FASTCALL | METH_KEYWORDS,
     "sendto(data, addr=None): send it, or queue it until there is room."},
    {"close", close_transport, METH_NOARGS, "close(): close when what is queued has left."},
    {"abort", abort_transport, METH_NOARGS, "abort(): close now; what is queued is lost."},
    {"is_closing", endpoint_is_closing, METH_NOARGS,
     "is_closing(): whether it closes or is closed."},
    {"set_protocol", endpoint_set_protocol, METH_O,
     "set_protocol(protocol): whom to tell from now on."},
    {"get_protocol", endpoint_get_protocol, METH_NOARGS, "get_protocol(): the protocol."},
    {"get_extra_info", as_method(endpoint_get_extra_info), METH_VARARGS | METH_KEYWORDS,
     "get_extra_info(name, default=None): 'socket', 'sockname', 'peername'."},
    {"set_write_buffer_limits", as_method(set_limits), METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits(high=None, low=None): when to pause the protocol, in bytes."},
    {"get_write_buffer_limits", endpoint_limits, METH_NOARGS,
     "get_write_buffer_limits(): (low, high) in bytes."},
    {"get_write_buffer_size", buffer_size, METH_NOARGS,
     "get_write_buffer_size(): bytes that wait."},
    {}};

PyGetSetDef g_attributes[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {"_loop", endpoint_loop, nullptr, nullptr, nullptr},
    {"_sock", endpoint_file, nullptr, nullptr, nullptr},
    {"_sock_fd", endpoint_fd, nullptr, nullptr, nullptr},
    {"_extra", endpoint_extra, nullptr, nullptr, nullptr},
    {"_protocol", endpoint_protocol, nullptr, nullptr, nullptr},
    {"_address", get_address, nullptr, nullptr, nullptr},
    {"_conn_lost", endpoint_lost, nullptr, nullptr, nullptr},
    {"_closing", endpoint_closing, nullptr, nullptr, nullptr},
    {}};

PyType_Slot g_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                         {Py_tp_finalize, reinterpret_cast<void*>(finalize_endpoint)},
                         {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                         {Py_tp_clear, reinterpret_cast<void*>(clear)},
                         {Py_tp_repr, reinterpret_cast<void*>(repr)},
                         {Py_tp_methods, g_methods},
                         {Py_tp_getset, g_attributes},
                         {0, nullptr}};

PyObject* new_datagram_transport(PyObject* loop_object, PyObject* const* arguments,
                                 Py_ssize_t count) {
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "sock, protocol, address, waiter and extra are wanted");
    return nullptr;
  }
  Loop& loop = *reinterpret_cast<LoopObject*>(loop_object)->loop;
  State& state = loop.state();
  PyObject* self = state.datagram_type->tp_alloc(state.datagram_type, 0);
  if (self == nullptr) return nullptr;
  auto& datagram = *new (&of(self)) Datagram;
  datagram.shared = state.shared;
  ++datagram.shared->transports;
  if (fill(datagram, self, loop, arguments) == 0) return self;
  Py_CLEAR(datagram.file);  // the caller's, who closes it
  Py_DECREF(self);
  return nullptr;
}

PyMethodDef g_loop_methods[] = {
    {"_new_datagram_transport", as_method(new_datagram_transport), METH_FASTCALL, nullptr}, {}};

}  // namespace

int datagram_exec(PyObject* module, State& state) {
  state.datagram_type = endpoint_type(module, "erlang_loop.DatagramTransport", sizeof(Datagram),
                                      state.datagram_class, g_slots);
  return state.datagram_type == nullptr ? -1 : add_loop_methods(state, g_loop_methods);
}

}  // namespace loop
