// Runs blocks of a kernel's grid on the calling thread; see emulate.h.
#pragma once

#include <functional>
#include <string>

namespace emulate {

struct Grid {
  unsigned x, y, threads, shared_bytes;
};

// Runs `kernel` once for each thread of each block. Empty, or what the kernel did that a GPU does not allow.
std::string run(const Grid& grid, const std::function<void()>& kernel);

}  // namespace emulate
