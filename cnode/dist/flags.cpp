#include "cnode/dist/flags.hpp"

#include <array>
#include <string_view>
#include <utility>

namespace dist {

std::string missing_mandatory(std::uint64_t flags) {
  static constexpr std::array<std::pair<Flag, std::string_view>, 13> kNames{{
      {kExtendedReferences, "EXTENDED_REFERENCES"},
      {kFunTags, "FUN_TAGS"},
      {kNewFunTags, "NEW_FUN_TAGS"},
      {kExtendedPidsPorts, "EXTENDED_PIDS_PORTS"},
      {kExportPtrTag, "EXPORT_PTR_TAG"},
      {kBitBinaries, "BIT_BINARIES"},
      {kNewFloats, "NEW_FLOATS"},
      {kUtf8Atoms, "UTF8_ATOMS"},
      {kMapTag, "MAP_TAG"},
      {kBigCreation, "BIG_CREATION"},
      {kHandshake23, "HANDSHAKE_23"},
      {kV4Nc, "V4_NC"},
      {kUnlinkId, "UNLINK_ID"},
  }};
  const std::uint64_t offered = expand(flags);
  std::string missing;
  for (const auto& [flag, name] : kNames) {
    if ((offered & flag) != 0) continue;
    if (!missing.empty()) missing += ", ";
    missing += name;
  }
  return missing;
}

}  // namespace dist
