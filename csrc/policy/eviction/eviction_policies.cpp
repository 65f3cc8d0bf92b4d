#include "policy/eviction/eviction_policies.h"

#include <array>
#include <string>

#include "base/error.h"
#include "policy/eviction/leaf_first.h"
#include "policy/eviction/lfu.h"
#include "policy/eviction/lru.h"
#include "policy/eviction/multi_queue.h"
#include "policy/eviction/predictive.h"
#include "policy/eviction/priority.h"
#include "policy/eviction/s3_fifo.h"
#include "policy/eviction/two_queue.h"

namespace vmm {
namespace {

constexpr std::array<std::string_view, 7> policy_names{"lru",     "lfu",      "2q",        "mq",
                                                       "s3-fifo", "priority", "predictive"};

}  // namespace

std::span<const std::string_view> eviction_policy_names() { return policy_names; }

std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name, Bytes capacity) {
  if (name == "lru") return std::make_unique<Lru>();
  if (name == "lfu") return std::make_unique<Lfu>();
  if (name == "2q") return std::make_unique<TwoQueue>(capacity);
  if (name == "mq") return std::make_unique<MultiQueue>(capacity);
  if (name == "s3-fifo") return std::make_unique<S3Fifo>(capacity);
  if (name == "priority") return std::make_unique<Priority>(capacity);
  if (name == "predictive") return std::make_unique<Predictive>();
  std::string known;
  for (std::string_view each : policy_names) known += (known.empty() ? "" : ", ") + std::string(each);
  throw InvalidArgument("policy is '" + std::string(name) + "'; expected one of: " + known);
}

std::unique_ptr<EvictionPolicy> make_leaf_first_policy(std::string_view name, Bytes capacity) {
  std::unique_ptr<EvictionPolicy> policy = make_eviction_policy(name, capacity);
  if (name == "predictive") return policy;  // it is by itself
  return std::make_unique<LeafFirst>(std::move(policy));
}

}  // namespace vmm
