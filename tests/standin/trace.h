// Where a call came from, in the caller's code.
#pragma once

#include <array>
#include <string>

namespace standin {

struct Trace {
  std::array<void*, 10> frames{};  // return addresses, the innermost first; none of this library's own
  int count = 0;
};

Trace here();
std::string text(const Trace& trace);
/// "_core.so+0x1234<_core.so+0x5678": as many frames of the innermost one's file as `depth` allows.
std::string site(const Trace& trace, int depth);
/// The file the innermost frame lies in.
std::string module(const Trace& trace);

}  // namespace standin
