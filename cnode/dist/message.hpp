// Message: one outgoing signal, encoded, with room in front for whatever head its frame needs.
//
//   [ headroom (8) | control tuple | payload term, if any ]
//
// Whoever sends writes control and payload once; the link fills in the head (length, pass-through
// or distribution header) in place, or cuts fragments out of the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cnode/etf/writer.hpp"

namespace dist {

struct Message {
  static constexpr std::size_t kHeadroom = 8;

  explicit Message(std::size_t capacity = 256) : bytes(capacity + kHeadroom) {
    bytes.prepare(kHeadroom);
    bytes.commit(kHeadroom);
  }

  // Call once the control tuple is written: what follows is the payload.
  void end_control() { control_size = bytes.size() - kHeadroom; }
  bool has_payload() const { return bytes.size() - kHeadroom > control_size; }
  std::size_t size() const { return bytes.size() - kHeadroom; }

  etf::Buffer bytes;
  std::size_t control_size = 0;
  // Messages of one lane keep their order even when an earlier one is still being cut into
  // fragments. Signals between the same two processes must share a lane; 0 stands for none.
  std::uint64_t lane = 0;
};

}  // namespace dist
