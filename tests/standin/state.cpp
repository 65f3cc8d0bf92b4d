#include "state.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <cstring>

namespace standin {
namespace {

std::atomic<bool> is_child{false};
constexpr std::array names{
    "capacity",         "granularity",   "version", "low_alignment",  "devices",
    "site_depth",       "queue_limit",   "seed",    "missing_result", "fill",
    "undefined_counts", "reuse_handles", "rdma",    "posix_fd",       "compute_capability",
    "peer_granularity", "no_peer",       "others"};

void read_environment(Settings& settings) {
  for (const char* name : names) {
    std::string variable = std::string("VMM_STANDIN_") + name;
    std::ranges::transform(variable, variable.begin(), [](unsigned char c) { return std::toupper(c); });
    if (const char* value = std::getenv(variable.c_str()))
      settings.set(name, std::strtoll(value, nullptr, 0));
  }
  if (const char* value = std::getenv("VMM_STANDIN_UNDEFINED"))
    settings.undefined_counts = std::strcmp(value, "count") == 0;
}

// The library's first act: a fork before any call must be seen too.
[[gnu::constructor]] void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { is_child.store(true, std::memory_order_relaxed); });
}

}  // namespace

bool Settings::set(const std::string& name, std::int64_t value) {
  const auto size = static_cast<Size>(value);
  if (name == "capacity")
    capacity = size;
  else if (name == "others")
    others = size;
  else if (name == "granularity")
    granularity = size;
  else if (name == "version")
    version = static_cast<int>(value);
  else if (name == "low_alignment")
    low_alignment = value != 0;
  else if (name == "devices")
    devices = std::clamp(static_cast<int>(value), 0, Memory::devices);
  else if (name == "site_depth")
    site_depth = static_cast<int>(value);
  else if (name == "queue_limit")
    queue_limit = size;
  else if (name == "seed")
    seed = size;
  else if (name == "missing_result")
    missing_result = static_cast<CUresult>(value);
  else if (name == "fill")
    fill = value != 0;
  else if (name == "hang")
    hang = value != 0;
  else if (name == "reuse_handles")
    reuse_handles = value != 0;
  else if (name == "no_peer" && value < 0)
    strangers.clear();
  else if (name == "no_peer")
    strangers.insert({static_cast<int>(value) / Memory::devices, static_cast<int>(value) % Memory::devices});
  else if (name == "peer_granularity")
    peer_granularity = size;
  else if (name == "rdma")
    rdma = static_cast<int>(value);
  else if (name == "posix_fd")
    posix_fd = value != 0;
  else if (name == "compute_capability")
    compute_capability = static_cast<int>(value);
  else if (name == "report_fd")
    report_fd = static_cast<int>(value);
  else if (name == "undefined_counts")
    undefined_counts = value != 0;
  else
    return false;
  return true;
}

State::State() {
  read_environment(settings);
  seed(settings.seed);
  const auto open = [this](Context& context, int device) {
    context.device = device;
    context.legacy = std::make_shared<Stream>();
    context.legacy->id = streams.new_stream_id();
    context.legacy->context = &context;
    context.legacy->legacy = true;
  };
  for (int device = 0; device < Memory::devices; ++device) {
    const auto index = static_cast<std::size_t>(device);
    open(contexts[index], device);
    open(green_contexts[index], device);
    green_contexts[index].primary = &contexts[index];
  }
}

void State::seed(std::uint64_t value) {
  settings.seed = value;
  random.seed(value);
}

State& state() {
  static auto* all = new State;
  return *all;
}

bool forked() { return is_child.load(std::memory_order_relaxed); }

bool& in_host_code() {
  thread_local bool value = false;
  return value;
}

bool& per_thread_default() {
  thread_local bool value = false;
  return value;
}

ContextStack& context_stack() {
  thread_local ContextStack stack;
  return stack;
}

}  // namespace standin
