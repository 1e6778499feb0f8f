#include "cnode/main/cookie.hpp"

#include <fstream>
#include <iterator>

#include "cnode/base/log.hpp"
#include "cnode/main/settings_file.hpp"

namespace node_main {
namespace {

constexpr std::size_t kLongest = 255;

std::string trimmed(std::string text, const std::string& what) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' '))
    text.pop_back();
  if (text.empty()) throw ConfigError(what + " is empty");
  if (text.size() > kLongest) throw ConfigError("cookie-file: a cookie has at most 255 bytes");
  return text;
}

}  // namespace

std::string Cookie::read(const std::string& path) {
  if (!base::FileStamp::of(path).found())
    throw ConfigError("cookie-file: cannot read '" + path + "'");
  if (base::open_to_others(path))
    throw ConfigError("cookie-file: '" + path + "' can be read by others; make it 0400");
  std::ifstream file(path, std::ios::binary);
  std::string text(4 * kLongest, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.empty()) throw ConfigError("cookie-file: '" + path + "' is empty or cannot be read");
  return trimmed(std::move(text), "cookie-file: '" + path + "'");
}

Cookie Cookie::of_file(std::string path) {
  Cookie cookie;
  cookie.stamp_ = base::FileStamp::of(path);
  cookie.text_ = read(path);
  cookie.path_ = std::move(path);
  return cookie;
}

Cookie Cookie::of_text(const std::string& text, const char* setting) {
  Cookie cookie;
  cookie.text_ = trimmed(text, setting);
  return cookie;
}

const std::string& Cookie::current() {
  if (path_.empty()) return text_;
  const auto now = base::FileStamp::of(path_);
  if (now == stamp_) return text_;
  stamp_ = now;  // whatever is wrong with it is told once
  try {
    text_ = read(path_);
    spdlog::info("the cookie was read anew from {}: new peers have to have it", path_);
  } catch (const ConfigError& error) {
    spdlog::warn("{}; the cookie stays as it was", error.what());
  }
  return text_;
}

}  // namespace node_main
