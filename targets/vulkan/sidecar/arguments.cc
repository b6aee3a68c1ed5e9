#include "arguments.h"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>

#include "errors.h"
#include "instance.h"
#include "streams.h"

namespace greencc::vulkan {

namespace {

namespace ffi = tvm::ffi;

[[noreturn]] void Refuse(const KernelEntry& entry, int index, const std::string& what) {
  TVM_FFI_THROW(ValueError) << "kernel '" << entry.name << "', argument " << index << ": " << what;
  TVM_FFI_UNREACHABLE();
}

std::uint64_t Address(const KernelEntry& entry, int index, const ffi::AnyView& argument) {
  if (auto pointer = argument.try_cast<void*>()) return reinterpret_cast<std::uintptr_t>(*pointer);
  if (auto tensor = argument.try_cast<DLTensor*>()) {
    return reinterpret_cast<std::uintptr_t>((*tensor)->data) + (*tensor)->byte_offset;
  }
  Refuse(entry, index, "is not a pointer to the device's memory");
}

std::uint64_t Slot(const KernelEntry& entry, int index, const Parameter& parameter, const ffi::AnyView& argument) {
  std::uint64_t slot = 0;
  if (parameter.type == ScalarType::kInteger) {
    auto number = argument.try_cast<std::int64_t>();
    if (!number) Refuse(entry, index, "is not an integer");
    if (parameter.is_index && (*number < INT32_MIN || *number > INT32_MAX)) {
      Refuse(entry, index, "is " + std::to_string(*number) + ", but kernels compute indices and sizes in 32 bits: at "
                           "most " + std::to_string(INT32_MAX));
    }
    // Its low half is the number in 32 bits.
    return static_cast<std::uint64_t>(*number);
  }
  auto number = argument.try_cast<double>();
  if (!number) Refuse(entry, index, "is not a number");
  if (parameter.type == ScalarType::kFloat64) {
    std::memcpy(&slot, &*number, sizeof(double));
  } else {
    auto single = static_cast<float>(*number);
    std::memcpy(&slot, &single, sizeof(single));
  }
  return slot;
}

BoundBuffer Bind(Device& device, const KernelEntry& entry, int index, const Parameter& parameter,
                 std::uint64_t address) {
  const VkPhysicalDeviceLimits& limits = device.physical().limits();
  BoundBuffer buffer;
  buffer.location = device.memory().Find(address);
  buffer.reads = parameter.reads;
  buffer.writes = parameter.writes;
  std::uint64_t remaining = buffer.location.remaining();
  if (buffer.location.offset() % limits.minStorageBufferOffsetAlignment != 0) {
    Refuse(entry, index, "begins " + std::to_string(buffer.location.offset()) + " bytes into its memory; " +
                         device.name() + " reads from multiples of " +
                         std::to_string(limits.minStorageBufferOffsetAlignment));
  }
  if (!parameter.bytes.has_value()) {
    if (entry.unbounded && remaining > limits.maxStorageBufferRange) {
      Refuse(entry, index, "is a tensor of " + Bytes(remaining) + " (" + std::to_string(remaining) +
                           " bytes with padding); a kernel on " + device.name() + " can be given at most " +
                           std::to_string(limits.maxStorageBufferRange) + ": use smaller inputs");
    }
    // The kernel alone knows how much it uses. When it was compiled no tensor was larger than the device can address,
    // but several may lie in this memory.
    buffer.bytes = std::min<std::uint64_t>(remaining, limits.maxStorageBufferRange);
    return buffer;
  }
  if (*parameter.bytes > limits.maxStorageBufferRange) {
    Refuse(entry, index, "is a tensor of " + Bytes(*parameter.bytes) + " (" + std::to_string(*parameter.bytes) +
                         " bytes); a kernel on " + device.name() + " can be given at most " +
                         std::to_string(limits.maxStorageBufferRange));
  }
  if (*parameter.bytes > remaining) {
    Refuse(entry, index, "must have " + std::to_string(*parameter.bytes) + " bytes, there are " +
                         std::to_string(remaining));
  }
  // An empty tensor still needs a range. Whole words, as shaders that read bytes may read them by fours.
  std::uint64_t wanted = std::max<std::uint64_t>((*parameter.bytes + 3) / 4 * 4, 4);
  buffer.bytes = std::min({wanted, remaining, std::uint64_t{limits.maxStorageBufferRange}});
  return buffer;
}

void ReadLaunchArguments(const KernelEntry& entry, ffi::PackedArgs arguments, Launch* launch) {
  auto first = static_cast<int>(entry.parameters.size());
  for (std::size_t i = 0; i < entry.launch.size(); ++i) {
    const LaunchArgument& tag = entry.launch[i];
    int index = first + static_cast<int>(i);
    auto value = arguments[index].try_cast<std::int64_t>();
    if (!value || *value < 0) Refuse(entry, index, "is not a size");
    if (tag.tag == LaunchTag::kGroups) {
      if (*value > INT32_MAX) Refuse(entry, index, "is " + std::to_string(*value) + " workgroups, too many");
      launch->groups[tag.axis] = static_cast<std::uint32_t>(*value);
    } else if (tag.tag == LaunchTag::kThreads) {
      if (static_cast<std::uint64_t>(*value) != entry.workgroup[tag.axis]) {
        Refuse(entry, index, "asks for " + std::to_string(*value) + " threads, the kernel has " +
                             std::to_string(entry.workgroup[tag.axis]));
      }
    } else if (static_cast<std::uint64_t>(*value) > entry.shared_bytes) {
      Refuse(entry, index, "asks for " + std::to_string(*value) + " bytes of shared memory, the kernel has " +
                           std::to_string(entry.shared_bytes));
    }
  }
}

}  // namespace

Device& ReadArguments(const KernelEntry& entry, ffi::PackedArgs arguments, Launch* launch) {
  std::size_t expected = entry.parameters.size() + entry.launch.size();
  if (static_cast<std::size_t>(arguments.size()) != expected) {
    TVM_FFI_THROW(ValueError) << "kernel '" << entry.name << "' takes " << expected << " arguments, it got "
                              << arguments.size();
  }
  Device* device = nullptr;
  for (std::size_t i = 0; i < entry.parameters.size(); ++i) {
    const Parameter& parameter = entry.parameters[i];
    auto index = static_cast<int>(i);
    if (!parameter.buffer) {
      launch->scalars.push_back(Slot(entry, index, parameter, arguments[index]));
      continue;
    }
    std::uint64_t address = Address(entry, index, arguments[index]);
    int owner = Memory::DeviceOf(address);
    if (owner < 0) Refuse(entry, index, "is not a pointer to the device's memory");
    if (device == nullptr) device = &Instance::Get().device(owner);
    if (owner != device->index()) Refuse(entry, index, "is in another device's memory than the first");
    launch->buffers.push_back(Bind(*device, entry, index, parameter, address));
  }
  ReadLaunchArguments(entry, arguments, launch);
  if (device == nullptr) device = &Instance::Get().device(CurrentDevice());
  return *device;
}

}  // namespace greencc::vulkan
