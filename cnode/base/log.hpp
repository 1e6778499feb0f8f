// Logging: one spdlog logger for the node, as text or as JSON lines, on standard error.
//
// Libraries log through spdlog's default logger; only main decides where lines go. JSON lines are
// escaped here, since spdlog's own pattern does not escape quotes, control characters or line
// breaks.
#pragma once

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

namespace base {

enum class LogFormat { kText, kJson };

// Sets the default logger up. Throws std::invalid_argument for a level that does not exist.
void configure_logging(std::string_view level, LogFormat format, const std::string& node);

// `text` as the inside of a JSON string: quotes, backslashes and control characters escaped, bytes
// that are not UTF-8 replaced by U+FFFD.
std::string json_escape(std::string_view text);

}  // namespace base
