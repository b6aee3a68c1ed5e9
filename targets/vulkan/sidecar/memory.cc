#include "memory.h"

#include <tvm/ffi/error.h>

#include <algorithm>

#include "device.h"
#include "errors.h"
#include "stream.h"

namespace greencc::vulkan {

namespace {

// Far above the addresses of any process's own memory. 2^52 bytes for each device.
constexpr std::uint64_t kFirstAddress = std::uint64_t{1} << 60;
constexpr int kDeviceShift = 52;
// Between two blocks, so that a pointer past the end of one is not in the next.
constexpr std::uint64_t kGap = std::uint64_t{1} << 20;
constexpr std::uint64_t kBlock = std::uint64_t{64} << 20;

std::uint64_t RoundUp(std::uint64_t value, std::uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

Memory::Memory(Device& device) : device_(device) {
  const PhysicalDevice& physical = device.physical();
  next_address_ = kFirstAddress + (static_cast<std::uint64_t>(device.index()) << kDeviceShift);
  granularity_ = std::max<std::uint64_t>(256, physical.limits().minStorageBufferOffsetAlignment);
  // Small devices get smaller blocks.
  block_bytes_ = std::min(kBlock, RoundUp(physical.heap_bytes() / 16 + 1, granularity_));
  type_ = device.ChooseMemoryType(device.unified()
                                      ? std::vector<VkMemoryPropertyFlags>{
                                            VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                                VK_MEMORY_PROPERTY_HOST_COHERENT_BIT |
                                                VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
                                            VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                                VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                                            VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0}
                                      : std::vector<VkMemoryPropertyFlags>{VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0});
  flags_ = physical.memory.memoryTypes[type_].propertyFlags;
}

int Memory::DeviceOf(std::uint64_t address) {
  return address < kFirstAddress ? -1 : static_cast<int>((address - kFirstAddress) >> kDeviceShift);
}

std::uint64_t Memory::Allocate(std::uint64_t bytes, std::uint64_t alignment) {
  device_.CheckAlive();
  const PhysicalDevice& physical = device_.physical();
  std::uint64_t most = std::min(physical.max_allocation, physical.heap_bytes());
  if (bytes > most) {
    TVM_FFI_THROW(RuntimeError) << device_.name() << ": " << Bytes(bytes) << " were asked for at once; the device "
                                << "gives at most " << Bytes(most) << " (" << most << " bytes)";
  }
  alignment = std::max(alignment, granularity_);
  std::uint64_t size = RoundUp(std::max<std::uint64_t>(bytes, 1), granularity_);
  std::shared_ptr<Allocation> allocation;
  {
    std::lock_guard lock(mutex_);
    Collect();
    allocation = Place(size, alignment);
  }
  if (allocation == nullptr) {
    // What was freed may only wait for kernels to finish.
    device_.Settle();
    std::lock_guard lock(mutex_);
    Collect();
    allocation = Place(size, alignment);
    if (allocation == nullptr) ThrowOutOfMemory(bytes);
  }
  std::lock_guard lock(mutex_);
  live_.emplace(allocation->address(), allocation);
  device_.statistics().Allocated(size);
  return allocation->address();
}

std::shared_ptr<Allocation> Memory::Place(std::uint64_t size, std::uint64_t alignment) {
  // Anything larger than half a block gets one of its own, exactly as large: no part of a block is left over.
  bool alone = size > block_bytes_ / 2;
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (const auto& block : blocks_) {
      for (auto part = block->free.begin(); part != block->free.end(); ++part) {
        std::uint64_t begin = RoundUp(block->address + part->first, alignment) - block->address;
        std::uint64_t end = part->first + part->second;
        if (begin > end || end - begin < size) continue;
        std::uint64_t before = begin - part->first, after = end - begin - size, first = part->first;
        block->free.erase(part);
        if (before != 0) block->free.emplace(first, before);
        if (after != 0) block->free.emplace(begin + size, after);
        auto allocation = std::make_shared<Allocation>();
        allocation->block = block.get();
        allocation->offset = begin;
        allocation->size = size;
        return allocation;
      }
    }
    if (attempt != 0) break;
    std::unique_ptr<Block> block = NewBlock(alone ? size : block_bytes_);
    if (block == nullptr && !alone) block = NewBlock(size);
    if (block == nullptr) return nullptr;
    next_address_ = RoundUp(next_address_, std::max(alignment, kGap));
    block->address = next_address_;
    next_address_ += block->size + kGap;
    blocks_.push_back(std::move(block));
  }
  return nullptr;
}

std::unique_ptr<Block> Memory::NewBlock(std::uint64_t size) {
  const DeviceFunctions& vk = device_.vk();
  auto block = std::make_unique<Block>();
  block->size = size;
  BufferMemory made = device_.NewBuffer(
      size, VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT,
      type_);
  if (made.buffer == VK_NULL_HANDLE) return nullptr;
  block->buffer = made.buffer;
  block->memory = made.memory;
  constexpr VkMemoryPropertyFlags kMappable =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  if (device_.unified() && (flags_ & kMappable) == kMappable) {
    void* mapped = nullptr;
    if (vk.vkMapMemory(device_.handle(), block->memory, 0, VK_WHOLE_SIZE, 0, &mapped) == VK_SUCCESS) {
      block->mapped = static_cast<std::uint8_t*>(mapped);
      block->cached = (flags_ & VK_MEMORY_PROPERTY_HOST_CACHED_BIT) != 0;
    }
  }
  block->free.emplace(0, size);
  device_.statistics().reserved_bytes += size;
  return block;
}

void Memory::Free(std::uint64_t address) {
  std::lock_guard lock(mutex_);
  auto found = live_.find(address);
  if (found == live_.end()) {
    TVM_FFI_THROW(RuntimeError) << device_.name() << ": memory is freed that was not allocated, or twice";
  }
  std::shared_ptr<Allocation> allocation = std::move(found->second);
  live_.erase(found);
  device_.statistics().allocated_bytes -= allocation->size;
  std::vector<Use> uses;
  {
    std::lock_guard uses_lock(allocation->mutex);
    uses = std::move(allocation->uses);
  }
  retired_.push_back({std::move(allocation), std::move(uses)});
  Collect();
}

void Memory::Collect() {
  auto done = [](const Retired& retired) {
    return std::all_of(retired.uses.begin(), retired.uses.end(), [](const Use& use) {
      return use.stream->completed() >= std::max(use.read, use.written);
    });
  };
  auto kept = std::stable_partition(retired_.begin(), retired_.end(), [&](const auto& each) { return !done(each); });
  for (auto each = kept; each != retired_.end(); ++each) Release(*each->allocation);
  retired_.erase(kept, retired_.end());
}

void Memory::Release(const Allocation& allocation) {
  Block& block = *allocation.block;
  auto [part, inserted] = block.free.emplace(allocation.offset, allocation.size);
  auto next = std::next(part);
  if (next != block.free.end() && part->first + part->second == next->first) {
    part->second += next->second;
    block.free.erase(next);
  }
  if (part != block.free.begin()) {
    auto previous = std::prev(part);
    if (previous->first + previous->second == part->first) {
      previous->second += part->second;
      block.free.erase(part);
      part = previous;
    }
  }
  bool empty = part->second == block.size;
  if (!empty) return;
  // One empty block of the usual size is kept for the next allocation.
  bool keep = block.size == block_bytes_ &&
              std::none_of(blocks_.begin(), blocks_.end(), [&](const auto& other) {
                return other.get() != &block && other->size == block_bytes_ && other->free.size() == 1 &&
                       other->free.begin()->second == other->size;
              });
  if (keep) return;
  device_.vk().vkDestroyBuffer(device_.handle(), block.buffer, nullptr);
  device_.vk().vkFreeMemory(device_.handle(), block.memory, nullptr);
  device_.statistics().reserved_bytes -= block.size;
  blocks_.erase(std::find_if(blocks_.begin(), blocks_.end(), [&](const auto& each) { return each.get() == &block; }));
}

Location Memory::Find(std::uint64_t address) const {
  std::shared_lock lock(mutex_);
  auto next = live_.upper_bound(address);
  if (next != live_.begin()) {
    const std::shared_ptr<Allocation>& allocation = std::prev(next)->second;
    if (address < allocation->end()) return {allocation, address};
  }
  TVM_FFI_THROW(RuntimeError) << device_.name() << ": a pointer is not to memory of this device, or the memory was "
                              << "freed";
  TVM_FFI_UNREACHABLE();
}

void Memory::ThrowOutOfMemory(std::uint64_t bytes) const {
  TVM_FFI_THROW(RuntimeError) << device_.name() << ": out of device memory: " << Bytes(bytes)
                              << " were asked for; this process holds "
                              << Bytes(device_.statistics().allocated_bytes) << " of the device's "
                              << Bytes(device_.physical().heap_bytes());
  TVM_FFI_UNREACHABLE();
}

}  // namespace greencc::vulkan
