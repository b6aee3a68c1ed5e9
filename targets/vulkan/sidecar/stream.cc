#include "stream.h"

#include <algorithm>
#include <cstring>

#include "device.h"
#include "kernel.h"

namespace greencc::vulkan {

namespace {

// A large upload goes through staging memory in parts.
constexpr std::uint64_t kUploadPart = std::uint64_t{16} << 20;

constexpr VkPipelineStageFlags kStages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;

Range RangeOf(const Location& location, std::uint64_t bytes) { return {location.address, location.address + bytes}; }

// Weights are read by many threads in a program's life. What was not computed is of interest until it is written.
void ForgetPast(std::vector<Use>& uses, bool written) {
  auto is_past = [&](const Use& use) {
    return use.stream->completed() >= std::max(use.read, use.written) &&
           (written || use.stream->FailureOf(use.written) == nullptr);
  };
  uses.erase(std::remove_if(uses.begin(), uses.end(), is_past), uses.end());
}

bool OverlapsHost(const Download& download, const void* host, std::uint64_t bytes) {
  auto a = reinterpret_cast<std::uintptr_t>(download.host), b = reinterpret_cast<std::uintptr_t>(host);
  return a < b + bytes && b < a + download.bytes;
}

}  // namespace

void Stream::Run(const Launch& launch) {
  Ranges reads, writes;
  for (const BoundBuffer& buffer : launch.buffers) {
    WaitForOthers(buffer.location, buffer.reads, buffer.writes);
    if (buffer.reads) reads.push_back(RangeOf(buffer.location, buffer.bytes));
    if (buffer.writes) writes.push_back(RangeOf(buffer.location, buffer.bytes));
  }
  std::lock_guard lock(mutex_);
  ThrowKept();
  Guard(reads, writes);
  Batch& batch = Recording();
  batch.kernels.push_back(launch.kernel);
  device_.vk().vkCmdBindPipeline(batch.commands(), VK_PIPELINE_BIND_POINT_COMPUTE, launch.kernel->pipeline());
  BindBuffers(launch);
  bool timed = Profile::on();
  if (timed) Barrier(false);
  timed = timed && batch.Timestamp();
  Dispatch(launch);
  if (timed && batch.Timestamp()) batch.Timed(launch.kernel->name());
  for (const BoundBuffer& buffer : launch.buffers) Mark(buffer.location, buffer.reads, buffer.writes);
  hazards_.Add(reads, writes);
  ++batch.launches;
  SubmitIfLong();
}

void Stream::BindBuffers(const Launch& launch) {
  const DeviceFunctions& vk = device_.vk();
  const Kernel& kernel = *launch.kernel;
  Batch& batch = *recording_;
  std::size_t count = launch.buffers.size() + (kernel.scalars_in_uniform() ? 1 : 0);
  std::vector<VkDescriptorBufferInfo> infos(count);
  std::vector<VkWriteDescriptorSet> writes(
      count, Structure<VkWriteDescriptorSet>(VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET));
  for (std::size_t i = 0; i < launch.buffers.size(); ++i) {
    const BoundBuffer& buffer = launch.buffers[i];
    infos[i] = {buffer.location.buffer(), buffer.location.offset(), buffer.bytes};
  }
  if (kernel.scalars_in_uniform()) {
    std::uint64_t bytes = launch.scalars.size() * sizeof(launch.scalars[0]);
    Staged staged = batch.Stage(bytes, device_.physical().limits().minUniformBufferOffsetAlignment);
    std::memcpy(staged.mapped, launch.scalars.data(), bytes);
    infos.back() = {staged.buffer, staged.offset, bytes};
  }
  if (count == 0) return;
  VkDescriptorSet set = kernel.layout().push ? VK_NULL_HANDLE : batch.NewSet(kernel.layout().set);
  for (std::size_t i = 0; i < count; ++i) {
    writes[i].dstSet = set;
    writes[i].dstBinding = static_cast<std::uint32_t>(i);
    writes[i].descriptorCount = 1;
    writes[i].descriptorType =
        i < launch.buffers.size() ? VK_DESCRIPTOR_TYPE_STORAGE_BUFFER : VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
    writes[i].pBufferInfo = &infos[i];
  }
  auto total = static_cast<std::uint32_t>(count);
  if (kernel.layout().push) {
    vk.vkCmdPushDescriptorSetKHR(batch.commands(), VK_PIPELINE_BIND_POINT_COMPUTE, kernel.layout().pipeline, 0, total,
                                 writes.data());
    return;
  }
  vk.vkUpdateDescriptorSets(device_.handle(), total, writes.data(), 0, nullptr);
  vk.vkCmdBindDescriptorSets(batch.commands(), VK_PIPELINE_BIND_POINT_COMPUTE, kernel.layout().pipeline, 0, 1, &set, 0,
                             nullptr);
}

void Stream::Dispatch(const Launch& launch) {
  const DeviceFunctions& vk = device_.vk();
  const Kernel& kernel = *launch.kernel;
  VkCommandBuffer commands = recording_->commands();
  const std::uint32_t* most = device_.physical().limits().maxComputeWorkGroupCount;
  std::vector<std::uint8_t> constants(kernel.push_constant_bytes());
  if (!kernel.scalars_in_uniform() && !launch.scalars.empty()) {
    std::memcpy(constants.data() + kScalarsOffset, launch.scalars.data(),
                launch.scalars.size() * sizeof(launch.scalars[0]));
  }
  // The parts of a split grid are one kernel's: no barrier between them.
  std::uint64_t base[3];
  for (base[2] = 0; base[2] < launch.groups[2]; base[2] += most[2]) {
    for (base[1] = 0; base[1] < launch.groups[1]; base[1] += most[1]) {
      for (base[0] = 0; base[0] < launch.groups[0]; base[0] += most[0]) {
        std::uint32_t first[3], size[3];
        for (int axis = 0; axis < 3; ++axis) {
          first[axis] = static_cast<std::uint32_t>(base[axis]);
          size[axis] = std::min(launch.groups[axis] - first[axis], most[axis]);
        }
        std::memcpy(constants.data(), first, sizeof(first));
        vk.vkCmdPushConstants(commands, kernel.layout().pipeline, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                              static_cast<std::uint32_t>(constants.size()), constants.data());
        vk.vkCmdDispatch(commands, size[0], size[1], size[2]);
        device_.statistics().dispatches += 1;
      }
    }
  }
}

void Stream::Upload(const void* from, const Location& to, std::uint64_t bytes) {
  WaitForOthers(to, false, true);
  std::lock_guard lock(mutex_);
  ThrowKept();
  device_.statistics().uploads += 1;
  device_.statistics().upload_bytes += bytes;
  bool awaited = recording_ != nullptr && std::any_of(recording_->downloads.begin(), recording_->downloads.end(),
                                                      [&](const auto& d) { return OverlapsHost(d, from, bytes); });
  for (const auto& batch : in_flight_) {
    awaited = awaited || std::any_of(batch->downloads.begin(), batch->downloads.end(),
                                     [&](const auto& d) { return OverlapsHost(d, from, bytes); });
  }
  if (awaited) {
    Submit();
    WaitAndRetire(in_flight_.size());
  }
  RetireDone();
  bool idle = recording_ == nullptr && in_flight_.empty();
  if (idle && to.mapped() != nullptr) {
    std::memcpy(to.mapped(), from, bytes);
    std::lock_guard uses_lock(to.allocation->mutex);
    ForgetPast(to.allocation->uses, true);
    return;
  }
  const auto* data = static_cast<const std::uint8_t*>(from);
  Guard({}, {RangeOf(to, bytes)});
  for (std::uint64_t done = 0; done < bytes;) {
    Batch& batch = Recording();
    std::uint64_t part = std::min(bytes - done, kUploadPart);
    Staged staged = batch.Stage(part, 16);
    std::memcpy(staged.mapped, data + done, part);
    VkBufferCopy region{staged.offset, to.offset() + done, part};
    device_.vk().vkCmdCopyBuffer(batch.commands(), staged.buffer, to.buffer(), 1, &region);
    Mark(to, false, true);
    done += part;
    SubmitIfLong();
  }
  hazards_.Add({}, {RangeOf(to, bytes)});
}

void Stream::ReadBack(const Location& from, void* to, std::uint64_t bytes) {
  WaitForOthers(from, true, false);
  std::lock_guard lock(mutex_);
  ThrowKept();
  device_.statistics().downloads += 1;
  device_.statistics().download_bytes += bytes;
  RetireDone();
  if (recording_ == nullptr && in_flight_.empty() && from.mapped() != nullptr && from.cached()) {
    std::memcpy(to, from.mapped(), bytes);
    return;
  }
  Download download;
  download.host = to;
  download.bytes = bytes;
  download.source = from;
  download.mapped = from.mapped();
  download.in_place = from.mapped() != nullptr && from.cached();
  Batch& batch = Recording();
  if (!download.in_place) CopyOut(&download);
  Mark(from, true, false);
  batch.downloads.push_back(std::move(download));
  SubmitIfLong();
}

void Stream::CopyOut(Download* download) {
  Ranges source{download->range()};
  if (hazards_.Conflict(source, {})) Barrier(true);
  Staged staged = recording_->Stage(download->bytes, 16);
  VkBufferCopy region{download->source.offset(), staged.offset, download->bytes};
  device_.vk().vkCmdCopyBuffer(recording_->commands(), download->source.buffer(), staged.buffer, 1, &region);
  hazards_.Add(source, {});
  download->mapped = staged.mapped;
  download->in_place = false;
}

void Stream::Copy(const Location& from, const Location& to, std::uint64_t bytes) {
  WaitForOthers(from, true, false);
  WaitForOthers(to, false, true);
  std::lock_guard lock(mutex_);
  ThrowKept();
  device_.statistics().copies += 1;
  device_.statistics().copy_bytes += bytes;
  Ranges reads{RangeOf(from, bytes)}, writes{RangeOf(to, bytes)};
  Guard(reads, writes);
  VkBufferCopy region{from.offset(), to.offset(), bytes};
  device_.vk().vkCmdCopyBuffer(Recording().commands(), from.buffer(), to.buffer(), 1, &region);
  Mark(from, true, false);
  Mark(to, false, true);
  hazards_.Add(reads, writes);
  ++recording_->launches;
  SubmitIfLong();
}

std::uint64_t Stream::WriteTimestamp(VkQueryPool pool, std::uint32_t which) {
  std::lock_guard lock(mutex_);
  ThrowKept();
  VkCommandBuffer commands = Recording().commands();
  if (which == 0) device_.vk().vkCmdResetQueryPool(commands, pool, 0, 2);
  device_.vk().vkCmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, pool, which);
  return recording_->number;
}

void Stream::WaitForOthers(const Location& location, bool reads, bool writes) {
  std::vector<Use> others;
  {
    std::lock_guard lock(location.allocation->mutex);
    for (const Use& use : location.allocation->uses) {
      if (use.stream != this) others.push_back(use);
    }
  }
  for (const Use& use : others) {
    std::uint64_t number = writes ? std::max(use.read, use.written) : use.written;
    std::exception_ptr error = use.stream->completed() < number ? use.stream->WaitFor(number) : nullptr;
    // Whoever only overwrites what was not computed is not concerned.
    if (error == nullptr && reads) error = use.stream->FailureOf(use.written);
    if (error != nullptr) std::rethrow_exception(error);
  }
}

void Stream::Mark(const Location& location, bool reads, bool writes) {
  std::uint64_t number = recording_->number;
  std::lock_guard lock(location.allocation->mutex);
  std::vector<Use>& uses = location.allocation->uses;
  auto is_own = [&](const Use& use) { return use.stream == this; };
  auto found = std::find_if(uses.begin(), uses.end(), is_own);
  if (found == uses.end() || writes) {
    ForgetPast(uses, writes);
    found = std::find_if(uses.begin(), uses.end(), is_own);
  }
  if (found == uses.end()) found = uses.insert(uses.end(), {this, 0, 0});
  if (reads) found->read = number;
  if (writes) found->written = number;
}

void Stream::Guard(const Ranges& reads, const Ranges& writes) {
  device_.CheckAlive();
  Batch& batch = Recording();
  for (Download& download : batch.downloads) {
    if (download.in_place && AnyOverlap(writes, {download.range()})) CopyOut(&download);
  }
  if (hazards_.Conflict(reads, writes) || hazards_.full()) Barrier(true);
}

void Stream::Barrier(bool counted) {
  auto barrier = Structure<VkMemoryBarrier>(VK_STRUCTURE_TYPE_MEMORY_BARRIER);
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                          VK_ACCESS_TRANSFER_WRITE_BIT;
  device_.vk().vkCmdPipelineBarrier(recording_->commands(), kStages, kStages, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  if (!counted) return;
  device_.statistics().barriers += 1;
  hazards_.Clear();
}

Batch& Stream::Recording() {
  if (recording_ != nullptr) return *recording_;
  device_.CheckAlive();
  RetireDone();
  std::unique_ptr<Batch> batch;
  if (idle_.empty()) {
    batch = std::make_unique<Batch>(device_);
  } else {
    batch = std::move(idle_.back());
    idle_.pop_back();
  }
  batch->Begin(next_number_);
  ++next_number_;
  recording_ = std::move(batch);
  // Makes visible what other streams have written: the host waited for them, which only makes it available.
  Barrier(true);
  return *recording_;
}

}  // namespace greencc::vulkan
