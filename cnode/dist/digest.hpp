// The proof of knowing the cookie: MD5 of the cookie followed by the challenge in decimal.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace dist {

using Digest = std::array<std::uint8_t, 16>;

// MD5 comes from a library context of our own, so a system configuration without it (FIPS) does not
// matter. Throws std::runtime_error when OpenSSL has no MD5 at all.
Digest digest(std::string_view cookie, std::uint32_t challenge);

// Takes the same time wherever the first difference is.
bool constant_time_equal(std::span<const std::uint8_t> left, std::span<const std::uint8_t> right);

}  // namespace dist
