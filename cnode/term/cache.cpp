#include "cnode/term/cache.hpp"

#include <cstdlib>
#include <new>

namespace term {

void TextCache::Free::operator()(Entry* entries) const { std::free(entries); }

// Zeroed pages that are only touched when used: a cache nobody fills costs no memory.
TextCache::TextCache() : entries_(static_cast<Entry*>(std::calloc(kEntries, sizeof(Entry)))) {
  if (!entries_) throw std::bad_alloc();
}

void TextCache::keep(std::string_view text, PyObject* object) {
  if (text.size() > kLongest) return;
  const std::uint64_t word = word_of(text);
  Entry* pair = &entries_[place_of(word, text.size())];
  PyObject* dropped = pair[1].object;
  pair[1] = pair[0];
  Py_INCREF(object);
  pair[0].object = object;
  pair[0].word = word;
  pair[0].size = static_cast<std::uint8_t>(text.size());
  std::memcpy(pair[0].text, text.data(), text.size());
  Py_XDECREF(dropped);
}

void TextCache::clear() {
  for (std::size_t i = 0; i < kEntries; ++i) {
    if (entries_[i].object != nullptr) Py_CLEAR(entries_[i].object);
  }
}

}  // namespace term
