#include "driver/cuda_api.h"

#include <dlfcn.h>

#include <string>

#include "base/error.h"
#include "base/fork.h"

namespace vmm::cuda {
namespace {

constexpr int least_version = 12000;

using GetProcAddress = Result (*)(const char* name, void** function, int version, std::uint64_t flags,
                                  int* status);

void resolve(GetProcAddress find, const char* name, int version, void** function) {
  const Result result = find(name, function, version, 0, nullptr);
  if (result != success || *function == nullptr)
    throw DriverError(std::string("libcuda.so.1 does not have ") + name + " of CUDA " +
                      std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10));
}

}  // namespace

Api load() {
  static const ForkGuard first_use;
  if (first_use.in_child()) throw Forked(used_before_fork);
  // We never close the library: others may still use their streams and contexts when we use none.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw DriverError(std::string("no CUDA driver: ") + dlerror());
  void* symbol = dlsym(library, "cuGetProcAddress_v2");
  if (symbol == nullptr) throw DriverError("the CUDA driver is older than 12.0: update it");
  const auto find = reinterpret_cast<GetProcAddress>(symbol);
  Api api;
#define VMM_RESOLVE(name, version, parameters) \
  resolve(find, #name, version, reinterpret_cast<void**>(&api.name));
  VMM_CUDA_CALLS(VMM_RESOLVE)
#undef VMM_RESOLVE
#define VMM_RESOLVE(name, version, parameters) \
  find(#name, reinterpret_cast<void**>(&api.name), version, 0, nullptr);
  VMM_CUDA_NEWER_CALLS(VMM_RESOLVE)
#undef VMM_RESOLVE
  int version = 0;
  if (api.cuDriverGetVersion(&version) != success || version < least_version)
    throw DriverError("the CUDA driver is of version " + std::to_string(version / 1000) + "." +
                      std::to_string(version % 1000 / 10) + "; 12.0 or later is needed");
  return api;
}

}  // namespace vmm::cuda
