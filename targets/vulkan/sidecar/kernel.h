// A kernel that is compiled for a device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "kernel_table.h"

namespace greencc::vulkan {

// Bytes before the scalars in the push constants: the base workgroup (three 32-bit words) and padding.
constexpr std::uint32_t kScalarsOffset = 16;

class Kernel {
 public:
  // Throws a RuntimeError with the numbers when the device can't run it.
  Kernel(Device& device, const KernelEntry& entry, const std::vector<std::uint32_t>& code);
  ~Kernel();
  Kernel(const Kernel&) = delete;

  const std::string& name() const { return name_; }
  VkPipeline pipeline() const { return pipeline_; }
  const Layout& layout() const { return *layout_; }
  bool scalars_in_uniform() const { return scalars_in_uniform_; }
  std::uint32_t push_constant_bytes() const { return push_constant_bytes_; }

 private:
  void CheckDevice(const KernelEntry& entry) const;
  void CheckSubgroup(const KernelEntry& entry) const;
  void Compile(const KernelEntry& entry, const std::vector<std::uint32_t>& code);

  Device& device_;
  std::string name_;
  bool scalars_in_uniform_;
  std::uint32_t push_constant_bytes_;
  const Layout* layout_ = nullptr;
  VkPipeline pipeline_ = VK_NULL_HANDLE;
};

}  // namespace greencc::vulkan
