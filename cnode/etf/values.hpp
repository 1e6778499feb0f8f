// Pid, Ref and their views: identifiers as plain values.
//
// A view points into the bytes it was read from; a value owns its node name. `raw` is the
// identifier exactly as it stood on the wire, so that it can be sent back byte for byte.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "cnode/etf/tags.hpp"

namespace etf {

using Bytes = std::span<const std::uint8_t>;

struct Pid {
  std::string node;
  std::uint32_t id = 0;
  std::uint32_t serial = 0;
  std::uint32_t creation = 0;
  auto operator<=>(const Pid&) const = default;
};

struct Ref {
  std::string node;
  std::uint32_t creation = 0;
  std::uint8_t count = 0;
  std::array<std::uint32_t, kMaxReferenceWords> words{};
  auto operator<=>(const Ref&) const = default;
};

// An atom's text: UTF-8, or Latin-1 where an old encoder wrote it so.
struct AtomView {
  std::string_view text;
  bool latin1 = false;

  bool operator==(std::string_view other) const { return text == other; }
  std::string utf8() const;
};

struct PidView {
  AtomView node;
  std::uint32_t id = 0;
  std::uint32_t serial = 0;
  std::uint32_t creation = 0;
  Bytes raw;

  Pid value() const { return {node.utf8(), id, serial, creation}; }
};

struct RefView {
  AtomView node;
  std::uint32_t creation = 0;
  std::uint8_t count = 0;
  std::array<std::uint32_t, kMaxReferenceWords> words{};
  Bytes raw;

  Ref value() const { return {node.utf8(), creation, count, words}; }
};

}  // namespace etf

template <>
struct std::hash<etf::Pid> {
  std::size_t operator()(const etf::Pid& pid) const noexcept {
    const std::uint64_t number = (std::uint64_t{pid.serial} << 32) | pid.id;
    return std::hash<std::string>{}(pid.node) ^ (number * 0x9E3779B97F4A7C15u) ^ pid.creation;
  }
};

template <>
struct std::hash<etf::Ref> {
  std::size_t operator()(const etf::Ref& ref) const noexcept {
    std::uint64_t mix = std::hash<std::string>{}(ref.node) ^ ref.creation;
    for (std::size_t i = 0; i < ref.count; ++i) mix = (mix ^ ref.words[i]) * 0x9E3779B97F4A7C15u;
    return static_cast<std::size_t>(mix ^ (mix >> 29));
  }
};
