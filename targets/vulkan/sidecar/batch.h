// Commands that are submitted together, and everything that must live until the device has done them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "loader.h"
#include "memory.h"
#include "profile.h"
#include "staging.h"

namespace greencc::vulkan {

class Device;
class Kernel;

// Bytes that the host gets when the batch is done.
struct Download {
  void* host = nullptr;
  std::uint64_t bytes = 0;
  // Where they are in the device's memory, while they are to be read there; `source` stays the allocation's.
  Location source;
  // Where the host reads them.
  const std::uint8_t* mapped = nullptr;
  // Not copied to staging memory: read in place, so nothing may write there before.
  bool in_place = false;

  Range range() const { return {source.address, source.address + bytes}; }
};

// A part of a staging chunk.
struct Staged {
  VkBuffer buffer = VK_NULL_HANDLE;
  std::uint64_t offset = 0;
  std::uint8_t* mapped = nullptr;
};

class Batch {
 public:
  // Batches are made once and used again; their objects live as long as the device.
  explicit Batch(Device& device);
  Batch(const Batch&) = delete;

  VkCommandBuffer commands() const { return commands_; }
  VkFence fence() const { return fence_; }

  // Begins to record as number `number` of its stream.
  void Begin(std::uint64_t number);
  void End();

  // `bytes` of staging memory at a multiple of `alignment`.
  Staged Stage(std::uint64_t bytes, std::uint64_t alignment);
  VkDescriptorSet NewSet(VkDescriptorSetLayout layout);
  // Writes a timestamp when everything before is done, where there is room for one. Returns whether there was.
  bool Timestamp();
  // Notes that the last two timestamps are around `kernel`.
  void Timed(const std::string& kernel) { timed_.push_back({kernel, timestamps_ - 2}); }

  // Called when the device is done: downloads are delivered, times noted, everything borrowed is given back.
  void Retire(Profile* profile);
  // The same after a failure: nothing is delivered.
  void Discard();

  std::uint64_t number = 0;
  std::uint32_t launches = 0;
  std::uint64_t staged_bytes = 0;
  // It was not submitted: its fence will never be signaled.
  bool failed = false;
  std::vector<Download> downloads;
  // Kernels that must not be destroyed yet.
  std::vector<std::shared_ptr<const Kernel>> kernels;

 private:
  struct TimedKernel {
    std::string kernel;
    std::uint32_t first;
  };

  void ReadTimes(Profile* profile);

  Device& device_;
  VkCommandPool pool_ = VK_NULL_HANDLE;
  VkCommandBuffer commands_ = VK_NULL_HANDLE;
  VkFence fence_ = VK_NULL_HANDLE;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::vector<VkDescriptorPool> descriptor_pools_;
  std::size_t descriptor_pool_ = 0;
  VkQueryPool queries_ = VK_NULL_HANDLE;
  std::uint32_t timestamps_ = 0;
  std::vector<TimedKernel> timed_;
};

}  // namespace greencc::vulkan
