// Catch2 under either of its major versions: Debian 12 has 2, later suites have 3.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>

using Catch::Approx;
using Catch::Matchers::ContainsSubstring;
namespace Matchers = Catch::Matchers;
#else
#include <catch2/catch.hpp>

namespace Matchers = Catch::Matchers;
inline auto ContainsSubstring(const std::string& text) { return Catch::Contains(text); }
#endif
