// A logical device: its queues, memory, streams, and whether it is still there.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "features.h"
#include "loader.h"
#include "memory.h"
#include "pipeline_cache.h"
#include "staging.h"
#include "statistics.h"

namespace greencc::vulkan {

class Stream;

// A queue of the device; Vulkan allows one thread at a time to submit to it.
struct Queue {
  VkQueue handle = VK_NULL_HANDLE;
  std::mutex mutex;
};

struct BufferMemory {
  VkBuffer buffer = VK_NULL_HANDLE;
  VkDeviceMemory memory = VK_NULL_HANDLE;
};

// Layouts that kernels with as many buffers and scalars share.
struct Layout {
  VkDescriptorSetLayout set = VK_NULL_HANDLE;
  VkPipelineLayout pipeline = VK_NULL_HANDLE;
  // Buffers are pushed into the command buffer; otherwise a descriptor set is allocated for each launch.
  bool push = false;
};

class Device {
 public:
  Device(const InstanceFunctions& instance, const PhysicalDevice& physical, int index);
  ~Device();
  Device(const Device&) = delete;

  int index() const { return index_; }
  // "vulkan:0 (llvmpipe)", the beginning of error messages.
  const std::string& name() const { return name_; }
  const PhysicalDevice& physical() const { return physical_; }
  const DeviceFunctions& vk() const { return vk_; }
  VkDevice handle() const { return handle_; }
  // The host maps the device's memory and copies by itself, unless GREENCC_VULKAN_UNIFIED=0.
  bool unified() const { return unified_; }
  Statistics& statistics() { return statistics_; }
  Memory& memory() { return *memory_; }
  StagingPool& staging() { return staging_; }
  PipelineCache& pipeline_cache() { return *pipeline_cache_; }

  // Throws a RuntimeError when `result` is a failure; remembers that the device was lost.
  void Check(VkResult result, const char* doing);
  // Throws a RuntimeError when the device was lost before.
  void CheckAlive() const;
  bool lost() const { return lost_; }

  // The first type with all of a set of properties, sets tried in order. Throws a RuntimeError when none fits.
  std::uint32_t ChooseMemoryType(const std::vector<VkMemoryPropertyFlags>& preferred) const;
  // A buffer with memory of its own; null handles when there is no memory.
  BufferMemory NewBuffer(std::uint64_t size, VkBufferUsageFlags usage, std::uint32_t memory_type);

  // A pool of timestamps, its values, and the time between value `first` and the next.
  VkQueryPool NewTimestamps(std::uint32_t count);
  std::vector<std::uint64_t> ReadTimestamps(VkQueryPool pool, std::uint32_t count);
  double NanosecondsBetween(const std::vector<std::uint64_t>& ticks, std::size_t first) const;

  const Layout& LayoutFor(std::uint32_t buffers, bool uniform, std::uint32_t push_constant_bytes);

  // The calling thread's own stream, which a null handle stands for.
  Stream& ThreadStream();
  Stream& NewStream();
  void Recycle(Stream& stream);
  // Submits and waits for everything that any stream has recorded; what fails is told to the stream's owner.
  void Settle();

 private:
  void SetUp(const InstanceFunctions& instance, std::uint32_t queues);
  std::vector<Stream*> AllStreams();

  const PhysicalDevice& physical_;
  int index_;
  std::string name_;
  VkDevice handle_ = VK_NULL_HANDLE;
  DeviceFunctions vk_;
  bool unified_;
  bool push_descriptors_;
  std::atomic<bool> lost_{false};
  Statistics statistics_;
  std::vector<std::unique_ptr<Queue>> queues_;
  std::unique_ptr<Memory> memory_;
  StagingPool staging_;
  std::unique_ptr<PipelineCache> pipeline_cache_;
  std::mutex layouts_mutex_;
  std::map<std::tuple<std::uint32_t, bool, std::uint32_t>, Layout> layouts_;
  std::mutex streams_mutex_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<Stream*> idle_streams_;
};

}  // namespace greencc::vulkan
