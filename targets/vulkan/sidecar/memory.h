// Device memory under virtual addresses of our own.
//
// A pointer that TVM holds is no address of the GPU: it is a number from a 64-bit range that a block of memory owns, so
// that the host may add to it. Lookup turns it into a buffer and an offset. A block's range is never used again, so a
// pointer to memory that was freed is found out.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "loader.h"

namespace greencc::vulkan {

class Device;
class Stream;

// A range of virtual addresses, [begin, end).
struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  bool Overlaps(const Range& other) const { return begin < other.end && other.begin < end; }
};

// A VkBuffer over the whole of one VkDeviceMemory.
struct Block {
  VkDeviceMemory memory = VK_NULL_HANDLE;
  VkBuffer buffer = VK_NULL_HANDLE;
  std::uint64_t address = 0;
  std::uint64_t size = 0;
  // The host's view of it, null where the host has none.
  std::uint8_t* mapped = nullptr;
  // Reading through `mapped` is as fast as reading any memory.
  bool cached = false;
  // Free parts: size by offset.
  std::map<std::uint64_t, std::uint64_t> free;
};

// Which batch of a stream read or wrote an allocation last.
struct Use {
  Stream* stream = nullptr;
  std::uint64_t read = 0;
  std::uint64_t written = 0;
};

struct Allocation {
  Block* block = nullptr;
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  // One entry for each stream that has used it and may not be done.
  std::mutex mutex;
  std::vector<Use> uses;

  std::uint64_t address() const { return block->address + offset; }
  std::uint64_t end() const { return address() + size; }
};

// Where an address is.
struct Location {
  std::shared_ptr<Allocation> allocation;
  std::uint64_t address = 0;

  VkBuffer buffer() const { return allocation->block->buffer; }
  // Offset of the address in the buffer.
  std::uint64_t offset() const { return address - allocation->block->address; }
  // Bytes from the address to the end of its allocation.
  std::uint64_t remaining() const { return allocation->end() - address; }
  std::uint8_t* mapped() const {
    return allocation->block->mapped == nullptr ? nullptr : allocation->block->mapped + offset();
  }
  bool cached() const { return allocation->block->cached; }
};

class Memory {
 public:
  explicit Memory(Device& device);

  // Device number that `address` belongs to, or -1 when no device hands out such addresses.
  static int DeviceOf(std::uint64_t address);

  // Throws a RuntimeError with the numbers when there is no such memory.
  std::uint64_t Allocate(std::uint64_t bytes, std::uint64_t alignment);

  // The memory is used again when every stream that has used it is done.
  void Free(std::uint64_t address);

  // Throws a RuntimeError when the address belongs to no live allocation.
  Location Find(std::uint64_t address) const;

 private:
  struct Retired {
    std::shared_ptr<Allocation> allocation;
    std::vector<Use> uses;
  };

  std::shared_ptr<Allocation> Place(std::uint64_t size, std::uint64_t alignment);
  std::unique_ptr<Block> NewBlock(std::uint64_t size);
  void Collect();
  void Release(const Allocation& allocation);
  [[noreturn]] void ThrowOutOfMemory(std::uint64_t bytes) const;

  Device& device_;
  std::uint32_t type_ = 0;
  VkMemoryPropertyFlags flags_ = 0;
  std::uint64_t granularity_ = 256;
  std::uint64_t block_bytes_ = 0;
  std::uint64_t next_address_ = 0;
  mutable std::shared_mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<Allocation>> live_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Retired> retired_;
};

}  // namespace greencc::vulkan
