// SPDX-License-Identifier: Apache-2.0
//
// What a test tells the double: `key value` lines of double.conf in the engine's folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>

namespace trtllm_double {

class Settings {
public:
  explicit Settings(std::filesystem::path const &folder) {
    std::ifstream file(folder / "double.conf");
    if (!file) {
      throw std::runtime_error("no double.conf in " + folder.string());
    }
    std::string key;
    std::int64_t value = 0;
    while (file >> key >> value) {
      values[key] = value;
    }
  }

  std::int64_t get(std::string const &key, std::int64_t otherwise = 0) const {
    auto const found = values.find(key);
    return found == values.end() ? otherwise : found->second;
  }

  // Whether the `nth` time of something is the one at which this fault is due.
  bool is_due(std::string const &fault, std::int64_t nth) const { return get(fault) == nth && nth > 0; }

private:
  std::map<std::string, std::int64_t> values;
};

} // namespace trtllm_double
