#include "device_api.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "device.h"
#include "errors.h"
#include "instance.h"
#include "stream.h"
#include "streams.h"

namespace greencc::vulkan {

namespace {

using tvm::runtime::DeviceAttrKind;

std::uint64_t AddressOf(const void* pointer, std::size_t offset) {
  return reinterpret_cast<std::uintptr_t>(pointer) + offset;
}

class VulkanDeviceApi final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(DLDevice device) final { SetCurrentDevice(device.device_id); }

  void GetAttr(DLDevice device, DeviceAttrKind kind, tvm::ffi::Any* result) final {
    if (kind == DeviceAttrKind::kExist) {
      *result = static_cast<int>(Exists(device.device_id));
      return;
    }
    Describe(Instance::Get().device(device.device_id), kind, result);
  }

  void GetTargetProperty(DLDevice device, const std::string& property, tvm::ffi::Any* result) final {
    const PhysicalDevice& physical = Instance::Get().device(device.device_id).physical();
    const VkPhysicalDeviceLimits& limits = physical.limits();
    const Features& has = physical.features;
    if (property == "max_num_threads") *result = std::int64_t{limits.maxComputeWorkGroupInvocations};
    if (property == "max_threads_per_block") *result = std::int64_t{limits.maxComputeWorkGroupInvocations};
    if (property == "max_shared_memory_per_block") *result = std::int64_t{limits.maxComputeSharedMemorySize};
    // The subgroup's size is the driver's choice, kernel by kernel, unless a kernel fixes it.
    if (property == "thread_warp_size") *result = std::int64_t{1};
    if (property == "supports_float16") *result = has.float16;
    if (property == "supports_float32") *result = true;
    if (property == "supports_float64") *result = has.float64;
    if (property == "supports_int8") *result = has.int8;
    if (property == "supports_int16") *result = has.int16;
    if (property == "supports_int32") *result = true;
    if (property == "supports_int64") *result = has.int64;
    if (property == "supports_8bit_buffer") *result = has.storage8;
    if (property == "supports_16bit_buffer") *result = has.storage16;
    if (property == "supports_push_descriptor") *result = has.push_descriptors;
    if (property == "supports_integer_dot_product") *result = has.dot4;
    if (property == "supports_cooperative_matrix") *result = has.matrix;
    if (property == "device_name") *result = tvm::ffi::String(physical.properties.deviceName);
  }

  void* AllocDataSpace(DLDevice device, std::size_t bytes, std::size_t alignment, DLDataType) final {
    std::uint64_t address = Instance::Get().device(device.device_id).memory().Allocate(bytes, alignment);
    return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
  }
  using DeviceAPI::AllocDataSpace;

  void FreeDataSpace(DLDevice device, void* pointer) final {
    // Tensors call this as they are destroyed, where an exception would end the process. In a forked child there is
    // nothing to give back.
    if (pointer == nullptr || Instance::Forked()) return;
    try {
      Instance::Get().device(device.device_id).memory().Free(AddressOf(pointer, 0));
    } catch (const std::exception& error) {
      std::fprintf(stderr, "greencc: %s\n", error.what());
    }
  }

  TVMStreamHandle CreateStream(DLDevice device) final { return &Instance::Get().device(device.device_id).NewStream(); }

  void FreeStream(DLDevice device, TVMStreamHandle handle) final {
    if (handle == nullptr) return;
    auto* stream = static_cast<Stream*>(handle);
    Device& opened = Instance::Get().device(device.device_id);
    try {
      stream->Synchronize();
    } catch (...) {
      opened.Recycle(*stream);
      throw;
    }
    opened.Recycle(*stream);
  }

  void StreamSync(DLDevice device, TVMStreamHandle handle) final {
    Device& opened = Instance::Get().device(device.device_id);
    opened.CheckAlive();
    (handle == nullptr ? CurrentStream(opened) : StreamOf(opened, handle)).Synchronize();
  }

  void SyncStreamFromTo(DLDevice device, TVMStreamHandle from, TVMStreamHandle) final { StreamSync(device, from); }

  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

 protected:
  void CopyDataFromTo(const void* from, std::size_t from_offset, void* to, std::size_t to_offset, std::size_t bytes,
                      DLDevice from_device, DLDevice to_device, DLDataType, TVMStreamHandle handle) final {
    if (bytes == 0) return;
    bool reads = from_device.device_type == kDLVulkan, writes = to_device.device_type == kDLVulkan;
    const auto* host_from = static_cast<const std::uint8_t*>(from) + from_offset;
    auto* host_to = static_cast<std::uint8_t*>(to) + to_offset;
    if (reads && writes && from_device.device_id != to_device.device_id) {
      CopyBetween(from_device, AddressOf(from, from_offset), to_device, AddressOf(to, to_offset), bytes);
      return;
    }
    Device& device = Instance::Get().device(reads ? from_device.device_id : to_device.device_id);
    device.CheckAlive();
    Stream& stream = handle == nullptr ? CurrentStream(device) : StreamOf(device, handle);
    if (reads && writes) {
      stream.Copy(Find(device, AddressOf(from, from_offset), bytes), Find(device, AddressOf(to, to_offset), bytes),
                  bytes);
    } else if (reads) {
      stream.ReadBack(Find(device, AddressOf(from, from_offset), bytes), host_to, bytes);
    } else {
      stream.Upload(host_from, Find(device, AddressOf(to, to_offset), bytes), bytes);
    }
  }

 private:
  static bool Exists(int index) {
    try {
      const auto& devices = Instance::Get().physical_devices();
      return index >= 0 && static_cast<std::size_t>(index) < devices.size() &&
             devices[static_cast<std::size_t>(index)].refusal().empty();
    } catch (const tvm::ffi::Error&) {
      return false;  // Without a Vulkan loader there are no devices.
    }
  }

  static Location Find(Device& device, std::uint64_t address, std::size_t bytes) {
    Location location = device.memory().Find(address);
    if (bytes > location.remaining()) {
      TVM_FFI_THROW(ValueError) << device.name() << ": a copy of " << bytes << " bytes reaches beyond the "
                                << location.remaining() << " bytes that there are";
    }
    return location;
  }

  static void CopyBetween(DLDevice from_device, std::uint64_t from, DLDevice to_device, std::uint64_t to,
                          std::size_t bytes) {
    Device& source = Instance::Get().device(from_device.device_id);
    Device& target = Instance::Get().device(to_device.device_id);
    std::vector<std::uint8_t> host(bytes);
    CurrentStream(source).ReadBack(Find(source, from, bytes), host.data(), bytes);
    CurrentStream(source).Synchronize();
    CurrentStream(target).Upload(host.data(), Find(target, to, bytes), bytes);
  }

  static void Describe(const Device& device, DeviceAttrKind kind, tvm::ffi::Any* result) {
    const PhysicalDevice& physical = device.physical();
    const VkPhysicalDeviceLimits& limits = physical.limits();
    switch (kind) {
      case DeviceAttrKind::kMaxThreadsPerBlock: *result = std::int64_t{limits.maxComputeWorkGroupInvocations}; break;
      case DeviceAttrKind::kWarpSize: *result = std::int64_t{1}; break;
      case DeviceAttrKind::kMaxSharedMemoryPerBlock: *result = std::int64_t{limits.maxComputeSharedMemorySize}; break;
      case DeviceAttrKind::kComputeVersion:
      case DeviceAttrKind::kApiVersion: *result = tvm::ffi::String(Version(physical.properties.apiVersion)); break;
      case DeviceAttrKind::kDeviceName: *result = tvm::ffi::String(physical.properties.deviceName); break;
      case DeviceAttrKind::kMaxThreadDimensions: {
        std::string text = "[";
        for (int axis = 0; axis < 3; ++axis) {
          text += std::to_string(limits.maxComputeWorkGroupSize[axis]) + (axis == 2 ? "]" : ", ");
        }
        *result = tvm::ffi::String(text);
        break;
      }
      case DeviceAttrKind::kDriverVersion: *result = std::int64_t{physical.properties.driverVersion}; break;
      case DeviceAttrKind::kTotalGlobalMemory: *result = static_cast<std::int64_t>(physical.heap_bytes()); break;
      case DeviceAttrKind::kImagePitchAlignment: *result = std::int64_t{1}; break;
      default: break;  // Vulkan does not tell clock rates, caches or processors.
    }
  }
};

}  // namespace

tvm::runtime::DeviceAPI* TheDeviceApi() {
  // Never destroyed: tensors may be freed after static objects are.
  static auto* api = new VulkanDeviceApi();
  return api;
}

}  // namespace greencc::vulkan
