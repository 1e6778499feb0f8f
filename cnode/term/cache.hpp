// TextCache: short texts of the wire to the Python objects made of them, so that the atom `ok` or
// the key <<"id">> becomes an object once and not a million times.
//
// Two places per hash and no list to walk: a text that finds both taken replaces the older one.
// Bounded by its construction, and a peer that invents names only makes it miss.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

#include "cnode/py/ref.hpp"

namespace term {

class TextCache {
 public:
  static constexpr std::size_t kLongest = 51;  // longer texts are not kept

  TextCache();  // std::bad_alloc
  ~TextCache() { clear(); }
  TextCache(const TextCache&) = delete;
  TextCache& operator=(const TextCache&) = delete;

  // The object kept for `text` (borrowed), or null. `text` is at most kLongest bytes.
  PyObject* find(std::string_view text) const {
    const std::uint32_t hash = hash_of(text);
    const Entry* pair = &entries_[hash & (kEntries - 2)];
    if (pair[0].holds(hash, text)) return pair[0].object;
    if (pair[1].holds(hash, text)) return pair[1].object;
    return nullptr;
  }

  void keep(std::string_view text, PyObject* object);  // takes a reference of its own
  void clear();

 private:
  static constexpr std::size_t kEntries = 4096;

  struct Entry {
    PyObject* object;  // owned; null where nothing is kept
    std::uint32_t hash;
    std::uint8_t size;
    char text[kLongest];

    bool holds(std::uint32_t wanted, std::string_view name) const {
      return hash == wanted && size == name.size() && object != nullptr &&
             std::memcmp(text, name.data(), name.size()) == 0;
    }
  };

  struct Free {
    void operator()(Entry* entries) const;
  };

  // Mixes the first and the last eight bytes with the length (all of them up to 16 bytes), then
  // what is between.
  static std::uint32_t hash_of(std::string_view text) {
    const char* at = text.data();
    const std::size_t size = text.size();
    std::uint64_t mix = size;
    if (size >= 8) {
      for (std::size_t i = 0; i + 8 < size; i += 8) mix = (mix ^ word(at + i)) * kOdd;
      mix = (mix ^ word(at + size - 8)) * kOdd;
    } else {
      std::uint64_t bytes = 0;
      for (std::size_t i = 0; i < size; ++i)
        bytes = (bytes << 8) | static_cast<std::uint8_t>(at[i]);
      mix = (mix ^ bytes) * kOdd;
    }
    return static_cast<std::uint32_t>(mix >> 32) ^ static_cast<std::uint32_t>(mix >> 20);
  }
  static std::uint64_t word(const char* at) {
    std::uint64_t value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  static constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15u;

  std::unique_ptr<Entry[], Free> entries_;
};

}  // namespace term
