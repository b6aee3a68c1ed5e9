// kernels.json: what the kernels of an artifact take and need.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace greencc::vulkan {

// How a scalar lies in its slot: integers of any width as 64 bits, float64 as itself, narrower floats as float32.
enum class ScalarType { kInteger, kFloat32, kFloat64 };

struct Parameter {
  bool buffer = false;
  // Of a buffer.
  bool reads = false;
  bool writes = false;
  std::optional<std::uint64_t> bytes;
  // Of a scalar.
  ScalarType type = ScalarType::kInteger;
  // An index or a size, which the shader computes with in 32 bits.
  bool is_index = false;
};

// What a trailing argument of a launch is: groups or threads along an axis, or bytes of dynamic shared memory.
enum class LaunchTag { kGroups, kThreads, kSharedBytes };

struct LaunchArgument {
  LaunchTag tag = LaunchTag::kGroups;
  int axis = 0;
};

struct KernelEntry {
  std::string name;
  std::vector<Parameter> parameters;
  std::vector<LaunchArgument> launch;
  std::uint32_t workgroup[3] = {1, 1, 1};
  std::uint64_t code_offset = 0;
  std::uint64_t code_size = 0;
  std::vector<std::string> required;
  std::optional<std::uint32_t> subgroup;
  std::uint64_t shared_bytes = 0;
  bool scalars_in_uniform = false;
  // Of a model with sizes that nothing bounds: a buffer of unknown size is a tensor that has its memory for itself.
  bool unbounded = false;

  std::uint32_t buffers() const;
  std::uint32_t scalars() const;
};

// Reads and checks the text; every code range lies within `code_bytes`.
// Throws a ValueError that says which field of which kernel is wrong.
std::vector<KernelEntry> ReadKernelTable(const std::string& json, std::uint64_t code_bytes);

}  // namespace greencc::vulkan
