// Host memory that the device copies from and to, in chunks that batches borrow.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "loader.h"

namespace greencc::vulkan {

class Device;

// A mapped buffer, filled from its beginning.
struct Chunk {
  VkBuffer buffer = VK_NULL_HANDLE;
  VkDeviceMemory memory = VK_NULL_HANDLE;
  std::uint8_t* mapped = nullptr;
  std::uint64_t size = 0;
  std::uint64_t used = 0;
};

class StagingPool {
 public:
  // Bytes of the usual chunk, and the most that one batch should hold before it is submitted.
  static constexpr std::uint64_t kChunk = std::uint64_t{4} << 20;
  static constexpr std::uint64_t kMostOfBatch = std::uint64_t{64} << 20;

  explicit StagingPool(Device& device) : device_(device) {}

  // An empty chunk with room for `bytes`. Throws a RuntimeError when there is no memory.
  std::unique_ptr<Chunk> Take(std::uint64_t bytes);

  void GiveBack(std::unique_ptr<Chunk> chunk);

 private:

  Device& device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Chunk>> idle_;
};

}  // namespace greencc::vulkan
