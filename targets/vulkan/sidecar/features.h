// What a physical device is and can do.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "loader.h"

namespace greencc::vulkan {

// Optional features by the names that kernels.json uses in "requires".
struct Features {
  bool float16 = false;
  bool float64 = false;
  bool int8 = false;
  bool int16 = false;
  bool int64 = false;
  bool storage8 = false;
  bool storage16 = false;
  bool dot4 = false;
  bool matrix = false;
  // Addition to a float32 in a buffer as one step.
  bool float_atomics = false;
  // A kernel can ask that float32 keeps infinities, NaNs and the sign of zero.
  bool float_controls = false;
  bool memory_model = false;
  // A kernel can be compiled for a subgroup size of its choice.
  bool subgroup_size = false;
  bool full_subgroups = false;
  // Threads of a subgroup can read each other's values.
  bool subgroup_shuffle = false;
  bool push_descriptors = false;
  bool creation_feedback = false;

  // Whether `name` in "requires" stands for anything.
  static bool IsKnown(const std::string& name);
  // Whether the device has what `name` in "requires" stands for; false for names that are unknown.
  bool Has(const std::string& name) const;
};

// One shape of matrix product that the device multiplies in hardware, as VkComponentTypeKHR and VkScopeKHR say it.
struct MatrixShape {
  std::uint32_t m, n, k, a, b, c, result, scope;
};

struct PhysicalDevice {
  VkPhysicalDevice handle = VK_NULL_HANDLE;
  VkPhysicalDeviceProperties properties{};
  VkPhysicalDeviceMemoryProperties memory{};
  std::string driver;
  std::string driver_info;
  std::array<std::uint8_t, VK_UUID_SIZE> device_uuid{};
  std::array<std::uint8_t, VK_UUID_SIZE> driver_uuid{};
  std::uint64_t max_allocation = 0;
  std::uint32_t max_push_descriptors = 0;
  std::uint32_t subgroup = 0, subgroup_min = 0, subgroup_max = 0;
  VkSubgroupFeatureFlags subgroup_operations = 0;
  bool dot4_accelerated = false;
  Features features;
  std::vector<MatrixShape> matrices;
  // The queue family that kernels run on, and how many queues it has; 0 queues: the device can't compute.
  std::uint32_t family = 0;
  std::uint32_t queues = 0;
  std::uint32_t timestamp_bits = 0;

  const VkPhysicalDeviceLimits& limits() const { return properties.limits; }
  // Bytes of the largest heap that is local to the device.
  std::uint64_t heap_bytes() const;
  // The device's memory is the host's too, as with integrated GPUs.
  bool unified() const;
  // Why nothing can run on this device; empty when it can.
  std::string refusal() const;
};

PhysicalDevice DescribeDevice(const InstanceFunctions& vk, VkPhysicalDevice handle);

// Opens the device with every feature of `physical.features` and `queues` queues of its family.
VkDevice OpenDevice(const InstanceFunctions& vk, const PhysicalDevice& physical, std::uint32_t queues);

}  // namespace greencc::vulkan
