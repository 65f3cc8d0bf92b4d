// What happens where no caller can be told: kept in a bounded list until somebody drains it.
// The pager must not need Python, so it cannot call Python's logging itself.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "base/lock.h"

namespace vmm {

enum class LogLevel : std::uint8_t { debug, info, warning, error };

struct LogRecord {
  LogLevel level;
  std::string text;
};

/// Safe from any thread. Keeps the newest `capacity` records; older ones are dropped.
class Log {
 public:
  void write(LogLevel level, const std::string& text) noexcept { write(level, text.c_str()); }
  /// For whoever may have no memory for a string, or to join two.
  void write(LogLevel level, const char* what, const char* why = "") noexcept {
    try {
      std::string text = std::string(what) + why;
      std::lock_guard lock(mutex_);
      if (records_.size() == capacity) records_.pop_front();
      records_.push_back({level, std::move(text)});
    } catch (...) {  // no memory for a log line: the line is what we can do without
    }
  }

  std::vector<LogRecord> drain() {
    std::lock_guard lock(mutex_);
    std::vector<LogRecord> out(std::make_move_iterator(records_.begin()),
                               std::make_move_iterator(records_.end()));
    records_.clear();
    return out;
  }

 private:
  static constexpr std::size_t capacity = 256;
  Mutex mutex_{LockRank::log};
  std::deque<LogRecord> records_;
};

}  // namespace vmm
