#include "device.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "errors.h"
#include "instance.h"
#include "stream.h"

namespace greencc::vulkan {

namespace {

// More than a few threads at once do not make a GPU faster.
constexpr std::uint32_t kMostQueues = 4;

bool Off(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "0";
}

// A thread's streams, given back when the thread ends: by then all of their work must be done, as nobody is left to
// ask for it.
struct ThreadStreams {
  std::map<Device*, Stream*> streams;
  ~ThreadStreams() {
    if (Instance::Forked()) return;
    for (auto& [device, stream] : streams) {
      stream->Finish();
      device->Recycle(*stream);
    }
  }
};

thread_local ThreadStreams thread_streams;

}  // namespace

Device::Device(const InstanceFunctions& instance, const PhysicalDevice& physical, int index)
    : physical_(physical),
      index_(index),
      name_("vulkan:" + std::to_string(index) + " (" + physical.properties.deviceName + ")"),
      unified_(physical.unified() && !Off("GREENCC_VULKAN_UNIFIED")),
      push_descriptors_(physical.features.push_descriptors && !Off("GREENCC_VULKAN_PUSH_DESCRIPTORS")),
      staging_(*this) {
  std::string refusal = physical.refusal();
  if (!refusal.empty()) TVM_FFI_THROW(RuntimeError) << name_ << " can't be used: " << refusal;
  std::uint32_t queues = std::min(physical.queues, kMostQueues);
  handle_ = OpenDevice(instance, physical, queues);
  try {
    SetUp(instance, queues);
  } catch (...) {
    // Nobody else knows of it.
    auto destroy =
        reinterpret_cast<PFN_vkDestroyDevice>(instance.vkGetDeviceProcAddr(handle_, "vkDestroyDevice"));
    if (destroy != nullptr) destroy(handle_, nullptr);
    throw;
  }
}

void Device::SetUp(const InstanceFunctions& instance, std::uint32_t queues) {
  vk_ = LoadDeviceFunctions(instance, handle_);
  push_descriptors_ = push_descriptors_ && vk_.vkCmdPushDescriptorSetKHR != nullptr;
  for (std::uint32_t i = 0; i < queues; ++i) {
    queues_.push_back(std::make_unique<Queue>());
    vk_.vkGetDeviceQueue(handle_, physical_.family, i, &queues_.back()->handle);
  }
  memory_ = std::make_unique<Memory>(*this);
  pipeline_cache_ = std::make_unique<PipelineCache>(*this);
}

Device::~Device() = default;

void Device::Check(VkResult result, const char* doing) {
  if (result >= 0) return;
  if (result == VK_ERROR_DEVICE_LOST) {
    lost_ = true;
    TVM_FFI_THROW(RuntimeError) << name_ << " was lost while " << doing
                                << ": its driver was reset (a kernel that hangs or reads outside its memory does "
                                   "that) or it was removed; this process can't use it any more, start another";
  }
  TVM_FFI_THROW(RuntimeError) << name_ << ": " << doing << " failed: " << ResultName(result);
}

void Device::CheckAlive() const {
  if (lost_) {
    TVM_FFI_THROW(RuntimeError) << name_ << " was lost earlier in this process, which can't use it any more: start "
                                << "another";
  }
}

std::uint32_t Device::ChooseMemoryType(const std::vector<VkMemoryPropertyFlags>& preferred) const {
  for (VkMemoryPropertyFlags wanted : preferred) {
    for (std::uint32_t i = 0; i < physical_.memory.memoryTypeCount; ++i) {
      if ((physical_.memory.memoryTypes[i].propertyFlags & wanted) == wanted) return i;
    }
  }
  TVM_FFI_THROW(RuntimeError) << name_ << " has no memory that the host can write";
  TVM_FFI_UNREACHABLE();
}

BufferMemory Device::NewBuffer(std::uint64_t size, VkBufferUsageFlags usage, std::uint32_t memory_type) {
  auto info = Structure<VkBufferCreateInfo>(VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO);
  info.size = size;
  info.usage = usage;
  info.sharingMode = VK_SHARING_MODE_EXCLUSIVE;
  BufferMemory made;
  VkResult result = vk_.vkCreateBuffer(handle_, &info, nullptr, &made.buffer);
  if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY) return {};
  Check(result, "making a buffer");
  VkMemoryRequirements needs;
  vk_.vkGetBufferMemoryRequirements(handle_, made.buffer, &needs);
  auto allocation = Structure<VkMemoryAllocateInfo>(VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO);
  allocation.allocationSize = needs.size;
  allocation.memoryTypeIndex = memory_type;
  // The type that was chosen by its properties may be none of those that a buffer can have.
  for (std::uint32_t i = 0; (needs.memoryTypeBits >> allocation.memoryTypeIndex & 1) == 0 && i < 32; ++i) {
    if ((needs.memoryTypeBits >> i & 1) != 0) allocation.memoryTypeIndex = i;
  }
  result = vk_.vkAllocateMemory(handle_, &allocation, nullptr, &made.memory);
  if (result >= 0) result = vk_.vkBindBufferMemory(handle_, made.buffer, made.memory, 0);
  if (result >= 0) return made;
  vk_.vkDestroyBuffer(handle_, made.buffer, nullptr);
  if (made.memory != VK_NULL_HANDLE) vk_.vkFreeMemory(handle_, made.memory, nullptr);
  if (result != VK_ERROR_OUT_OF_DEVICE_MEMORY && result != VK_ERROR_OUT_OF_HOST_MEMORY &&
      result != VK_ERROR_TOO_MANY_OBJECTS) {
    Check(result, "allocating memory");
  }
  return {};
}

VkQueryPool Device::NewTimestamps(std::uint32_t count) {
  auto info = Structure<VkQueryPoolCreateInfo>(VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO);
  info.queryType = VK_QUERY_TYPE_TIMESTAMP;
  info.queryCount = count;
  VkQueryPool pool = VK_NULL_HANDLE;
  Check(vk_.vkCreateQueryPool(handle_, &info, nullptr, &pool), "making a query pool");
  return pool;
}

std::vector<std::uint64_t> Device::ReadTimestamps(VkQueryPool pool, std::uint32_t count) {
  std::vector<std::uint64_t> ticks(count);
  Check(vk_.vkGetQueryPoolResults(handle_, pool, 0, count, ticks.size() * sizeof(ticks[0]), ticks.data(),
                                  sizeof(ticks[0]), VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
        "reading timestamps");
  return ticks;
}

double Device::NanosecondsBetween(const std::vector<std::uint64_t>& ticks, std::size_t first) const {
  // Counters of fewer than 64 bits wrap around.
  std::uint32_t bits = physical_.timestamp_bits;
  std::uint64_t mask = bits >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
  return static_cast<double>((ticks[first + 1] - ticks[first]) & mask) *
         static_cast<double>(physical_.limits().timestampPeriod);
}

const Layout& Device::LayoutFor(std::uint32_t buffers, bool uniform, std::uint32_t push_constant_bytes) {
  std::lock_guard lock(layouts_mutex_);
  auto key = std::make_tuple(buffers, uniform, push_constant_bytes);
  if (auto found = layouts_.find(key); found != layouts_.end()) return found->second;
  std::vector<VkDescriptorSetLayoutBinding> bindings;
  for (std::uint32_t i = 0; i < buffers + (uniform ? 1 : 0); ++i) {
    VkDescriptorType type = i < buffers ? VK_DESCRIPTOR_TYPE_STORAGE_BUFFER : VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
    bindings.push_back({i, type, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
  }
  Layout layout;
  layout.push = push_descriptors_ && bindings.size() <= physical_.max_push_descriptors;
  auto set = Structure<VkDescriptorSetLayoutCreateInfo>(VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO);
  if (layout.push) set.flags = VK_DESCRIPTOR_SET_LAYOUT_CREATE_PUSH_DESCRIPTOR_BIT_KHR;
  set.bindingCount = static_cast<std::uint32_t>(bindings.size());
  set.pBindings = bindings.data();
  Check(vk_.vkCreateDescriptorSetLayout(handle_, &set, nullptr, &layout.set), "making a kernel's layout");
  VkPushConstantRange range{VK_SHADER_STAGE_COMPUTE_BIT, 0, push_constant_bytes};
  auto pipeline = Structure<VkPipelineLayoutCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO);
  pipeline.setLayoutCount = 1;
  pipeline.pSetLayouts = &layout.set;
  pipeline.pushConstantRangeCount = 1;
  pipeline.pPushConstantRanges = &range;
  Check(vk_.vkCreatePipelineLayout(handle_, &pipeline, nullptr, &layout.pipeline), "making a kernel's layout");
  return layouts_.emplace(key, layout).first->second;
}

Stream& Device::ThreadStream() {
  Stream*& stream = thread_streams.streams[this];
  if (stream == nullptr) stream = &NewStream();
  return *stream;
}

Stream& Device::NewStream() {
  std::lock_guard lock(streams_mutex_);
  if (!idle_streams_.empty()) {
    Stream* stream = idle_streams_.back();
    idle_streams_.pop_back();
    return *stream;
  }
  Queue& queue = *queues_[streams_.size() % queues_.size()];
  streams_.push_back(std::make_unique<Stream>(*this, queue));
  return *streams_.back();
}

void Device::Recycle(Stream& stream) {
  std::lock_guard lock(streams_mutex_);
  idle_streams_.push_back(&stream);
}

void Device::Settle() {
  for (Stream* stream : AllStreams()) stream->Settle();
}

std::vector<Stream*> Device::AllStreams() {
  std::lock_guard lock(streams_mutex_);
  std::vector<Stream*> all;
  for (const auto& stream : streams_) all.push_back(stream.get());
  return all;
}

}  // namespace greencc::vulkan
