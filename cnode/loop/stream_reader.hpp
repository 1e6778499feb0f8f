// StreamReaderFeed: gives an asyncio.StreamReader what came, as
// StreamReaderProtocol.data_received() and StreamReader.feed_data() do, without their frames and
// without a bytes in between.
//
//   socket ── recv ──▶ room(), the end of the reader's bytearray ── fed() ──▶ wakes who reads
//
// A reader of another class, or with a feed_data() of its own, is given bytes by give().
#pragma once

#include <cstddef>

#include "cnode/py/ref.hpp"

namespace loop {

// What the above needs, once an interpreter: all zero at first.
struct StreamReaderState {
  PyObject* reader_class;   // asyncio.StreamReader
  PyObject* feed_data;      // its function
  PyObject* data_received;  // asyncio.StreamReaderProtocol.data_received
  struct Names {
    PyObject *buffer, *cancelled, *eof, *feed_data, *limit, *pause_reading, *paused, *reader_wr,
        *set_result, *transport, *waiter;
  } names;
};

int stream_reader_exec(StreamReaderState& state);
int stream_reader_traverse(StreamReaderState& state, visitproc visit, void* arg);
void stream_reader_clear(StreamReaderState& state);

// Whether the protocol's data_received() is that of StreamReaderProtocol.
bool is_stream_protocol(const StreamReaderState& state, PyObject* protocol);

// One delivery; nothing else may run between room() and fed().
class StreamReaderFeed {
 public:
  explicit StreamReaderFeed(const StreamReaderState& state) : state_(state) {}

  // The reader that a protocol has now, if any. -1 with an exception set, as in all of these.
  int find(PyObject* protocol);
  bool has_reader() const { return static_cast<bool>(reader_); }
  bool takes_memory() const { return static_cast<bool>(buffer_); }

  // Where `size` bytes may be put; null with an exception set.
  char* room(std::size_t size);
  // So many of them were; the rest of the room is given back.
  int fed(std::size_t count);
  // room(), a copy and fed() where that can be done, otherwise feed_data(data).
  int give(PyObject* data);

 private:
  int look_at_reader();
  int wake();
  int pause_if_full();

  const StreamReaderState& state_;
  py::Ref reader_;
  py::Ref buffer_;  // a bytearray; null where feed_data() must be called
  std::size_t before_ = 0;
};

}  // namespace loop
