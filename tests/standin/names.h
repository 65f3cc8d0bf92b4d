// The handles that are given out.
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace standin {

/// Never one twice, so that a handle used after its end is known as such; or, as the real driver does, the
/// one that ended last again.
class Names {
 public:
  Names(std::uint64_t first, std::uint64_t step) : next_(first), step_(step) {}

  std::uint64_t take(bool again) {
    if (!again || ended_.empty()) return next_ += step_;
    const std::uint64_t name = ended_.back();
    ended_.pop_back();
    return name;
  }
  void end(std::uint64_t name, bool again) {
    if (again) ended_.push_back(name);
  }

 private:
  std::uint64_t next_;
  std::uint64_t step_;
  std::vector<std::uint64_t> ended_;
};

/// Before a call that ends a name returns, without the lock: somebody else may have got it by then.
inline void linger(bool again) {
  if (again) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

}  // namespace standin
