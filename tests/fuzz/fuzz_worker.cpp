// What a worker process may send: cut into frames, and their fields read.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cnode/bridge/worker_frames.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t step = 1 + data[0];  // how the bytes are cut
  bridge::FrameReader reader(1 << 20);
  for (std::size_t at = 1; at < size;) {
    const auto room = reader.room();
    const std::size_t count = std::min({room.size(), step, size - at});
    std::memcpy(room.data(), data + at, count);
    reader.filled(count);
    at += count;
    for (;;) {
      auto frame = reader.next();
      if (!frame) return 0;
      if (!*frame) break;
      bridge::FrameFields call((*frame)->body);
      (void)call.head();
      bridge::FrameFields result((*frame)->body);
      (void)result.u64();
      (void)result.u8();
      etf::Reader in(result.rest());
      (void)in.term();
    }
  }
  return 0;
}
