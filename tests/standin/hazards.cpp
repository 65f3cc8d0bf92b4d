// Memory that queued work still uses must stay what it is. "Queued" is everything of which the host cannot
// know that it is over, whether it has run by now or not: by that a missing fence is found under every seed.
#include <cinttypes>
#include <cstdio>

#include "call.h"

namespace standin {
namespace {

bool overlap(Size a, Size a_size, Size b, Size b_size) { return a < b + b_size && b < a + a_size; }

bool share_bytes(const Touch& a, const Touch& b) {
  for (const Span& x : a.spans)
    for (const Span& y : b.spans)
      if (overlap(x.start, x.size, y.start, y.size)) return true;
  return false;
}

std::string range(Address start, Size size) {
  char out[64];
  std::snprintf(out, sizeof out, "[%#" PRIx64 ", %#" PRIx64 ")", start, start + size);
  return out;
}

std::string used_by(const Operation& operation) {
  return (operation.done ? "not known to be over: " : "not over: ") + operation.what + " on stream " +
         std::to_string(operation.stream);
}

bool conflict(const Operation& a, const Operation& b) {
  for (const Touch& x : a.touches)
    for (const Touch& y : b.touches)
      if ((x.write || y.write) && share_bytes(x, y)) return true;
  return false;
}

}  // namespace

void check_addresses(const Call& call, const std::string& what, Address start, Size size) {
  OperationPtr first;
  for (const auto& [id, operation] : call.s.work.unobserved())
    for (const Touch& touch : operation->touches) {
      if (touch.size == 0 || !overlap(touch.start, touch.size, start, size)) continue;
      operation->spoiled = true;
      if (first == nullptr) first = operation;
    }
  if (first == nullptr) return;
  report(std::string(call.name) + ": " + what + " " + range(start, size) + ", which queued work still uses",
         call.from, used_by(*first), first->from);
}

void check_physical(const Call& call, const std::string& what, const Physical& physical) {
  for (const auto& [id, operation] : call.s.work.unobserved())
    for (const Touch& touch : operation->touches)
      for (const Span& span : touch.spans)
        if (overlap(span.start, span.size, physical.offset, physical.size))
          return report(std::string(call.name) + ": " + what + ", which queued work still uses", call.from,
                        used_by(*operation), operation->from);
}

void check_races(const Call& call, const OperationPtr& operation) {
  if (operation->touches.empty()) return;
  for (const auto& [id, earlier] : call.s.work.unobserved())
    if (conflict(*earlier, *operation) && !ordered(*earlier, operation))
      return report(std::string(call.name) + ": " + operation->what + " on stream " +
                        std::to_string(operation->stream) + " touches what unordered work touches too",
                    call.from, used_by(*earlier), earlier->from);
}

}  // namespace standin
