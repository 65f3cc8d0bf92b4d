// After fork() a child has our objects but neither our mappings nor our threads.
#pragma once

#include <string>

namespace vmm {

/// Remembers the process it was made in. The check is one load, no system call: a handler registered
/// with pthread_atfork counts the forks on the child's side.
class ForkGuard {
 public:
  ForkGuard();
  bool in_child() const noexcept;
  /// Throws Forked in a forked child. `what` names the thing that cannot be used.
  void require_parent(const char* what) const;

 private:
  unsigned made_in_;
};

}  // namespace vmm
