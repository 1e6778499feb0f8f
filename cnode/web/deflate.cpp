#include "cnode/web/deflate.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <new>
#include <stdexcept>
#include <utility>

namespace web {
namespace {

constexpr int kMemoryLevel = 5;
constexpr std::string_view kTail{"\0\0\xff\xff",
                                 4};  // what every message ends with, and is left out

std::string_view trim(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// The part before `separator`, which is taken off `rest` with it. A separator inside quotes would
// be in a value, and no value that we take has one.
std::string_view next_part(std::string_view& rest, char separator) {
  const auto end = rest.find(separator);
  const auto part = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
  return trim(part);
}

std::optional<int> bits_of(std::string_view value) {
  if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
    value = value.substr(1, value.size() - 2);
  int bits = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), bits);
  if (error != std::errc{} || end != value.data() + value.size() || value.front() == '0' ||
      bits < 8 || bits > 15)
    return std::nullopt;
  return bits;
}

// Nothing if a parameter is unknown, stands twice, has a value it may not have, or asks for what
// zlib cannot do.
std::optional<DeflateTerms> terms_of(std::string_view parameters) {
  DeflateTerms terms;
  std::array<bool, 4> seen{};
  while (!parameters.empty()) {
    std::string_view value = next_part(parameters, ';');
    const bool has_value = value.find('=') != std::string_view::npos;
    const std::string_view name = next_part(value, '=');
    std::size_t index = 0;
    if (name == "server_no_context_takeover" && !has_value) {
      terms.server_takeover = false;
    } else if (name == "client_no_context_takeover" && !has_value) {
      index = 1;
      terms.client_takeover = false;
    } else if (name == "server_max_window_bits" && has_value) {
      index = 2;
      const auto bits = bits_of(value);
      if (!bits || *bits == 8) return std::nullopt;  // zlib compresses with 9 bits at least
      terms.server_bits = std::min(terms.server_bits, *bits);
    } else if (name == "client_max_window_bits") {
      index = 3;
      if (has_value) {
        const auto bits = bits_of(value);
        if (!bits) return std::nullopt;
        terms.client_bits = std::min(12, *bits);
      } else {
        terms.client_bits = 12;
      }
      terms.say_client_bits = true;
    } else {
      return std::nullopt;
    }
    if (std::exchange(seen.at(index), true)) return std::nullopt;
  }
  return terms;
}

}  // namespace

std::string DeflateTerms::header() const {
  std::string text = "permessage-deflate; server_max_window_bits=" + std::to_string(server_bits);
  if (say_client_bits) text += "; client_max_window_bits=" + std::to_string(client_bits);
  if (!server_takeover) text += "; server_no_context_takeover";
  if (!client_takeover) text += "; client_no_context_takeover";
  return text;
}

std::optional<DeflateTerms> choose_deflate(std::string_view extensions) {
  while (!extensions.empty()) {
    std::string_view offer = next_part(extensions, ',');
    if (next_part(offer, ';') != "permessage-deflate") continue;
    if (auto terms = terms_of(offer)) return terms;
  }
  return std::nullopt;
}

Inflater::Inflater(const DeflateTerms& terms) : takeover_(terms.client_takeover) {
  // A window of 8 bits is inflated with one of 9 just as well.
  if (inflateInit2(&stream_, -std::max(9, terms.client_bits)) != Z_OK) throw std::bad_alloc();
}

Inflater::~Inflater() { inflateEnd(&stream_); }

Inflater::Result Inflater::inflate(std::string_view message, std::size_t limit, std::string& out) {
  std::array<char, 16 * 1024> room;
  for (const std::string_view part : {message, kTail}) {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(part.data()));
    stream_.avail_in = static_cast<uInt>(part.size());
    do {
      stream_.next_out = reinterpret_cast<Bytef*>(room.data());
      stream_.avail_out = static_cast<uInt>(room.size());
      const int status = ::inflate(&stream_, Z_SYNC_FLUSH);
      const std::size_t made = room.size() - stream_.avail_out;
      if (out.size() + made > limit) return Result::kTooLarge;
      out.append(room.data(), made);
      if (status == Z_STREAM_END) {  // a final block, which a sender may make: the next begins anew
        if (inflateReset(&stream_) != Z_OK) return Result::kBroken;
        continue;
      }
      if (status == Z_BUF_ERROR) break;  // nothing more to be had from this part
      if (status != Z_OK) return Result::kBroken;
    } while (stream_.avail_in > 0 || stream_.avail_out == 0);
  }
  if (!takeover_ && inflateReset(&stream_) != Z_OK) return Result::kBroken;
  return Result::kDone;
}

Deflater::Deflater(const DeflateTerms& terms) : takeover_(terms.server_takeover) {
  if (deflateInit2(&stream_, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -terms.server_bits, kMemoryLevel,
                   Z_DEFAULT_STRATEGY) != Z_OK)
    throw std::bad_alloc();
}

Deflater::~Deflater() { deflateEnd(&stream_); }

std::string Deflater::deflate(std::string_view message) {
  std::string out;
  out.resize(deflateBound(&stream_, message.size()) + 16);
  stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(message.data()));
  stream_.avail_in = static_cast<uInt>(message.size());
  std::size_t made = 0;
  do {
    if (made == out.size()) out.resize(out.size() * 2);
    stream_.next_out = reinterpret_cast<Bytef*>(out.data() + made);
    stream_.avail_out = static_cast<uInt>(out.size() - made);
    const int status = ::deflate(&stream_, Z_SYNC_FLUSH);
    if (status != Z_OK && status != Z_BUF_ERROR) throw std::runtime_error("zlib cannot compress");
    made = out.size() - stream_.avail_out;
  } while (stream_.avail_out == 0);
  out.resize(made - kTail.size());
  if (!takeover_) deflateReset(&stream_);
  return out;
}

}  // namespace web
