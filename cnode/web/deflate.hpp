// permessage-deflate (RFC 7692): what was agreed, and zlib for both directions.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace web {

struct DeflateTerms {
  int server_bits =
      12;  // windows: 32 KB of zlib's memory for a connection, where 15 would take 256
  int client_bits = 15;
  bool server_takeover = true;  // the window is kept from message to message
  bool client_takeover = true;
  bool say_client_bits = false;

  // The value of Sec-WebSocket-Extensions in our answer.
  std::string header() const;
};

// The first offer of permessage-deflate in the header's values that we can take.
std::optional<DeflateTerms> choose_deflate(std::string_view extensions);

class Inflater {
 public:
  explicit Inflater(const DeflateTerms& terms);
  ~Inflater();
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  enum class Result { kDone, kBroken, kTooLarge };
  // Appends the message to `out`, which may hold `limit` bytes at most.
  Result inflate(std::string_view message, std::size_t limit, std::string& out);

 private:
  z_stream stream_{};
  bool takeover_;
};

class Deflater {
 public:
  explicit Deflater(const DeflateTerms& terms);
  ~Deflater();
  Deflater(const Deflater&) = delete;
  Deflater& operator=(const Deflater&) = delete;

  std::string deflate(std::string_view message);

 private:
  z_stream stream_{};
  bool takeover_;
};

}  // namespace web
