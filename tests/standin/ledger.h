// What exists: reservations, allocation handles, mappings, plain allocations and pinned host memory. The
// ledger knows and answers; the rules of the calls are in api_*.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "cuda_abi.h"
#include "memory.h"
#include "names.h"
#include "trace.h"

namespace standin {

/// Memory itself, on a file of its own where other processes may have it. It returns to its device when no
/// handle refers to it and nothing maps it.
struct Physical {
  std::uint64_t id = 0;
  int device = 0;  // Memory::host for pages in host memory
  Size offset = 0;
  Size size = 0;
  CUmemAllocationProp properties{};
  int shared_file = -1;
  bool imported = false;  // another process's: it takes nothing of ours
  long references = 0;
  long mappings = 0;

  Physical() = default;
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;
  ~Physical();
};
/// The caller's name for it: of the create, or of one import. It lives while it is referenced or mapped.
struct Handle {
  CUmemGenericAllocationHandle value = 0;
  std::shared_ptr<Physical> physical;
  long references = 0;
  long mappings = 0;
  Trace from;
};
struct Reservation {
  Address start = 0;
  Size size = 0;
  Trace from;
};
struct Mapping {
  Address start = 0;
  Size size = 0;
  std::shared_ptr<Handle> handle;
  std::map<int, int> access;  // device (or Memory::host) -> CUmemAccess_flags
  Trace from;
};
/// Of cuMemAlloc.
struct Allocation {
  Address start = 0;
  Size size = 0;      // as asked for
  Size reserved = 0;  // with what follows it, which faults
  Size committed = 0;
  Size offset = 0;
  int device = 0;
  Trace from;
};
/// Of cuMemHostAlloc and cuMemHostRegister.
struct Pinned {
  Address start = 0;
  Size size = 0;
  bool registered = false;
  Trace from;
};

/// Bytes by what they are and not by where they are seen: aliases of one page are one span.
struct Span {
  Size start = 0;
  Size size = 0;
};
enum class Place { device, pinned, pageable };
struct Located {
  CUresult result = CUDA_SUCCESS;
  Place place = Place::pageable;
  std::vector<Span> spans;
};

template <class Thing>
using ByStart = std::map<Address, Thing>;

/// The entry that contains the address, or null.
template <class Thing>
Thing* find_containing(ByStart<Thing>& things, Address address) {
  auto next = things.upper_bound(address);
  if (next == things.begin()) return nullptr;
  Thing& before = std::prev(next)->second;
  return address - before.start < before.size ? &before : nullptr;
}

struct Ledger {
  ByStart<Reservation> reservations;
  ByStart<Mapping> mappings;
  ByStart<Allocation> allocations;
  ByStart<Pinned> pinned;
  std::map<CUmemGenericAllocationHandle, std::shared_ptr<Handle>> handles;
  std::map<std::uint64_t, std::weak_ptr<Physical>> shared;  // by the file's inode
  std::map<int, Size> used;                                 // by device
  std::uint64_t next_physical = 1;
  Names handle_names{0x7A0000000001, 1};

  Reservation* reservation_of(Address start, Size size);
  bool anything_mapped(Address start, Size size) const;
  /// The mappings that fill [start, start + size) exactly, or none.
  std::vector<Mapping*> whole_mappings(Address start, Size size);
  /// What work of `device` on the range touches. INVALID_VALUE where it may not.
  Located locate(Address start, Size size, int device, bool write);
};

}  // namespace standin
