// The golden terms of tests/data/terms.tsv.
#pragma once

#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cnode/etf/values.hpp"

struct Golden {
  std::string name;
  std::vector<std::uint8_t> bytes;  // with the version in front

  etf::Bytes term() const { return etf::Bytes(bytes).subspan(1); }
  bool is_compressed() const { return bytes[1] == etf::kCompressed; }
};

inline std::vector<Golden> golden_terms() {
  std::ifstream file(SIDEWINDER_SOURCE_DIR "/tests/data/terms.tsv");
  if (!file) throw std::runtime_error("tests/data/terms.tsv is missing");
  std::vector<Golden> terms;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    const std::size_t first = line.find('\t');
    const std::size_t second = line.find('\t', first + 1);
    Golden golden{line.substr(0, first), {}};
    for (std::size_t i = first + 1; i + 1 < second; i += 2) {
      golden.bytes.push_back(static_cast<std::uint8_t>(std::stoi(line.substr(i, 2), nullptr, 16)));
    }
    terms.push_back(std::move(golden));
  }
  return terms;
}
