#include <cstdio>
#include <cstdlib>

#include "state.h"

namespace standin {

void report(const std::string& what, const Trace& now) { report(what, now, "", {}); }

void report(const std::string& what, const Trace& now, const std::string& then_what, const Trace& then) {
  State& s = state();
  std::string all = "stand-in libcuda: " + what + "\n  called from:\n" + text(now);
  if (!then_what.empty()) all += "  " + then_what + ", queued from:\n" + text(then);
  all += "  (seed " + std::to_string(s.settings.seed) + ")\n";
  std::fputs(all.c_str(), stderr);
  std::fflush(stderr);
  ++s.reports;
  s.last_report = all;
  if (s.settings.undefined_counts) return;
  if (s.settings.report_fd != 2) dprintf(s.settings.report_fd, "%s", all.c_str());
  std::abort();
}

}  // namespace standin
