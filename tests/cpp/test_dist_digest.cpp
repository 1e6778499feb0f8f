#include <string>

#include "cnode/dist/digest.hpp"
#include "tests/cpp/catch.hpp"

namespace {

std::string hex(const dist::Digest& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const std::uint8_t byte : digest) {
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

}  // namespace

TEST_CASE("a digest is the MD5 of the cookie and the challenge in decimal", "[dist]") {
  // printf 'secret0' | md5sum, and so on.
  CHECK(hex(dist::digest("secret", 0)) == "175ec77a7f63082590987d0d8b051aff");
  CHECK(hex(dist::digest("secret", 4294967295u)) == "5dfd181e69aa587cc812eb333e6536b6");
  CHECK(hex(dist::digest("", 42)) == "a1d0c6e83f027327d8461063f4ac58a6");
}

TEST_CASE("a digest equals itself and nothing that differs in one bit or in size", "[dist]") {
  const dist::Digest digest = dist::digest("secret", 7);
  CHECK(dist::constant_time_equal(digest, dist::digest("secret", 7)));
  for (std::size_t i = 0; i < digest.size(); ++i) {
    dist::Digest other = digest;
    other[i] ^= 1;
    CHECK_FALSE(dist::constant_time_equal(digest, other));
  }
  CHECK_FALSE(dist::constant_time_equal(digest, std::span(digest).first(15)));
  CHECK_FALSE(dist::constant_time_equal({}, digest));
}
