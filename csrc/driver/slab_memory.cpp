#include "driver/slab_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"

namespace vmm {
namespace {

class PlainSlabs final : public SlabMemory {
 public:
  std::byte* allocate(Bytes size) override {
    void* slab = mmap(nullptr, size.count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slab == MAP_FAILED) fail_slab("mmap", size);
    if (madvise(slab, size.count, MADV_DONTFORK) != 0) {
      const int error = errno;
      munmap(slab, size.count);
      errno = error;
      fail_slab("madvise", size);
    }
    madvise(slab, size.count, MADV_HUGEPAGE);  // faster where the system has them, and needless elsewhere
    return static_cast<std::byte*>(slab);
  }

  void release(std::byte* slab, Bytes size) noexcept override { munmap(slab, size.count); }

 private:
  [[noreturn]] static void fail_slab(const char* call, Bytes size) {
    throw DriverOutOfMemory(std::string(call) + " of " + std::to_string(size.count) +
                            " bytes of host memory: " + std::strerror(errno));
  }
};

}  // namespace

std::shared_ptr<SlabMemory> plain_slabs() { return std::make_shared<PlainSlabs>(); }

}  // namespace vmm
