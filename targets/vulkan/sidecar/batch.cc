#include "batch.h"

#include <cstring>

#include "device.h"

namespace greencc::vulkan {

namespace {

constexpr std::uint32_t kTimestamps = 1024;
constexpr std::uint32_t kSetsOfPool = 256;

}  // namespace

Batch::Batch(Device& device) : device_(device) {
  const DeviceFunctions& vk = device.vk();
  auto pool = Structure<VkCommandPoolCreateInfo>(VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO);
  pool.flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT;
  pool.queueFamilyIndex = device.physical().family;
  device.Check(vk.vkCreateCommandPool(device.handle(), &pool, nullptr, &pool_), "making a command pool");
  auto buffer = Structure<VkCommandBufferAllocateInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO);
  buffer.commandPool = pool_;
  buffer.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  buffer.commandBufferCount = 1;
  device.Check(vk.vkAllocateCommandBuffers(device.handle(), &buffer, &commands_), "making a command buffer");
  auto fence = Structure<VkFenceCreateInfo>(VK_STRUCTURE_TYPE_FENCE_CREATE_INFO);
  device.Check(vk.vkCreateFence(device.handle(), &fence, nullptr, &fence_), "making a fence");
}

void Batch::Begin(std::uint64_t as) {
  number = as;
  auto info = Structure<VkCommandBufferBeginInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO);
  info.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  device_.Check(device_.vk().vkBeginCommandBuffer(commands_, &info), "beginning to record");
}

void Batch::End() {
  if (!downloads.empty()) {
    // Makes what the device wrote visible to the host.
    auto barrier = Structure<VkMemoryBarrier>(VK_STRUCTURE_TYPE_MEMORY_BARRIER);
    barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    barrier.dstAccessMask = VK_ACCESS_HOST_READ_BIT;
    device_.vk().vkCmdPipelineBarrier(commands_,
                                      VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                                      VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  }
  device_.Check(device_.vk().vkEndCommandBuffer(commands_), "recording");
}

Staged Batch::Stage(std::uint64_t bytes, std::uint64_t alignment) {
  auto begin = [&](const Chunk& chunk) { return (chunk.used + alignment - 1) / alignment * alignment; };
  if (chunks_.empty() || begin(*chunks_.back()) + bytes > chunks_.back()->size) {
    chunks_.push_back(device_.staging().Take(bytes));
  }
  Chunk& chunk = *chunks_.back();
  std::uint64_t offset = begin(chunk);
  chunk.used = offset + bytes;
  staged_bytes += bytes;
  return {chunk.buffer, offset, chunk.mapped + offset};
}

VkDescriptorSet Batch::NewSet(VkDescriptorSetLayout layout) {
  const DeviceFunctions& vk = device_.vk();
  for (;; ++descriptor_pool_) {
    bool fresh = descriptor_pool_ == descriptor_pools_.size();
    if (fresh) {
      const VkDescriptorPoolSize sizes[] = {{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, kSetsOfPool * 8},
                                            {VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, kSetsOfPool}};
      auto info = Structure<VkDescriptorPoolCreateInfo>(VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO);
      info.maxSets = kSetsOfPool;
      info.poolSizeCount = 2;
      info.pPoolSizes = sizes;
      VkDescriptorPool pool = VK_NULL_HANDLE;
      device_.Check(vk.vkCreateDescriptorPool(device_.handle(), &info, nullptr, &pool), "making a descriptor pool");
      descriptor_pools_.push_back(pool);
    }
    auto info = Structure<VkDescriptorSetAllocateInfo>(VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO);
    info.descriptorPool = descriptor_pools_[descriptor_pool_];
    info.descriptorSetCount = 1;
    info.pSetLayouts = &layout;
    VkDescriptorSet set = VK_NULL_HANDLE;
    VkResult result = vk.vkAllocateDescriptorSets(device_.handle(), &info, &set);
    if (result == VK_SUCCESS) return set;
    bool exhausted = result == VK_ERROR_OUT_OF_POOL_MEMORY || result == VK_ERROR_FRAGMENTED_POOL;
    if (!exhausted || fresh) device_.Check(result, "allocating a descriptor set");
  }
}

bool Batch::Timestamp() {
  if (device_.physical().timestamp_bits == 0 || timestamps_ == kTimestamps) return false;
  const DeviceFunctions& vk = device_.vk();
  if (queries_ == VK_NULL_HANDLE) queries_ = device_.NewTimestamps(kTimestamps);
  if (timestamps_ == 0) vk.vkCmdResetQueryPool(commands_, queries_, 0, kTimestamps);
  vk.vkCmdWriteTimestamp(commands_, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, queries_, timestamps_++);
  return true;
}

void Batch::Retire(Profile* profile) {
  for (const Download& download : downloads) std::memcpy(download.host, download.mapped, download.bytes);
  if (timestamps_ != 0) ReadTimes(profile);
  Discard();
}

void Batch::Discard() {
  downloads.clear();
  kernels.clear();
  timed_.clear();
  timestamps_ = 0;
  launches = 0;
  staged_bytes = 0;
  failed = false;
  for (auto& chunk : chunks_) device_.staging().GiveBack(std::move(chunk));
  chunks_.clear();
  for (VkDescriptorPool pool : descriptor_pools_) device_.vk().vkResetDescriptorPool(device_.handle(), pool, 0);
  descriptor_pool_ = 0;
  // Failures show up in the next call that can report them.
  device_.vk().vkResetCommandPool(device_.handle(), pool_, 0);
  device_.vk().vkResetFences(device_.handle(), 1, &fence_);
}

void Batch::ReadTimes(Profile* profile) {
  std::vector<std::uint64_t> ticks = device_.ReadTimestamps(queries_, timestamps_);
  for (const TimedKernel& each : timed_) {
    profile->Add(each.kernel, device_.NanosecondsBetween(ticks, each.first) * 1e-6);
  }
}

}  // namespace greencc::vulkan
