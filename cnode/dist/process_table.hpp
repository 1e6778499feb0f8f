// ProcessTable: the node's processes as the rest of the cluster sees them: pids, names, who watches
// whom.
//
// Belongs to the reactor thread. It keeps the books; sending DOWN and EXIT is the node's business.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cnode/etf/values.hpp"

namespace dist {

// A process of this node: serial in the upper half, id in the lower, as in its pid. 0 is no
// process.
using ProcessId = std::uint64_t;

// A reference, told apart on the link it came by (link 0: one of ours).
struct RefKey {
  std::uint64_t link = 0;
  std::uint32_t creation = 0;
  std::array<std::uint32_t, etf::kMaxReferenceWords> words{};

  static RefKey of(std::uint64_t link, const etf::RefView& ref) {
    return {link, ref.creation, ref.words};
  }
  bool operator==(const RefKey&) const = default;
};

// A peer's process, told apart on the link to its node (link 0: one of ours).
struct PidKey {
  std::uint64_t link = 0;
  std::uint32_t id = 0;
  std::uint32_t serial = 0;
  std::uint32_t creation = 0;

  static PidKey of(std::uint64_t link, const etf::PidView& pid) {
    return {link, pid.id, pid.serial, pid.creation};
  }
  bool operator==(const PidKey&) const = default;
};

inline std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  return hash ^ (hash >> 32);
}

struct KeyHash {
  std::size_t operator()(const RefKey& key) const {
    std::uint64_t hash = mix(key.link, key.creation);
    for (const std::uint32_t word : key.words) hash = mix(hash, word);
    return static_cast<std::size_t>(hash);
  }
  std::size_t operator()(const PidKey& key) const {
    return static_cast<std::size_t>(
        mix(mix(key.link, key.creation), (std::uint64_t{key.serial} << 32) | key.id));
  }
};

// An identifier's bytes, kept.
using Raw8 = std::string;
inline Raw8 keep(etf::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline etf::Bytes view(const Raw8& raw) {
  return {reinterpret_cast<const std::uint8_t*>(raw.data()), raw.size()};
}

// Somebody who wants to hear when a process of ours ends.
struct Watcher {
  std::uint64_t link = 0;  // 0: a process of ours
  ProcessId local = 0;
  Raw8 pid;
  Raw8 ref;
  Raw8 name;  // the atom it was monitored by, for DOWN to say again; empty when by pid
};

struct Linked {
  std::uint64_t link = 0;
  ProcessId local = 0;
  Raw8 pid;
  std::uint64_t unlinking =
      0;  // the id of our UNLINK_ID not yet acknowledged: exits meanwhile do not count
};

// What a process of ours watches.
struct Monitor {
  std::uint64_t link = 0;
  ProcessId local = 0;
  Raw8 target;  // pid, or the name's atom
  Raw8 ref;
  std::string node;
};

// A map of which there are very many and most of them empty: those own no memory.
template <class Key, class Value>
class RareMap {
 public:
  using Map = std::unordered_map<Key, Value, KeyHash>;
  using iterator = typename Map::iterator;

  bool empty() const { return size() == 0; }
  std::size_t size() const { return map_ ? map_->size() : 0; }
  iterator begin() { return some().begin(); }
  iterator end() { return some().end(); }
  iterator find(const Key& key) { return some().find(key); }
  Value& operator[](const Key& key) {
    if (!map_) map_ = std::make_unique<Map>();
    return (*map_)[key];
  }
  void erase(iterator at) { map_->erase(at); }
  void erase(const Key& key) {
    if (map_) map_->erase(key);
  }
  template <class Predicate>
  void erase_if(Predicate likes) {
    if (map_) std::erase_if(*map_, likes);
  }

 private:
  Map& some() {
    static Map none;  // never anything in it
    return map_ ? *map_ : none;
  }
  std::unique_ptr<Map> map_;
};

struct Process {
  ProcessId id = 0;
  Raw8 pid;  // encoded
  std::string name;
  bool system = false;  // of the node itself: cannot be killed
  RareMap<RefKey, Watcher> watchers;
  RareMap<PidKey, Linked> links;
  RareMap<RefKey, Monitor> monitors;
};

class ProcessTable {
 public:
  // Pids carry the node's name and creation from here on.
  void set_identity(std::string node, std::uint32_t creation);

  Process& create();
  Process* find(ProcessId id);
  Process* find(std::string_view name);
  Process* find(
      const etf::PidView& pid);  // nullptr also for a pid of an earlier incarnation of this node
  std::unique_ptr<Process> remove(ProcessId id);

  bool register_name(Process& process, std::string name);  // false: taken, or the process has one
  bool unregister_name(std::string_view name);
  std::vector<std::string> names() const;
  std::size_t size() const { return processes_.size(); }

  template <class Visit>
  void for_each(Visit visit) {
    for (auto& [id, process] : processes_) visit(*process);
  }

 private:
  std::string node_;
  std::uint32_t creation_ = 0;
  std::uint32_t next_id_ = 1;
  std::uint32_t next_serial_ = 0;
  std::unordered_map<ProcessId, std::unique_ptr<Process>> processes_;
  std::unordered_map<std::string, Process*> names_;
};

}  // namespace dist
