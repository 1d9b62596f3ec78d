// SPDX-License-Identifier: Apache-2.0
//
// The bridge between Rust and TensorRT-LLM's Executor. Nothing is thrown through Rust: see `trycatch`.
#pragma once

#include "rust/cxx.h"

#include <cstdint>
#include <exception>
#include <memory>

// cxx's own looks for std::exception only, inside of a function that must not throw: any other type would end the
// process. `cxx` calls this one instead, because it is declared.
namespace rust::behavior {
template <typename Try, typename Fail> static void trycatch(Try &&func, Fail &&fail) noexcept {
  try {
    func();
  } catch (std::exception const &error) {
    fail(error.what());
  } catch (...) {
    fail("\x01of no standard type");
  }
}
} // namespace rust::behavior

namespace mainstay::trtllm {

struct Settings;
struct Ask;
struct Said;
struct Told;
struct Figures;

// One executor. Its methods may be called from several threads at once, as the Executor's may; what they change is the
// Executor's.
class Bridge {
public:
  explicit Bridge(Settings const &settings);
  ~Bridge();
  std::uint64_t enqueue(Ask const &ask) const;
  void cancel(std::uint64_t request) const;
  // Blocks until there is something or the time is over.
  rust::Vec<Said> await_responses(std::uint32_t timeout_ms) const;
  rust::Vec<Told> await_events(std::uint32_t timeout_ms) const;
  Figures figures() const;
  bool can_enqueue() const;

private:
  struct Inner;
  std::unique_ptr<Inner> inner;
};

std::unique_ptr<Bridge> open(Settings const &settings);
rust::String version();

} // namespace mainstay::trtllm
