#include "cnode/base/log.hpp"

#include "cnode/base/trace.hpp"

#include <spdlog/formatter.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <memory>
#include <stdexcept>

namespace base {
namespace {

// Length of the valid UTF-8 sequence at the front of `text`, 0 when there is none.
std::size_t utf8_sequence(std::string_view text) {
  auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xF0 && lead <= 0xF4  ? 4
                             : lead >= 0xE0                ? 3
                             : lead >= 0xC2 && lead < 0xE0 ? 2
                                                           : 0;
  if (lead > 0xF4 || length == 0 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (lead == 0xE0 && byte(1) < 0xA0) return 0;
  if (lead == 0xED && byte(1) > 0x9F) return 0;
  if (lead == 0xF0 && byte(1) < 0x90) return 0;
  if (lead == 0xF4 && byte(1) > 0x8F) return 0;
  return length;
}

class JsonFormatter final : public spdlog::formatter {
 public:
  explicit JsonFormatter(std::string node) : node_(std::move(node)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    using std::chrono::duration_cast;
    using std::chrono::milliseconds;
    const auto since_epoch = message.time.time_since_epoch();
    const auto millis = duration_cast<milliseconds>(since_epoch).count();
    const std::time_t seconds = static_cast<std::time_t>(millis / 1000);
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    std::array<char, 32> stamp{};
    const std::size_t size = std::strftime(stamp.data(), stamp.size(), "%Y-%m-%dT%H:%M:%S", &parts);
    std::array<char, 8> fraction{};
    std::snprintf(fraction.data(), fraction.size(), ".%03dZ", static_cast<int>(millis % 1000));

    std::string line =
        "{\"ts\":\"" + std::string(stamp.data(), size) + fraction.data() + "\",\"level\":\"";
    const auto level = spdlog::level::to_string_view(message.level);
    line.append(level.data(), level.size());
    line += "\",\"node\":\"" + json_escape(node_) + "\",\"msg\":\"";
    line += json_escape({message.payload.data(), message.payload.size()}) + "\"";
    if (const std::string_view trace = LogTrace::trace_id(); !trace.empty()) {
      line += ",\"trace_id\":\"" + json_escape(trace) + "\",\"span_id\":\"" +
              json_escape(LogTrace::span_id()) + "\"";
    }
    line += "}\n";
    out.append(line.data(), line.data() + line.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>(node_);
  }

 private:
  std::string node_;
};

// At the end of a line of text: the ids of the trace, where there is one.
class TraceFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg&, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string_view trace = LogTrace::trace_id();
    if (trace.empty()) return;
    const auto add = [&](std::string_view text) {
      out.append(text.data(), text.data() + text.size());
    };
    add(" trace_id=");
    add(trace);
    add(" span_id=");
    add(LogTrace::span_id());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<TraceFlag>();
  }
};

}  // namespace

std::string json_escape(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 8);
  while (!text.empty()) {
    const char c = text.front();
    const std::size_t length = utf8_sequence(text);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      text.remove_prefix(1);
      continue;
    }
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> code{};
      std::snprintf(code.data(), code.size(), "\\u%04x", static_cast<unsigned>(c));
      out += code.data();
    } else {
      out.append(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
  return out;
}

void configure_logging(std::string_view level, LogFormat format, const std::string& node) {
  const std::string name(level);
  const auto value = spdlog::level::from_str(name);
  if (value == spdlog::level::off && name != "off") {
    throw std::invalid_argument(
        "log level '" + name + "' is not one of trace, debug, info, warning, error, critical, off");
  }
  auto logger =
      std::make_shared<spdlog::logger>("node", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  if (format == LogFormat::kJson) {
    logger->set_formatter(std::make_unique<JsonFormatter>(node));
  } else {
    auto text = std::make_unique<spdlog::pattern_formatter>();
    text->add_flag<TraceFlag>('*').set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v%*");
    logger->set_formatter(std::move(text));
  }
  logger->set_level(value);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace base
