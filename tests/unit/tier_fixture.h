// What tests of tiers share: pages, both stores, and seams that refuse.
#pragma once

#include <stdlib.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "driver/driver_decorator.h"
#include "driver/host_driver.h"
#include "tier/host_store.h"
#include "tier/slot_file.h"
#include "tier/tier_store.h"

namespace vmm {

constexpr Bytes page_bytes = 16_KiB;

/// Pages side by side, aligned as a mapping is.
class TestPages {
 public:
  explicit TestPages(std::size_t count) : memory_((count + 1) * page_bytes.count) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    first_ = memory_.data() + (4096 - address % 4096) % 4096;
  }
  std::byte* at(std::size_t page) { return first_ + page * page_bytes.count; }
  void fill(std::size_t page, std::uint64_t version) {
    std::mt19937_64 random(version);
    for (std::size_t i = 0; i < page_bytes.count; i += sizeof(std::uint64_t)) {
      const std::uint64_t word = random();
      std::memcpy(at(page) + i, &word, sizeof word);
    }
  }
  bool is(std::size_t page, std::uint64_t version) {
    TestPages expected(1);
    expected.fill(0, version);
    return std::memcmp(at(page), expected.at(0), page_bytes.count) == 0;
  }

 private:
  std::vector<std::byte> memory_;
  std::byte* first_;
};

/// A directory that ends with the test.
class TestDirectory {
 public:
  TestDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "vmm-tier-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = name;
  }
  ~TestDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;
  const std::string& path() const { return path_; }
  bool is_empty() const { return std::filesystem::is_empty(path_); }

 private:
  std::string path_;
};

/// Slabs that are remembered, and one of which may be refused.
class TestSlabs final : public SlabMemory {
 public:
  std::byte* allocate(Bytes size) override {
    if (++asked == refused) throw DriverOutOfMemory("no slab of " + std::to_string(size.count));
    slabs.push_back(plain->allocate(size));
    ++live;
    return slabs.back();
  }
  void release(std::byte* slab, Bytes size) noexcept override {
    --live;
    plain->release(slab, size);
  }
  bool locks() const override { return locked; }

  std::shared_ptr<SlabMemory> plain = plain_slabs();
  std::vector<std::byte*> slabs;
  std::atomic<int> live{0};
  int asked = 0;
  int refused = 0;
  bool locked = false;
};

/// Calls each of which is counted first, and may then be refused or cut short.
class TestCalls final : public SlotCalls {
 public:
  int open(const char* path, int flags, mode_t mode) override {
    if (refuses("open") || (refuses_tmpfile && (flags & O_TMPFILE) == O_TMPFILE) ||
        (refuses_direct && (flags & O_DIRECT) != 0)) {
      if (refuses_tmpfile || refuses_direct) errno = EINVAL;
      return -1;
    }
    const int fd = SlotCalls::open(path, flags, mode);
    file = fd;
    return fd;
  }
  int unlink(const char* path) override { return refuses("unlink") ? -1 : SlotCalls::unlink(path); }
  int allocate(int fd, off_t size) override {
    return refuses("fallocate") ? -1 : SlotCalls::allocate(fd, size);
  }
  int truncate(int fd, off_t size) override {
    return refuses("ftruncate") ? -1 : SlotCalls::truncate(fd, size);
  }
  int room(int fd, struct statvfs& out) override {
    return refuses("statvfs") ? -1 : SlotCalls::room(fd, out);
  }
  int set_flags(int fd, int flags) override {
    return refuses("fcntl") ? -1 : SlotCalls::set_flags(fd, flags);
  }
  ssize_t readv(int fd, const iovec* parts, int count, off_t at) override {
    if (refuses("preadv")) return -1;
    return cut(parts, count, [&](const iovec* p, int n) { return SlotCalls::readv(fd, p, n, at); });
  }
  ssize_t writev(int fd, const iovec* parts, int count, off_t at) override {
    if (refuses("pwritev")) return -1;
    return cut(parts, count, [&](const iovec* p, int n) { return SlotCalls::writev(fd, p, n, at); });
  }

  /// An errno for this call, the n-th of all, or 0.
  std::function<int(const std::string& call, int n)> refuse = [](const std::string&, int) { return 0; };
  /// How many bytes a read or write moves at most, by the number of its call.
  std::function<std::size_t(int n)> most = [](int) { return SIZE_MAX; };
  std::atomic<int> made{0};
  std::atomic<int> file{-1};
  bool refuses_tmpfile = false;
  bool refuses_direct = false;

 private:
  bool refuses(const char* call) {
    const std::lock_guard lock(mutex_);
    const int error = refuse(call, ++made);
    if (error != 0) errno = error;
    return error != 0;
  }
  template <class Call>
  ssize_t cut(const iovec* parts, int count, Call call) {
    const std::size_t all = most(made);
    if (all == 0) return 0;
    // A direct call wants whole blocks; what it has moved too much does no harm.
    std::size_t left = all > SIZE_MAX - 4096 ? all : (all + 4095) / 4096 * 4096;
    std::vector<iovec> shorter;
    for (int i = 0; i < count && left > 0; ++i) {
      shorter.push_back({parts[i].iov_base, std::min(left, parts[i].iov_len)});
      left -= shorter.back().iov_len;
    }
    const ssize_t moved = call(shorter.data(), static_cast<int>(shorter.size()));
    return moved < 0 || static_cast<std::size_t>(moved) < all ? moved : static_cast<ssize_t>(all);
  }
  std::mutex mutex_;
};

/// A device whose pages the CPU reaches after all. What is copied is copied when somebody waits for it.
class TestDevice final : public DriverDecorator {
 public:
  TestDevice() : DriverDecorator(std::make_shared<HostDriver>("vmm-test")) {}
  ~TestDevice() override { CHECK(live == 0 && queued_.empty()); }
  HostCopies* host_copies() noexcept override { return this; }

  StreamHandle create_stream() override {
    before("create_stream");
    return inner().create_stream();
  }

  std::byte* allocate_host(Bytes size) override {
    std::byte* const memory = plain_slabs()->allocate(size);
    const std::lock_guard lock(mutex_);
    sizes_[memory] = size;
    ++live;
    return memory;
  }
  void release_host(std::byte* memory) override {
    const std::lock_guard lock(mutex_);
    plain_slabs()->release(memory, sizes_.at(memory));
    sizes_.erase(memory);
    --live;
  }
  void copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) override {
    queue("copy_out", to, reinterpret_cast<const std::byte*>(from.value), size, stream);
  }
  void copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) override {
    queue("copy_in", reinterpret_cast<std::byte*>(to.value), from, size, stream);
  }
  void finish(StreamHandle stream) override {
    try {
      before("finish");
    } catch (const DeviceLost&) {  // nothing goes on any more
      const std::lock_guard lock(mutex_);
      queued_.erase(stream);
      throw;
    }
    std::vector<std::function<void()>> work;
    {
      const std::lock_guard lock(mutex_);
      const auto found = queued_.find(stream);
      if (found == queued_.end()) return;
      work = std::move(found->second);
      queued_.erase(found);
    }
    for (const auto& each : work) each();
  }

  /// May throw, before each call.
  std::function<void(const std::string& call)> before = [](const std::string&) {};
  std::atomic<int> live{0};

 private:
  void queue(const char* call, std::byte* to, const std::byte* from, Bytes size, StreamHandle stream) {
    before(call);
    const std::lock_guard lock(mutex_);
    queued_[stream].push_back([=] { std::memcpy(to, from, size.count); });
  }

  std::mutex mutex_;
  std::map<StreamHandle, std::vector<std::function<void()>>> queued_;
  std::map<std::byte*, Bytes> sizes_;
};

/// A store, and how to reach its bytes past it.
struct StoreUnderTest {
  std::string name;
  std::shared_ptr<Log> log = std::make_shared<Log>();
  std::shared_ptr<TestSlabs> slabs = std::make_shared<TestSlabs>();
  std::shared_ptr<TestCalls> calls = std::make_shared<TestCalls>();
  std::unique_ptr<TestDirectory> directory = std::make_unique<TestDirectory>();
  std::shared_ptr<TestDevice> device = nullptr;  // whose the pages are
  std::unique_ptr<TierStore> store = nullptr;

  bool checks() const { return name != "device host"; }

  /// Turns one bit of a slot over.
  void damage(TierSlot slot) {
    const std::size_t at = slot.index * page_bytes.count + 1234;
    if (!slabs->slabs.empty()) {
      const std::size_t in_slab = at % (4 * page_bytes.count);
      slabs->slabs[slot.index / 4][in_slab] ^= std::byte{16};
      return;
    }
    // Another opening of the file, which goes through the page cache.
    const int fd = ::open(("/proc/self/fd/" + std::to_string(calls->file)).c_str(), O_RDWR | O_CLOEXEC);
    std::byte byte{};
    CHECK(pread(fd, &byte, 1, static_cast<off_t>(at)) == 1);
    byte ^= std::byte{16};
    CHECK(pwrite(fd, &byte, 1, static_cast<off_t>(at)) == 1);
    CHECK(fsync(fd) == 0);
    ::close(fd);
  }
};

inline HostStoreOptions host_options(std::uint64_t slots) {
  return {.capacity = page_bytes * slots, .slot = page_bytes, .slab = page_bytes * 4};
}

inline void open_file(StoreUnderTest& made, std::uint64_t slots, bool direct = true) {
  made.store = make_slot_file({.directory = made.directory->path(),
                               .capacity = page_bytes * slots,
                               .slot = page_bytes,
                               .direct = direct,
                               .device = made.device},
                              made.calls, std::make_shared<RealClock>(), made.log);
}

inline StoreUnderTest make_store(const std::string& name, std::uint64_t slots) {
  StoreUnderTest made;
  made.name = name;
  if (name.find("device") != std::string::npos) made.device = std::make_shared<TestDevice>();
  if (name.ends_with("host")) {
    HostStoreOptions options = host_options(slots);
    options.device = made.device;
    options.verify_device = name.starts_with("verified");
    made.store = make_host_store(options, made.slabs, std::make_shared<RealClock>(), made.log);
  } else {
    open_file(made, slots, name != "buffered file");
  }
  return made;
}

/// Runs this with each kind of store.
inline void on_each_store(std::uint64_t slots, const std::function<void(StoreUnderTest&)>& body) {
  for (const char* name :
       {"host", "file", "buffered file", "device host", "verified device host", "device file"}) {
    const int before = check::failures();
    StoreUnderTest made = make_store(name, slots);
    body(made);
    if (check::failures() != before) std::fprintf(stderr, "  … on the store: %s\n", name);
  }
}

/// Collects until so many have ended.
inline std::vector<Completion> collect(TierStore& store, std::size_t count) {
  std::vector<Completion> out;
  while (out.size() < count) {
    std::array<Completion, 7> some;
    const std::size_t got = store.wait(some, std::chrono::seconds(20));
    if (got == 0) throw std::runtime_error("a transfer did not end");
    out.insert(out.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(got));
  }
  return out;
}

inline Completion transfer(TierStore& store, TransferKind kind, TierSlot slot, std::byte* memory) {
  const Transfer one{kind, slot, memory, 77};
  CHECK(store.submit({&one, 1}) == 1);
  return collect(store, 1).front();
}

inline Outcome write(TierStore& store, TierSlot slot, std::byte* memory) {
  return transfer(store, TransferKind::write, slot, memory).outcome;
}

inline Outcome read(TierStore& store, TierSlot slot, std::byte* memory) {
  return transfer(store, TransferKind::read, slot, memory).outcome;
}

}  // namespace vmm
