// Every exception of the project; the bindings turn each into the Python class of the same name.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/types.h"

namespace vmm {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A caller's mistake: the message names the argument and what was expected. Nothing has changed.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// What would have to be recorded on a stream is not to become part of the graph that it is captured into.
class StreamCapturing : public InvalidArgument {
 public:
  using InvalidArgument::InvalidArgument;
};

/// Use of something that was closed. Nothing has changed.
class Closed : public Error {
 public:
  using Error::Error;
};

/// Use in a forked child of what the parent owns: a child has neither the mappings nor the pager.
class Forked : public Error {
 public:
  using Error::Error;
};

/// The platform refused a call: the call, its arguments, and the system's own words.
class DriverError : public Error {
 public:
  using Error::Error;
};

/// The platform has no memory left, although the budget allowed the call.
class DriverOutOfMemory : public DriverError {
 public:
  using DriverError::DriverError;
};

/// The process may not have more memory mappings (Linux: vm.max_map_count).
class MappingLimit : public DriverError {
 public:
  using DriverError::DriverError;
};

/// Nothing works on the device any more, nor goes on there, until the process is restarted.
class DeviceLost : public DriverError {
 public:
  using DriverError::DriverError;
};

/// A table contradicts itself, or was asked for a forbidden transition: a bug of ours, never of the caller.
class InvariantViolation : public Error {
 public:
  using Error::Error;
};

/// What a tenant has, in bytes.
struct TenantFigures {
  std::string name;  // empty: of what belongs to no tenant
  Bytes charged;     // kept, or in use by work that is not over
  Bytes kept;
  Bytes held;  // all physical memory that it has, also what others may take
  Bytes guaranteed;
  Bytes limit;
  Bytes room;  // how much more it may be charged now
};

/// What an OutOfPages is about, in bytes.
struct MemoryFigures {
  Bytes asked;
  Bytes free;         // budget not yet taken, and free pages of the pool
  Bytes reclaimable;  // mapped, but needed by nobody
  Bytes budget;
  bool of_gpu = false;       // what is lacking is a GPU's memory
  Bytes owed{};              // to a budget that was lowered below what is taken of it
  std::string refused = {};  // what the device said, where it gave less than the budget allows
  std::optional<TenantFigures> tenant = {};  // who asked, where the pool has tenants
};

inline std::string described(const TenantFigures& tenant) {
  constexpr std::uint64_t no_limit = std::uint64_t{1} << 62;
  return (tenant.name.empty() ? "; what belongs to no tenant is" : "; tenant '" + tenant.name + "' is") +
         (" charged " + std::to_string(tenant.charged.count)) + ", guaranteed " +
         std::to_string(tenant.guaranteed.count) +
         (tenant.limit.count < no_limit ? ", limited to " + std::to_string(tenant.limit.count) : "") +
         " and may have " + std::to_string(tenant.room.count) + " more";
}

/// The budget, or the device behind it, cannot give the pages asked for. The call had no effect.
class OutOfPages : public Error {
 public:
  OutOfPages(const MemoryFigures& figures, const std::string& why)
      : Error("out of pages: asked for " + std::to_string(figures.asked.count) + " bytes, free " +
              std::to_string(figures.free.count) + ", reclaimable " +
              std::to_string(figures.reclaimable.count) + ", budget " + std::to_string(figures.budget.count) +
              (figures.owed.count == 0
                   ? ""
                   : ", owed " + std::to_string(figures.owed.count) + " to a budget that was lowered") +
              (figures.tenant ? described(*figures.tenant) : "") + (why.empty() ? "" : " (" + why + ")") +
              (figures.refused.empty()
                   ? ""
                   : " (the device gave less than the budget allows: " + figures.refused + ")")),
        figures_(figures) {}
  OutOfPages(const OutOfPages& error, std::vector<std::uint32_t> fitting) : OutOfPages(error) {
    fitting_ = std::move(fitting);
  }

  const MemoryFigures& figures() const noexcept { return figures_; }
  /// Of a step: the slots, in the order given, that could have had what they need.
  const std::vector<std::uint32_t>& fitting() const noexcept { return fitting_; }

 private:
  MemoryFigures figures_;
  std::vector<std::uint32_t> fitting_;
};

}  // namespace vmm
