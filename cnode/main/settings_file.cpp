#include "cnode/main/settings_file.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#define TOML_HEADER_ONLY 1
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

namespace node_main {
namespace {

constexpr std::size_t kLargest = 1 << 20;  // of a file of settings

using FileValues = std::map<std::string, FileValue>;

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file) {
    text.resize(kLargest + 1);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(file.gcount()));
  }
  if (!file.eof()) {
    const char* why = text.size() > kLargest ? "' is larger than 1 MiB" : "'";
    throw ConfigError("config: cannot read '" + path + why);
  }
  return text;
}

void put(FileValues& found, std::string name, FileValue value) {
  std::replace(name.begin(), name.end(), '_', '-');
  const std::string origin = value.origin;
  if (!found.emplace(name, std::move(value)).second)
    throw ConfigError("config: " + origin + ": " + name + " is there twice");
}

[[noreturn]] void wrong_kind(const std::string& origin, std::string_view name) {
  throw ConfigError("config: " + origin + ": " + std::string(name) +
                    " is no text, number, boolean or list of these");
}

std::string scalar(const toml::node& node, const std::string& origin, std::string_view name) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* boolean = node.as_boolean()) return boolean->get() ? "on" : "off";
  wrong_kind(origin, name);
}

FileValues read_toml(const std::string& path) {
  toml::table table;
  try {
    table = toml::parse(text_of(path), path);
  } catch (const toml::parse_error& error) {
    throw ConfigError("config: " + path + ":" + std::to_string(error.source().begin.line) + ": " +
                      std::string(error.description()));
  }
  FileValues found;
  for (const auto& [key, node] : table) {
    FileValue value;
    value.origin = path + ":" + std::to_string(key.source().begin.line);
    if (const auto* list = node.as_array()) {
      value.is_list = true;
      for (const auto& each : *list) value.values.push_back(scalar(each, value.origin, key.str()));
    } else {
      value.values.push_back(scalar(node, value.origin, key.str()));
    }
    put(found, std::string(key.str()), std::move(value));
  }
  return found;
}

std::string scalar(const nlohmann::json& node, const std::string& origin, std::string_view name) {
  if (node.is_string()) return node.get<std::string>();
  if (node.is_number_integer()) return node.dump();
  if (node.is_boolean()) return node.get<bool>() ? "on" : "off";
  wrong_kind(origin, name);
}

FileValues read_json(const std::string& path) {
  nlohmann::json json;
  std::set<std::string> keys;  // of the outermost object: the library keeps the last of two alike
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1 &&
        !keys.insert(parsed.get<std::string>()).second)
      throw ConfigError("config: " + path + ": " + parsed.get<std::string>() + " is there twice");
    return true;
  };
  try {
    json = nlohmann::json::parse(text_of(path), check);
  } catch (const nlohmann::json::exception& error) {
    throw ConfigError("config: " + path + ": " + error.what());
  }
  if (!json.is_object()) throw ConfigError("config: " + path + ": no object");
  FileValues found;
  for (const auto& [key, node] : json.items()) {
    FileValue value{{}, node.is_array(), path};
    if (value.is_list) {
      for (const auto& each : node) value.values.push_back(scalar(each, path, key));
    } else {
      value.values.push_back(scalar(node, path, key));
    }
    put(found, key, std::move(value));
  }
  return found;
}

}  // namespace

FileValues read_settings_file(const std::string& path) {
  constexpr std::string_view kJson = ".json";
  const bool json = path.size() > kJson.size() &&
                    path.compare(path.size() - kJson.size(), kJson.size(), kJson) == 0;
  return json ? read_json(path) : read_toml(path);
}

}  // namespace node_main
