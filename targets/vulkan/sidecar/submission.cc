// How a stream's batches get to the device, and what becomes of them: done, or failed.

#include <algorithm>
#include <utility>

#include "device.h"
#include "kernel.h"
#include "stream.h"

namespace greencc::vulkan {

namespace {

// Launches after which a batch is submitted without being asked for, so that the device starts early in a long one.
constexpr std::uint32_t kLongBatch = 256;
constexpr std::size_t kMostInFlight = 4;
// Failures that readers are still told of.
constexpr std::size_t kMostFailures = 64;

}  // namespace

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

void Stream::ThrowKept() {
  if (kept_ != nullptr) std::rethrow_exception(std::exchange(kept_, nullptr));
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
