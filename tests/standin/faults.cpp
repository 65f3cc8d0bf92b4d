#include "faults.h"

#include <utility>

namespace standin {

CUresult Faults::pass(const char* function, const Trace& from) {
  if (!only_.empty() && module(from).find(only_) == std::string::npos) return CUDA_SUCCESS;
  Tally& tally = sites_[{function, from.frames}];
  ++calls_;
  ++tally.reached;
  if (first_ == 0 || calls_ < first_ || calls_ - first_ >= times_) return CUDA_SUCCESS;
  ++tally.failed;
  ++failed_;
  last_failed_ = std::string(function) + " #" + std::to_string(calls_);
  return code_;
}

void Faults::fail_at(std::int64_t n, int code, std::int64_t times) {
  first_ = n <= 0 ? 0 : calls_ + n;
  code_ = code;
  times_ = times;
}

void Faults::forget() {
  const std::string only = only_;
  *this = Faults();
  only_ = only;
}

std::int64_t Faults::take_failed() { return std::exchange(failed_, 0); }

std::int64_t Faults::count(const char* function) const {
  std::int64_t all = 0;
  for (const auto& [name, count] : log_)
    if (function == nullptr || name == function) all += count;
  return all;
}

std::map<std::pair<std::string, std::string>, Faults::Tally> Faults::sites(int depth) const {
  std::map<std::pair<std::string, std::string>, Tally> out;
  for (const auto& [key, tally] : sites_) {
    Trace trace;
    trace.frames = key.second;
    while (trace.count < static_cast<int>(trace.frames.size()) &&
           trace.frames[static_cast<std::size_t>(trace.count)] != nullptr)
      ++trace.count;
    Tally& sum = out[{key.first, site(trace, depth)}];
    sum.reached += tally.reached;
    sum.failed += tally.failed;
  }
  return out;
}

}  // namespace standin
