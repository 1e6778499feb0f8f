// Random numbers from the operating system's generator, for challenges and creations.
#pragma once

#include <cstdint>

namespace base {

std::uint32_t secure_random_u32();
std::uint64_t secure_random_u64();

}  // namespace base
