// Which of libcuda's errors end a context: cuda_abi_check.cpp compares the numbers with cuda.h,
// tests/unit/test_cuda_results.py the choice with what cuda.h says of each.
#pragma once

#include <algorithm>
#include <array>

#include "driver/cuda_api.h"

namespace vmm::cuda {

// By cuda.h, 13.0: "any further CUDA work will return the same error", or words to that effect; but for the
// first two, of which it says only that they happened "during execution". They are taken for endings because
// the work that was running is lost, and nobody can say what it had written.
constexpr Result ecc_uncorrectable = 214;
constexpr Result nvlink_uncorrectable = 220;
constexpr Result contained = 226;  // a peer's memory over NVLink, or hardware: kept to this process
constexpr Result illegal_address = 700;
constexpr Result launch_timeout = 702;
constexpr Result device_assert = 710;  // "The context cannot be used anymore"
constexpr Result hardware_stack_error = 714;
constexpr Result illegal_instruction = 715;
constexpr Result misaligned_address = 716;
constexpr Result invalid_address_space = 717;
constexpr Result invalid_program_counter = 718;
constexpr Result launch_failed = 719;
constexpr Result tensor_memory_leak = 721;     // at a kernel's end; as final as an illegal address
constexpr Result mps_client_terminated = 810;  // by the MPS server
constexpr Result external_device = 911;        // another device's data, waited for, will never be valid

constexpr std::array endings{ecc_uncorrectable,     nvlink_uncorrectable,    contained,
                             illegal_address,       launch_timeout,          device_assert,
                             hardware_stack_error,  illegal_instruction,     misaligned_address,
                             invalid_address_space, invalid_program_counter, launch_failed,
                             tensor_memory_leak,    mps_client_terminated,   external_device};

// All others are answers about one call, and the next one may succeed:
//   1-8, 34-47      arguments, memory, start and end of the driver, profiler, stub, version, a busy device. 4
//                   (deinitialized) is final, but it is the process that ends: there is nothing to restart
//   100-102         no such device, no licence
//   200-213         modules, and contexts, arrays or graphics resources in the wrong state for the call
//   215-219, 221-225, 227  a limit, peer access, compilation, a loader: not supported, or not found
//   300-304         sources, files, shared objects, an operating system's call that failed
//   400-402, 500    handles, states, names
//   600             not an error
//   701, 703, 720   a launch that did not take place
//   704, 705, 708, 711-713  peer access, primary contexts and host memory: set already, or not set
//   709             the context was destroyed by its owner. A primary context may come back
//   800-809, 811, 812  not permitted, not supported, not ready; an MPS server that may recover
//   900-908         captures
//   909, 910, 912-919  a wait's limit, graph updates, launch arguments, resource kinds, key rotation
//   999             unknown: cuda.h does not say that it lasts
constexpr bool ends_context(Result result) { return std::ranges::find(endings, result) != endings.end(); }

}  // namespace vmm::cuda
