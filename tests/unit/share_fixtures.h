// Members of a share in one process: the locks belong to open files, so each is as good as a process.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "memory/shared_budget.h"

namespace vmm {

/// A directory of its own, for share files.
struct ShareFolder {
  ShareFolder() {
    std::string name = "/dev/shm/vmm-test-XXXXXX";
    path = mkdtemp(name.data()) == nullptr ? "" : name;
  }
  ~ShareFolder() { std::filesystem::remove_all(path); }
  std::string file(const std::string& name = "vmm-share-test") const { return path + "/" + name; }
  std::string path;
};

/// One member; its listener notes what it is told.
struct Member {
  Member(const std::string& path, const ShareTerms& terms,
         std::unique_ptr<FileCalls> calls = std::make_unique<FileCalls>())
      : budget(std::make_unique<SharedBudget>(path, terms, clock, std::move(calls))) {
    id = budget->listen([this](Bytes wanted) {
      wanted.count == 0 ? ++rooms : ++presses;
      pressed += wanted;
    });
  }
  bool take(Bytes size, bool press = true) { return budget->take(size, id, press); }
  Bytes grant() const { return budget->standing().grant; }
  Bytes pressure() const { return budget->standing().pressure; }

  std::shared_ptr<ManualClock> clock = std::make_shared<ManualClock>();
  std::unique_ptr<SharedBudget> budget;
  Budget::ListenerId id = 0;
  Bytes pressed;
  int rooms = 0, presses = 0;
};

}  // namespace vmm
