#include "stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "device.h"
#include "kernel.h"

namespace greencc::vulkan {

namespace {

// Launches after which a batch is submitted without being asked for, so that the device starts early in a long one.
constexpr std::uint32_t kLongBatch = 256;
constexpr std::size_t kMostInFlight = 4;
// Failures that readers are still told of.
constexpr std::size_t kMostFailures = 64;
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

void Stream::ThrowKept() {
  if (kept_ != nullptr) std::rethrow_exception(std::exchange(kept_, nullptr));
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

void Stream::SubmitIfLong() {
  if (recording_->launches < kLongBatch && recording_->staged_bytes < StagingPool::kMostOfBatch) return;
  // The next batch may overwrite what the host has not read yet.
  for (Download& download : recording_->downloads) {
    if (download.in_place) CopyOut(&download);
  }
  Submit();
  if (in_flight_.size() > kMostInFlight) WaitAndRetire(1);
}

void Stream::Submit() {
  if (recording_ == nullptr) return;
  std::unique_ptr<Batch> batch = std::move(recording_);
  VkCommandBuffer commands = batch->commands();
  auto info = Structure<VkSubmitInfo>(VK_STRUCTURE_TYPE_SUBMIT_INFO);
  info.commandBufferCount = 1;
  info.pCommandBuffers = &commands;
  try {
    batch->End();
    std::lock_guard lock(queue_.mutex);
    device_.Check(device_.vk().vkQueueSubmit(queue_.handle, 1, &info, batch->fence()), "submitting kernels");
  } catch (...) {
    Drop(std::move(batch));
    throw;
  }
  device_.statistics().submits += 1;
  in_flight_.push_back(std::move(batch));
}

void Stream::WaitAndRetire(std::size_t count) {
  std::vector<VkFence> fences;
  for (std::size_t i = 0; i < count; ++i) {
    if (!in_flight_[i]->failed) fences.push_back(in_flight_[i]->fence());
  }
  if (!fences.empty()) {
    device_.statistics().waits += 1;
    try {
      device_.Check(device_.vk().vkWaitForFences(device_.handle(), static_cast<std::uint32_t>(fences.size()),
                                                 fences.data(), VK_TRUE, UINT64_MAX),
                    "waiting for kernels");
    } catch (...) {
      Drop(nullptr);
      throw;
    }
  }
  RetireDone();
}

void Stream::RetireDone() {
  while (!in_flight_.empty()) {
    Batch& first = *in_flight_.front();
    if (first.failed) {
      first.Discard();
    } else {
      VkResult status = device_.vk().vkGetFenceStatus(device_.handle(), first.fence());
      if (status == VK_NOT_READY) break;
      try {
        device_.Check(status, "running kernels");
        first.Retire(&profile_);
      } catch (...) {
        Drop(nullptr);
        throw;
      }
    }
    std::uint64_t number = first.number;
    idle_.push_back(std::move(in_flight_.front()));
    in_flight_.erase(in_flight_.begin());
    // Last: from now on memory that the batch used may be given to others.
    completed_.store(number, std::memory_order_release);
  }
  if (in_flight_.empty() && recording_ == nullptr) hazards_.Clear();
}

void Stream::Drop(std::unique_ptr<Batch> failed) {
  // The owner learns that its work failed and may free what the host was to read.
  if (recording_ != nullptr) recording_->downloads.clear();
  for (auto& batch : in_flight_) batch->downloads.clear();
  if (failed != nullptr) {
    // It waits for its turn: batches before it may still run, and completed() tells of all up to a number.
    failed->downloads.clear();
    failed->failed = true;
    in_flight_.push_back(std::move(failed));
  }
  bool lost = device_.lost();
  auto first = std::find_if(in_flight_.begin(), in_flight_.end(), [&](const auto& b) { return lost || b->failed; });
  if (first == in_flight_.end()) return;
  {
    std::lock_guard lock(failures_mutex_);
    if (failures_.size() == kMostFailures) failures_.erase(failures_.begin());
    failures_.push_back({(*first)->number, in_flight_.back()->number, std::current_exception()});
    has_failures_.store(true, std::memory_order_release);
  }
  if (!lost) return;
  // Nothing of this is done or ever will be, but nobody must wait for it for ever.
  std::uint64_t last = in_flight_.back()->number;
  for (auto& batch : in_flight_) dropped_.push_back(std::move(batch));
  in_flight_.clear();
  completed_.store(last, std::memory_order_release);
}

void Stream::Synchronize() {
  {
    std::lock_guard lock(mutex_);
    ThrowKept();
    Submit();
    WaitAndRetire(in_flight_.size());
  }
  device_.pipeline_cache().Save();
}

template <typename Work>
void Stream::Keep(const Work& work) {
  try {
    work();
  } catch (...) {
    kept_ = std::current_exception();
  }
}

void Stream::Settle() {
  std::lock_guard lock(mutex_);
  Keep([&] { Submit(); });
  Keep([&] { WaitAndRetire(in_flight_.size()); });
}

void Stream::Finish() {
  DropDownloads();
  Settle();
  std::lock_guard lock(mutex_);
  // The next owner has nothing to do with any of it.
  kept_ = nullptr;
  profile_.Take();
}

void Stream::DropDownloads() {
  std::lock_guard lock(mutex_);
  if (recording_ != nullptr) recording_->downloads.clear();
  for (auto& batch : in_flight_) batch->downloads.clear();
}

std::exception_ptr Stream::WaitFor(std::uint64_t number) {
  std::lock_guard lock(mutex_);
  if (completed() >= number) return nullptr;
  if (recording_ != nullptr && recording_->number <= number) Keep([&] { Submit(); });
  // Also where it was not submitted: batches before it may run.
  auto after = std::find_if(in_flight_.begin(), in_flight_.end(),
                            [&](const auto& batch) { return batch->number > number; });
  Keep([&] { WaitAndRetire(static_cast<std::size_t>(after - in_flight_.begin())); });
  return completed() < number ? kept_ : nullptr;
}

std::exception_ptr Stream::FailureOf(std::uint64_t number) const {
  if (!has_failures_.load(std::memory_order_acquire)) return nullptr;
  std::lock_guard lock(failures_mutex_);
  auto found = std::find_if(failures_.begin(), failures_.end(),
                            [&](const Failure& each) { return each.first <= number && number <= each.last; });
  return found == failures_.end() ? nullptr : found->error;
}

}  // namespace greencc::vulkan
