// Estimates how long an iteration takes on a GPU, if only its memory and its arithmetic units limit it.
#pragma once

#include <algorithm>

#include "base/clock.h"

namespace vmm {

/// What one iteration has to do.
struct BatchWork {
  double tokens = 0;          // computed
  double read_tokens = 0;     // of K and V that attention reads: the contexts of all sequences together
  double token_contexts = 0;  // the sum, over the tokens computed, of the context that each attends to
};

/// The roofline model (Williams, Waterman, Patterson, CACM 2009) without efficiencies below 1. So iterations
/// are shorter than on any real GPU, which leaves the pager less time to hide its work in.
struct Roofline {
  double weight_bytes = 0;
  double kv_bytes_per_token = 0;
  double flops_per_token = 0;          // of all that is not attention: 2 × parameters
  double flops_per_token_context = 0;  // of attention: 4 × layers × heads × head_dim
  double bytes_per_second = 1;
  double flops_per_second = 1;
  double launch_seconds = 0;  // of a whole iteration

  double seconds(const BatchWork& work) const {
    const double bytes = weight_bytes + kv_bytes_per_token * (work.read_tokens + work.tokens);
    const double flops = flops_per_token * work.tokens + flops_per_token_context * work.token_contexts;
    return launch_seconds + std::max(bytes / bytes_per_second, flops / flops_per_second);
  }
  Nanoseconds time(const BatchWork& work) const {
    return Nanoseconds{static_cast<Nanoseconds::rep>(seconds(work) * 1e9)};
  }
};

}  // namespace vmm
