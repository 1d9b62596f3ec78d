// The kernels by their names, each with its arguments taken from where the driver's call has them.
#include "table.h"

#include "../cuda/all.cu"

namespace {

template <auto KERNEL_FUNCTION> struct Call;
template <typename... Arguments, void (*KERNEL_FUNCTION)(Arguments...)>
struct Call<KERNEL_FUNCTION> {
  template <size_t... I>
  static void with(const std::vector<std::vector<unsigned char>>& given, std::index_sequence<I...>) {
    KERNEL_FUNCTION(argument<Arguments>(given[I])...);
  }
  template <typename T> static T argument(const std::vector<unsigned char>& bytes) {
    T value;
    std::memcpy(static_cast<void*>(&value), bytes.data(), sizeof(T));
    return value;
  }
  static void call(const std::vector<std::vector<unsigned char>>& given) {
    with(given, std::index_sequence_for<Arguments...>{});
  }
  static std::vector<size_t> sizes() { return {sizeof(Arguments)...}; }
};

template <auto FUNCTION> Kernel kernel(const char* name) { return {name, &Call<FUNCTION>::call, Call<FUNCTION>::sizes()}; }

}  // namespace

#define NAMED(name) kernel<&name>(#name)
#define MATMULS(end) NAMED(matmul_16_##end), NAMED(matmul_32_##end), NAMED(matmul_64_##end), NAMED(matmul_128_##end)
#define ATTENDS(head_dim) NAMED(attend_##head_dim##_16), NAMED(attend_##head_dim##_64)

const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> all = {
      NAMED(embed), NAMED(rms_norm), NAMED(gather_rows), NAMED(turn), NAMED(merge),
      MATMULS(bf16), MATMULS(add), MATMULS(f32), MATMULS(gated),
      ATTENDS(16), ATTENDS(32), ATTENDS(48), ATTENDS(64), ATTENDS(128),
  };
  return all;
}
