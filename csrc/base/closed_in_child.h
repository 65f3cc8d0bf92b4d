// A file descriptor that a forked child does not have.
#pragma once

namespace vmm {

/// Owns a descriptor. In a forked child it is closed before fork() returns there: a lock that belongs to the
/// open file would else be held by the child, too, after its parent has died.
class ClosedInChild {
 public:
  ClosedInChild() = default;
  /// Takes the descriptor, which is closed if this throws (Error, when there are too many of them).
  explicit ClosedInChild(int fd);
  ~ClosedInChild() { close(); }
  ClosedInChild(ClosedInChild&& other) noexcept : place_(other.place_) { other.place_ = -1; }
  ClosedInChild& operator=(ClosedInChild&& other) noexcept;

  /// -1 when there is none, as in a child.
  int get() const noexcept;
  void close() noexcept;

 private:
  int place_ = -1;  // in the list of those that children close
};

}  // namespace vmm
