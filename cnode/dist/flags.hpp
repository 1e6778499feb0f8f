// Capability flags of the handshake: what each side can do. The intersection of both sets is what a
// link may use.
//
// The numbers are those of the distribution protocol. Documentation trap: MANDATORY_25_DIGEST is
// bit 26 on the wire, although the protocol's page says 36.
#pragma once

#include <cstdint>
#include <string>

namespace dist {

enum Flag : std::uint64_t {
  kPublished = 0x1,  // visible: the peer would expect a `global` of us
  kAtomCache = 0x2,
  kExtendedReferences = 0x4,
  kDistMonitor = 0x8,
  kFunTags = 0x10,
  kDistMonitorName = 0x20,  // without it a BEAM sends no monitors at all
  kHiddenAtomCache = 0x40,
  kNewFunTags = 0x80,
  kExtendedPidsPorts = 0x100,
  kExportPtrTag = 0x200,
  kBitBinaries = 0x400,
  kNewFloats = 0x800,
  kUnicodeIo = 0x1000,
  kDistHdrAtomCache = 0x2000,
  kSmallAtomTags = 0x4000,
  kUtf8Atoms = 0x10000,
  kMapTag = 0x20000,
  kBigCreation = 0x40000,
  kSendSender = 0x80000,
  kBigSeqtraceLabels = 0x100000,
  kExitPayload = 0x400000,
  kFragments = 0x800000,
  kHandshake23 = 0x1000000,
  kUnlinkId = 0x2000000,
  kMandatory25Digest = 0x4000000,  // stands for every flag in kMandatory25
  kSpawn = std::uint64_t{1} << 32,
  kNameMe = std::uint64_t{1} << 33,  // "my name is only a host, give me one"
  kV4Nc = std::uint64_t{1} << 34,
  kAlias = std::uint64_t{1} << 35,
  kAltactSig = std::uint64_t{1} << 37,
  kNativeRecords = std::uint64_t{1} << 38,
};

// What OTP 25 demands of everybody.
inline constexpr std::uint64_t kMandatory25 =
    kExtendedReferences | kFunTags | kNewFunTags | kExtendedPidsPorts | kExportPtrTag |
    kBitBinaries | kNewFloats | kUtf8Atoms | kMapTag | kBigCreation | kHandshake23;

// What we demand: the above, and the two that OTP 26 demands as well, which every OTP 25 node
// offers.
inline constexpr std::uint64_t kMandatoryFlags = kMandatory25 | kV4Nc | kUnlinkId;

// What we offer. Not PUBLISHED (we are a hidden node), no atom cache, no native records.
inline constexpr std::uint64_t kOurFlags = kMandatoryFlags | kMandatory25Digest | kDistMonitor |
                                           kDistMonitorName | kUnicodeIo | kSmallAtomTags |
                                           kSendSender | kBigSeqtraceLabels | kExitPayload |
                                           kFragments | kSpawn | kAlias | kAltactSig;

// `flags` with MANDATORY_25_DIGEST spelled out into the flags it stands for.
constexpr std::uint64_t expand(std::uint64_t flags) {
  return (flags & kMandatory25Digest) != 0 ? flags | kMandatory25 : flags;
}

// The names of the flags we demand and `flags` lacks, as "V4_NC, UNLINK_ID"; empty when none is
// missing.
std::string missing_mandatory(std::uint64_t flags);

}  // namespace dist
