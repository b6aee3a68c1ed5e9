#include "staging.h"

#include <tvm/ffi/error.h>

#include <algorithm>

#include "device.h"
#include "errors.h"

namespace greencc::vulkan {

namespace {

// Chunks that are kept for the next batch; more are given back to the system.
constexpr std::size_t kMostIdle = 16;

constexpr VkMemoryPropertyFlags kMappable = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;

}  // namespace

std::unique_ptr<Chunk> StagingPool::Take(std::uint64_t bytes) {
  {
    std::lock_guard lock(mutex_);
    auto fits = std::find_if(idle_.begin(), idle_.end(), [&](const auto& chunk) { return chunk->size >= bytes; });
    if (fits != idle_.end()) {
      std::unique_ptr<Chunk> chunk = std::move(*fits);
      idle_.erase(fits);
      return chunk;
    }
  }
  auto chunk = std::make_unique<Chunk>();
  chunk->size = std::max(bytes, kChunk);
  std::uint32_t type = device_.ChooseMemoryType({kMappable | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, kMappable});
  BufferMemory made = device_.NewBuffer(
      chunk->size,
      VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT, type);
  if (made.buffer == VK_NULL_HANDLE) {
    TVM_FFI_THROW(RuntimeError) << device_.name() << ": out of host memory that the device can read: "
                                << Bytes(chunk->size) << " were asked for";
  }
  chunk->buffer = made.buffer;
  chunk->memory = made.memory;
  void* mapped = nullptr;
  device_.Check(device_.vk().vkMapMemory(device_.handle(), chunk->memory, 0, VK_WHOLE_SIZE, 0, &mapped),
                "mapping memory for transfers");
  chunk->mapped = static_cast<std::uint8_t*>(mapped);
  device_.statistics().staging_bytes += chunk->size;
  return chunk;
}

void StagingPool::GiveBack(std::unique_ptr<Chunk> chunk) {
  chunk->used = 0;
  {
    std::lock_guard lock(mutex_);
    if (idle_.size() < kMostIdle && chunk->size <= 4 * kChunk) {
      idle_.push_back(std::move(chunk));
      return;
    }
  }
  device_.statistics().staging_bytes -= chunk->size;
  device_.vk().vkDestroyBuffer(device_.handle(), chunk->buffer, nullptr);
  device_.vk().vkFreeMemory(device_.handle(), chunk->memory, nullptr);
}

}  // namespace greencc::vulkan
