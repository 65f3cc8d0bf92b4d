// A test framework in a page. TEST registers a test, CHECK reports a failure and goes on, and main() runs all
// tests and counts.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace check {

struct Test {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

/// What must hold after every test.
inline std::vector<std::function<void()>>& after_each() {
  static std::vector<std::function<void()>> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, std::function<void()> body) { tests().push_back({name, std::move(body)}); }
};

struct AfterEach {
  explicit AfterEach(std::function<void()> body) { after_each().push_back(std::move(body)); }
};

inline void report(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++failures();
}

template <class Expected>
void throws(const char* file, int line, const char* expected, const std::string& part,
            const std::function<void()>& body) {
  try {
    body();
    report(file, line, std::string("nothing was thrown; expected ") + expected);
  } catch (const Expected& error) {
    if (std::string(error.what()).find(part) == std::string::npos)
      report(file, line, "\"" + std::string(error.what()) + "\" does not say \"" + part + "\"");
  } catch (const std::exception& error) {
    report(file, line, std::string("expected ") + expected + ", got: " + error.what());
  }
}

inline int run() {
  int failed = 0;
  for (const Test& test : tests()) {
    const int before = failures();
    try {
      test.body();
    } catch (const std::exception& error) {
      report(test.name, 0, std::string("thrown: ") + error.what());
    }
    for (const auto& body : after_each()) body();
    failed += failures() != before;
    std::printf("%s %s\n", failures() == before ? "ok    " : "FAILED", test.name);
  }
  std::printf("%zu passed, %d failed\n", tests().size() - static_cast<std::size_t>(failed), failed);
  return failed != 0;
}

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static const check::Register register_##name(#name, name); \
  static void name()
#define CHECK(condition) ((condition) ? void() : check::report(__FILE__, __LINE__, "CHECK(" #condition ")"))
#define CHECK_THROWS(type, part, ...) \
  check::throws<type>(__FILE__, __LINE__, #type, part, [&] { __VA_ARGS__; })

int main() { return check::run(); }
