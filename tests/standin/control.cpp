// standin.h.
#include <cstring>
#include <memory>
#include <set>

#include "standin.h"
#include "state.h"

using namespace standin;

#define CONTROL extern "C" __attribute__((visibility("default")))

namespace {

std::size_t give(const std::string& text, char* buffer, std::size_t size) {
  if (buffer != nullptr && text.size() < size) std::memcpy(buffer, text.c_str(), text.size() + 1);
  return text.size() + 1;
}

}  // namespace

CONTROL int standin_reset(std::uint64_t seed) {
  State& s = state();
  Lock lock(s.mutex);
  s.work.finish_all(lock);
  std::size_t count = 0;
  live(count);
  if (count > 0) return static_cast<int>(count);
  s.sticky = CUDA_SUCCESS;
  s.reports = 0;
  s.last_report.clear();
  s.faults.forget();
  s.captures = Captures();
  s.seed(seed);
  return 0;
}

CONTROL void standin_abandon() {
  State& s = state();
  Lock lock(s.mutex);
  s.work.finish_all(lock);
  for (const auto& [start, reservation] : s.ledger.reservations) Memory::unreserve(start, reservation.size);
  for (const auto& [start, allocation] : s.ledger.allocations) {
    Memory::unreserve(start, allocation.reserved);
    s.memory.give(allocation.device, allocation.offset, allocation.committed);
  }
  std::set<std::shared_ptr<Physical>> left;
  for (const auto& [value, handle] : s.ledger.handles) left.insert(handle->physical);
  for (const auto& physical : left) s.memory.give(physical->device, physical->offset, physical->size);
  Ledger fresh;
  fresh.next_physical = s.ledger.next_physical;
  fresh.handle_names = s.ledger.handle_names;
  s.ledger = std::move(fresh);
  s.streams.streams.clear();
  s.streams.events.clear();
  s.captures = Captures();
  for (Context& context : s.contexts) context.retained = 0;
}

CONTROL int standin_set(const char* name, std::int64_t value) {
  State& s = state();
  const Lock lock(s.mutex);
  const bool hung = s.settings.hang;
  const bool known = s.settings.set(name, value);
  if (hung && !s.settings.hang) s.work.let_end();
  return known ? 0 : -1;
}

CONTROL void standin_fail_at(std::int64_t n, int code, std::int64_t times) {
  State& s = state();
  const Lock lock(s.mutex);
  s.faults.fail_at(n, code, times);
}

CONTROL void standin_fail_only(const char* module) {
  State& s = state();
  const Lock lock(s.mutex);
  s.faults.fail_only(module);
}

CONTROL std::int64_t standin_calls() {
  State& s = state();
  const Lock lock(s.mutex);
  return s.faults.calls();
}

CONTROL std::int64_t standin_failed() {
  State& s = state();
  const Lock lock(s.mutex);
  return s.faults.take_failed();
}

CONTROL const char* standin_last_failed() {
  State& s = state();
  const Lock lock(s.mutex);
  thread_local char text[128];
  std::strncpy(text, s.faults.last_failed().c_str(), sizeof text - 1);
  return text;
}

CONTROL void standin_poison(int code) {
  State& s = state();
  const Lock lock(s.mutex);
  s.sticky = code;
}

CONTROL std::int64_t standin_count(const char* function) {
  State& s = state();
  const Lock lock(s.mutex);
  return s.faults.count(function);
}

CONTROL std::int64_t standin_reports() {
  State& s = state();
  const Lock lock(s.mutex);
  return s.reports;
}

CONTROL std::size_t standin_last_report(char* buffer, std::size_t size) {
  State& s = state();
  const Lock lock(s.mutex);
  return give(s.last_report, buffer, size);
}

CONTROL std::size_t standin_log(char* buffer, std::size_t size) {
  State& s = state();
  const Lock lock(s.mutex);
  std::string out = "{";
  for (const auto& [name, count] : s.faults.counts())
    out += (out.size() > 1 ? ", " : "") + quoted(name) + ": " + std::to_string(count);
  return give(out + "}", buffer, size);
}

CONTROL std::size_t standin_live(char* buffer, std::size_t size) {
  State& s = state();
  const Lock lock(s.mutex);
  std::size_t count = 0;
  return give(live(count), buffer, size);
}

CONTROL std::size_t standin_sites(char* buffer, std::size_t size) {
  State& s = state();
  const Lock lock(s.mutex);
  std::string out = "[";
  for (const auto& [key, tally] : s.faults.sites(s.settings.site_depth))
    out += (out.size() > 1 ? ", " : "") + ("{\"function\": " + quoted(key.first)) +
           ", \"site\": " + quoted(key.second) + ", \"reached\": " + std::to_string(tally.reached) +
           ", \"failed\": " + std::to_string(tally.failed) + "}";
  return give(out + "]", buffer, size);
}

CONTROL void standin_sync_all() {
  State& s = state();
  Lock lock(s.mutex);
  s.work.finish_all(lock);
}

CONTROL std::int64_t standin_queued() {
  State& s = state();
  const Lock lock(s.mutex);
  return static_cast<std::int64_t>(s.work.queued());
}
