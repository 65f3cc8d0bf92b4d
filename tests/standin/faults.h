// Calls that are made to fail, and the log of all calls.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "cuda_abi.h"
#include "trace.h"

namespace standin {

class Faults {
 public:
  /// Counts the call. What it must return instead of being done, or CUDA_SUCCESS.
  CUresult pass(const char* function, const Trace& from);
  void log(const char* function) { ++log_[function]; }

  void fail_at(std::int64_t n, int code, std::int64_t times);
  void fail_only(const char* module) { only_ = module; }
  void forget();

  std::int64_t calls() const { return calls_; }
  std::int64_t take_failed();
  const std::string& last_failed() const { return last_failed_; }
  std::int64_t count(const char* function) const;
  const std::map<std::string, std::int64_t>& counts() const { return log_; }

  struct Tally {
    std::int64_t reached = 0;
    std::int64_t failed = 0;
  };
  /// By function and call site.
  std::map<std::pair<std::string, std::string>, Tally> sites(int depth) const;

 private:
  using Frames = std::array<void*, 10>;
  std::map<std::string, std::int64_t> log_;
  std::map<std::pair<std::string, Frames>, Tally> sites_;
  std::string only_;
  std::int64_t calls_ = 0;
  std::int64_t first_ = 0;  // the first call to fail, by calls_; 0: none
  std::int64_t times_ = 0;
  int code_ = 0;
  std::int64_t failed_ = 0;
  std::string last_failed_;
};

}  // namespace standin
