#include "cnode/base/result.hpp"

namespace base {

std::string_view to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::kTruncated:
      return "truncated";
    case ErrorCode::kUnknownTag:
      return "unknown tag";
    case ErrorCode::kWrongType:
      return "wrong type";
    case ErrorCode::kTooLarge:
      return "too large";
    case ErrorCode::kTooDeep:
      return "too deep";
    case ErrorCode::kMalformed:
      return "malformed";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kRefused:
      return "refused";
    case ErrorCode::kTimeout:
      return "timeout";
    case ErrorCode::kClosed:
      return "closed";
  }
  return "unknown";
}

std::string Error::message() const {
  std::string text(to_string(code));
  text += " at byte " + std::to_string(offset);
  if (!detail.empty()) text += ": " + detail;
  return text;
}

}  // namespace base
