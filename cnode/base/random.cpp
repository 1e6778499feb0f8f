#include "cnode/base/random.hpp"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>

namespace base {

std::uint64_t secure_random_u64() {
  std::uint64_t value = 0;
  // A request of eight bytes is never cut short; only a signal before the pool is ready can
  // interrupt it.
  while (getrandom(&value, sizeof value, 0) != static_cast<ssize_t>(sizeof value)) {
    if (errno != EINTR) std::abort();
  }
  return value;
}

std::uint32_t secure_random_u32() { return static_cast<std::uint32_t>(secure_random_u64() >> 32); }

}  // namespace base
