// ChannelType: erlang.channel.Channel's native half, what Python consumers and senders of a channel
// go through.
//
//   ChannelQueue ── a batch, one hold of the GIL ──▶ decoded values ── one by one ──▶ consumers
#pragma once

#include <cstdint>

#include "cnode/bridge/channel.hpp"
#include "cnode/mailbox/fifo.hpp"
#include "cnode/py/ref.hpp"

namespace bridge {

// The values of a channel that are decoded and wait for a consumer. Under the GIL.
class DecodedValues {
 public:
  struct Value {
    PyObject* object = nullptr;  // owned
    std::uint32_t cost = 0;
    mailbox::Credit::Sender sender = 0;
    bool is_error = false;  // the exception to raise: this message cannot be decoded
  };

  DecodedValues() = default;
  ~DecodedValues();
  DecodedValues(const DecodedValues&) = delete;
  DecodedValues& operator=(const DecodedValues&) = delete;

  mailbox::Fifo<Value> values;
  std::mutex decoding;  // one thread at a time, or the batches would change places
};

// Adds the type `Channel` to the module. -1 with an exception set when it fails.
int add_channel_type(PyObject* module);

}  // namespace bridge
