// What the double of the driver knows of a kernel.
#pragma once

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

struct Kernel {
  const char* name;
  void (*call)(const std::vector<std::vector<unsigned char>>& arguments);
  std::vector<size_t> argument_bytes;
};

const std::vector<Kernel>& kernels();
