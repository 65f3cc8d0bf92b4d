// By what others know this process.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "memory/share_table.h"

namespace vmm {

/// Pid, start time and command, as /proc has them; 0 and "" where it has not.
inline void describe_this_process(ShareRecord& record) {
  record.pid = static_cast<std::uint32_t>(getpid());
  std::FILE* file = std::fopen("/proc/self/stat", "re");
  if (file == nullptr) return;
  char line[1024];
  const std::size_t size = std::fread(line, 1, sizeof line - 1, file);
  std::fclose(file);
  const std::string text(line, size);
  // pid (command) state …: the command may have any byte in it, and the start is the 20th after it.
  const std::size_t open = text.find('('), close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open) return;
  const std::string command = text.substr(open + 1, close - open - 1);
  std::strncpy(record.command.data(), command.c_str(), record.command.size() - 1);
  const char* at = text.c_str() + close + 1;
  for (int field = 0; field < 20 && at != nullptr; ++field) at = std::strchr(at + 1, ' ');
  if (at != nullptr) record.started = std::strtoull(at, nullptr, 10);
}

}  // namespace vmm
