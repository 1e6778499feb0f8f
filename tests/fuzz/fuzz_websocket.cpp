// What a client may send over a WebSocket: frames cut anywhere, compressed or not, and offers of
// compression.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "cnode/web/deflate.hpp"
#include "cnode/web/frames.hpp"

namespace {

constexpr std::size_t kLimit = 64 * 1024;

struct Sink final : web::Frames::Sink {
  int closes = 0;
  void on_message(web::Frames::Kind, std::string_view bytes) override {
    if (bytes.size() > kLimit || closes > 0) std::abort();
  }
  void on_close(std::uint16_t, std::string_view) override {
    if (++closes > 1) std::abort();
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 2), size - 2);
  std::optional<web::DeflateTerms> terms;
  if ((data[0] & 1U) != 0) terms = web::DeflateTerms{};
  if ((data[0] & 2U) != 0) (void)web::choose_deflate(bytes);
  Sink sink;
  web::Frames frames(sink, kLimit, terms);
  const std::size_t step = 1U + data[1];
  for (std::size_t at = 0; at < bytes.size(); at += step) frames.feed(bytes.substr(at, step));
  frames.send(web::Frames::Kind::kText, "after it");
  return 0;
}
