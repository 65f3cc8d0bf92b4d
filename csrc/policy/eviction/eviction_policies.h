// The eviction policies by their names.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "policy/eviction/eviction_policy.h"

namespace vmm {

/// All names that a policy can be asked for by.
std::span<const std::string_view> eviction_policy_names();

/// A policy for a device that holds `capacity` bytes, and nothing yet. Raises InvalidArgument, which lists
/// the names, for one that is unknown.
std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name, Bytes capacity);

/// The same for blocks of shared prefixes: none is evicted before a held one that follows it.
std::unique_ptr<EvictionPolicy> make_leaf_first_policy(std::string_view name, Bytes capacity);

}  // namespace vmm
