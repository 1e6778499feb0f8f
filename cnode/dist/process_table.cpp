#include "cnode/dist/process_table.hpp"

#include "cnode/etf/writer.hpp"

namespace dist {

void ProcessTable::set_identity(std::string node, std::uint32_t creation) {
  node_ = std::move(node);
  creation_ = creation;
  for (auto& [id, process] : processes_) {
    etf::Buffer bytes;
    etf::Writer(bytes).pid(
        {node_, static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32), creation_});
    process->pid = keep(bytes.bytes());
  }
}

Process& ProcessTable::create() {
  // Ids wrap after 2^32 processes; the serial then tells old and new apart.
  const std::uint32_t id = next_id_++;
  if (next_id_ == 0) {
    next_id_ = 1;
    ++next_serial_;
  }
  auto process = std::make_unique<Process>();
  process->id = (std::uint64_t{next_serial_} << 32) | id;
  etf::Buffer bytes;
  etf::Writer(bytes).pid({node_, id, next_serial_, creation_});
  process->pid = keep(bytes.bytes());
  Process& created = *process;
  processes_.emplace(created.id, std::move(process));
  return created;
}

Process* ProcessTable::find(ProcessId id) {
  auto found = processes_.find(id);
  return found == processes_.end() ? nullptr : found->second.get();
}

Process* ProcessTable::find(std::string_view name) {
  auto found = names_.find(std::string(name));
  return found == names_.end() ? nullptr : found->second;
}

Process* ProcessTable::find(const etf::PidView& pid) {
  if (pid.creation != creation_) return nullptr;
  return find((std::uint64_t{pid.serial} << 32) | pid.id);
}

std::unique_ptr<Process> ProcessTable::remove(ProcessId id) {
  auto found = processes_.find(id);
  if (found == processes_.end()) return nullptr;
  auto process = std::move(found->second);
  processes_.erase(found);
  if (!process->name.empty()) names_.erase(process->name);
  return process;
}

bool ProcessTable::register_name(Process& process, std::string name) {
  if (name.empty() || name == "undefined" || !process.name.empty() || names_.contains(name))
    return false;
  names_.emplace(name, &process);
  process.name = std::move(name);
  return true;
}

bool ProcessTable::unregister_name(std::string_view name) {
  auto found = names_.find(std::string(name));
  if (found == names_.end()) return false;
  found->second->name.clear();
  names_.erase(found);
  return true;
}

std::vector<std::string> ProcessTable::names() const {
  std::vector<std::string> names;
  for (const auto& [name, process] : names_) names.push_back(name);
  return names;
}

}  // namespace dist
