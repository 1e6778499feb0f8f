// What both baseline nodes are told: their name, and the file with the cookie. epmd is found by
// ERL_EPMD_PORT.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

namespace bench {

struct Options {
  std::string name;
  std::string cookie;
  std::uint16_t epmd_port = 4369;
};

inline Options read_options(int argc, char** argv) {
  if (argc != 3) throw std::runtime_error("usage: PROGRAM NAME@HOST COOKIE-FILE");
  Options options;
  options.name = argv[1];
  std::ifstream(argv[2]) >> options.cookie;
  if (options.cookie.empty()) throw std::runtime_error("no cookie in " + std::string(argv[2]));
  if (const char* port = std::getenv("ERL_EPMD_PORT"); port != nullptr) {
    options.epmd_port = static_cast<std::uint16_t>(std::stoul(port));
  }
  return options;
}

}  // namespace bench
