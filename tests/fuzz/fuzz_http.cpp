// What a client may send to the web server: requests, cut anywhere, and PROXY headers. What was
// refused stays so, and a request that is taken whole is taken as the same one in pieces.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "cnode/web/proxy_header.hpp"
#include "cnode/web/request_parser.hpp"

namespace {

struct Heard final : web::RequestParser::Sink {
  std::string text;

  bool on_head(const web::RequestParser::Head& head) override {
    text += std::string(head.method) + '\1' + std::string(head.target);
    for (const auto& [name, value] : head.headers)
      text += '\2' + std::string(name) + '\3' + std::string(value);
    return true;
  }
  bool on_body(std::string_view bytes) override {
    text += bytes;
    return true;
  }
  bool on_end() override {
    text += '\4';
    return true;
  }
};

std::string parse(std::string_view bytes, std::size_t step) {
  Heard heard;
  web::RequestParser parser({256, 1024, 16, 4096}, heard);
  while (!bytes.empty()) {
    std::string_view piece = bytes.substr(0, step);
    bytes.remove_prefix(piece.size());
    while (!piece.empty()) {
      const auto outcome = parser.feed(piece);
      if (outcome.used > piece.size()) std::abort();
      piece.remove_prefix(outcome.used);
      if (outcome.state == web::RequestParser::State::kRefused) return heard.text + "refused";
      if (outcome.state == web::RequestParser::State::kEnded) parser.next();
    }
  }
  return heard.text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  (void)web::read_proxy_header(bytes);
  // A limit may cut in earlier when bytes come one by one, so only short inputs are compared.
  const std::string pieces = parse(bytes, 1 + data[0]);
  if (bytes.size() < 256 && parse(bytes, bytes.size() + 1) != pieces) std::abort();
  return 0;
}
