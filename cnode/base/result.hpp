// Result<T>: a value, or why there is none.
//
// Used wherever a peer can cause the failure: its bytes are wrong, too long, too deep. Such a
// failure is data, not an exception; the caller decides whether it costs a reply or the connection.
#pragma once

#include <cassert>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace base {

enum class ErrorCode {
  kTruncated,   // the bytes end before the value does
  kUnknownTag,  // a tag or opcode nobody defined
  kWrongType,   // a well-formed value of another type than the protocol asks for
  kTooLarge,    // over a size limit
  kTooDeep,     // over the nesting limit
  kMalformed,   // well-delimited, yet not a legal value (bad UTF-8 in an atom, an arity that cannot
                // fit)
  kUnsupported,  // legal, but not understood here
  kRefused,      // the other side said no (cookie, name, flags)
  kTimeout,
  kClosed,
};

inline constexpr std::size_t kErrorCodes = 10;

std::string_view to_string(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kMalformed;
  std::size_t offset = 0;  // where in the bytes, when there are bytes
  std::string detail;      // for the log; may be empty

  std::string message() const;
};

template <class T>
class [[nodiscard]] Result {
 public:
  // NOLINTBEGIN(google-explicit-constructor): a function returns its value, or its error, as it is
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  // NOLINTEND(google-explicit-constructor)

  explicit operator bool() const { return state_.index() == 0; }
  bool ok() const { return state_.index() == 0; }

  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(value()); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const {
    assert(!ok() && "a result has an error only when it has no value");
    return *std::get_if<1>(&state_);
  }

 private:
  T& value() {
    assert(ok() && "the caller checks before it takes the value");
    return *std::get_if<0>(&state_);
  }
  const T& value() const {
    assert(ok() && "the caller checks before it takes the value");
    return *std::get_if<0>(&state_);
  }

  std::variant<T, Error> state_;
};

struct Done {};
using Status = Result<Done>;

}  // namespace base
