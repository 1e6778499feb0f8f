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
  static constexpr std::size_t kLongest = 47;  // longer texts are not kept

  TextCache();  // std::bad_alloc
  ~TextCache() { clear(); }
  TextCache(const TextCache&) = delete;
  TextCache& operator=(const TextCache&) = delete;

  // The object kept for `text` (borrowed), or null. `text` is at most kLongest bytes.
  PyObject* find(std::string_view text) const {
    const std::uint64_t word = word_of(text);
    const Entry* pair = &entries_[place_of(word, text.size())];
    if (pair[0].holds(word, text)) return pair[0].object;
    if (pair[1].holds(word, text)) return pair[1].object;
    return nullptr;
  }

  void keep(std::string_view text, PyObject* object);  // takes a reference of its own
  void clear();

 private:
  static constexpr std::size_t kEntries = 4096;  // 12 bits: place_of

  struct Entry {
    PyObject* object;    // owned; null where nothing is kept
    std::uint64_t word;  // of the text
    std::uint8_t size;
    char text[kLongest];

    bool holds(std::uint64_t wanted, std::string_view name) const {
      return word == wanted && size == name.size() && object != nullptr &&
             (size < 8 || same(text, name.data(), size));
    }
  };

  struct Free {
    void operator()(Entry* entries) const;
  };

  // A text as one number: itself when it is shorter than eight bytes, else a hash of all its bytes,
  // eight at a time (the last eight may overlap those before).
  static std::uint64_t word_of(std::string_view text) {
    const char* at = text.data();
    const std::size_t size = text.size();
    if (size < 8) return short_text(at, size);
    std::uint64_t mix = size;
    for (std::size_t i = 0; i + 8 < size; i += 8) mix = (mix ^ load<std::uint64_t>(at + i)) * kOdd;
    return (mix ^ load<std::uint64_t>(at + size - 8)) * kOdd;
  }
  // The first of the two places for it.
  static std::size_t place_of(std::uint64_t word, std::size_t size) {
    return static_cast<std::size_t>(((word ^ size) * kOdd) >> 52) & (kEntries - 2);
  }
  static bool same(const char* left, const char* right, std::size_t size) {
    if (size < 8) return short_text(left, size) == short_text(right, size);
    for (std::size_t i = 0; i + 8 < size; i += 8) {
      if (load<std::uint64_t>(left + i) != load<std::uint64_t>(right + i)) return false;
    }
    return load<std::uint64_t>(left + size - 8) == load<std::uint64_t>(right + size - 8);
  }
  // Up to seven bytes as one number, each at a place of its own.
  static std::uint64_t short_text(const char* at, std::size_t size) {
    if (size >= 4) {
      return (std::uint64_t{load<std::uint32_t>(at)} << 32) | load<std::uint32_t>(at + size - 4);
    }
    if (size == 0) return 0;
    return (std::uint64_t{load<std::uint8_t>(at)} << 16) |
           (std::uint64_t{load<std::uint8_t>(at + size / 2)} << 8) |
           load<std::uint8_t>(at + size - 1);
  }
  template <class Number>
  static Number load(const char* at) {
    Number value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  static constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15u;

  std::unique_ptr<Entry[], Free> entries_;
};

}  // namespace term
