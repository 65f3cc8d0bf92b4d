#include "trace.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

// Placed by the linker: the first and the last byte of this library.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[];
extern "C" __attribute__((visibility("hidden"))) char _end[];

namespace standin {
namespace {

bool is_ours(const void* address) { return address >= __ehdr_start && address < _end; }

std::string place(const Dl_info& file, const void* frame) {
  const std::string path = file.dli_fname == nullptr ? "?" : file.dli_fname;
  char offset[32];
  std::snprintf(offset, sizeof offset, "+%#tx",
                static_cast<const char*>(frame) - static_cast<const char*>(file.dli_fbase));
  return path.substr(path.rfind('/') + 1) + offset;
}

}  // namespace

Trace here() {
  std::array<void*, 18> all{};
  const int count = backtrace(all.data(), static_cast<int>(all.size()));
  Trace trace;
  bool seen_us = false;  // what comes before is a sanitizer's
  for (int at = 0; at < count && trace.count < static_cast<int>(trace.frames.size()); ++at) {
    void* frame = all[static_cast<std::size_t>(at)];
    if (is_ours(frame))
      seen_us = true;
    else if (seen_us)
      trace.frames[static_cast<std::size_t>(trace.count++)] = frame;
  }
  return trace;
}

std::string text(const Trace& trace) {
  if (trace.count == 0) return "    (nowhere)\n";
  char** names = backtrace_symbols(trace.frames.data(), trace.count);
  if (names == nullptr) return "    (no memory to tell)\n";
  std::string out;
  for (int at = 0; at < trace.count; ++at) out += std::string("    ") + names[at] + "\n";
  std::free(names);  // NOLINT: backtrace_symbols gives one block
  return out;
}

std::string site(const Trace& trace, int depth) {
  std::string out;
  const void* base = nullptr;
  for (int at = 0; at < std::min(depth, trace.count); ++at) {
    const void* frame = trace.frames[static_cast<std::size_t>(at)];
    Dl_info file{};
    if (dladdr(frame, &file) == 0) break;
    if (at == 0) base = file.dli_fbase;
    if (file.dli_fbase != base) break;
    out += (at == 0 ? "" : "<") + place(file, frame);
  }
  return out.empty() ? "?" : out;
}

std::string module(const Trace& trace) {
  Dl_info file{};
  if (trace.count == 0 || dladdr(trace.frames[0], &file) == 0 || file.dli_fname == nullptr) return "?";
  return file.dli_fname;
}

}  // namespace standin
