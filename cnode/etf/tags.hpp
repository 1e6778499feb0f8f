// Tags of the External Term Format, and the limits every reader obeys.
// Semantics: "External Term Format" in the Erlang/OTP ERTS documentation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace etf {

inline constexpr std::uint8_t kVersion = 131;

enum Tag : std::uint8_t {
  kNewFloat = 70,
  kBitBinary = 77,
  kCompressed = 80,
  kAtomCacheRef = 82,
  kNewPid = 88,
  kNewPort = 89,
  kNewerReference = 90,
  kSmallInteger = 97,
  kInteger = 98,
  kFloat = 99,
  kAtom = 100,
  kReference = 101,
  kPort = 102,
  kPid = 103,
  kSmallTuple = 104,
  kLargeTuple = 105,
  kNil = 106,
  kString = 107,
  kList = 108,
  kBinary = 109,
  kSmallBig = 110,
  kLargeBig = 111,
  kNewFun = 112,
  kExport = 113,
  kNewReference = 114,
  kSmallAtom = 115,
  kMap = 116,
  kAtomUtf8 = 118,
  kSmallAtomUtf8 = 119,
  kV4Port = 120,
};

inline constexpr std::size_t kMaxDepth = 1000;          // nested containers in one term
inline constexpr std::size_t kMaxAtomCharacters = 255;  // what a BEAM accepts
inline constexpr std::size_t kMaxMessage =
    256u << 20;  // bytes of one term, whole, in fragments or inflated
inline constexpr std::size_t kMaxReferenceWords = 5;

}  // namespace etf
