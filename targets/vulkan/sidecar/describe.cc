#include "describe.h"

#include <tvm/ffi/extra/json.h>

#include "errors.h"

namespace greencc::vulkan {

namespace {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

template <typename T>
ffi::Any Number(T value) {
  return ffi::Any(static_cast<std::int64_t>(value));
}

ffi::Any Text(const std::string& text) { return ffi::Any(ffi::String(text)); }

template <typename T>
json::Array Three(const T* values) {
  return json::Array{Number(values[0]), Number(values[1]), Number(values[2])};
}

std::string TypeName(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return "cpu";
    default: return "other";
  }
}

json::Object LimitsOf(const PhysicalDevice& device) {
  const VkPhysicalDeviceLimits& limits = device.limits();
  json::Object object;
  object.Set("max_threads", Number(limits.maxComputeWorkGroupInvocations));
  object.Set("max_workgroup", Three(limits.maxComputeWorkGroupSize));
  object.Set("max_groups", Three(limits.maxComputeWorkGroupCount));
  object.Set("shared_bytes", Number(limits.maxComputeSharedMemorySize));
  object.Set("max_buffer_bytes", Number(limits.maxStorageBufferRange));
  object.Set("max_allocation_bytes", Number(std::min<std::uint64_t>(device.max_allocation, INT64_MAX)));
  object.Set("max_buffers", Number(std::min(limits.maxPerStageDescriptorStorageBuffers,
                                            limits.maxDescriptorSetStorageBuffers)));
  object.Set("push_constant_bytes", Number(limits.maxPushConstantsSize));
  object.Set("storage_alignment", Number(limits.minStorageBufferOffsetAlignment));
  object.Set("uniform_alignment", Number(limits.minUniformBufferOffsetAlignment));
  object.Set("push_descriptors", Number(device.max_push_descriptors));
  return object;
}

json::Object FeaturesOf(const PhysicalDevice& device) {
  const Features& has = device.features;
  json::Object object;
  object.Set("float16", has.float16);
  object.Set("float64", has.float64);
  object.Set("int8", has.int8);
  object.Set("int16", has.int16);
  object.Set("int64", has.int64);
  object.Set("storage8", has.storage8);
  object.Set("storage16", has.storage16);
  object.Set("dot4", has.dot4);
  object.Set("dot4_accelerated", device.dot4_accelerated);
  object.Set("matrix", has.matrix);
  object.Set("float_atomics", has.float_atomics);
  object.Set("float_controls", has.float_controls);
  object.Set("memory_model", has.memory_model);
  object.Set("push_descriptors", has.push_descriptors);
  object.Set("timestamps", device.timestamp_bits != 0);
  return object;
}

json::Object SubgroupOf(const PhysicalDevice& device) {
  json::Object object;
  object.Set("size", Number(device.subgroup));
  object.Set("minimum", Number(device.subgroup_min));
  object.Set("maximum", Number(device.subgroup_max));
  object.Set("can_be_fixed", device.features.subgroup_size);
  object.Set("can_be_full", device.features.full_subgroups);
  json::Array operations;
  const char* const names[] = {"basic",          "vote",             "arithmetic", "ballot",
                               "shuffle",        "shuffle_relative", "clustered",  "quad"};
  for (std::size_t bit = 0; bit < std::size(names); ++bit) {
    if ((device.subgroup_operations >> bit & 1) != 0) operations.push_back(Text(names[bit]));
  }
  object.Set("operations", operations);
  return object;
}

json::Array MatricesOf(const PhysicalDevice& device) {
  json::Array shapes;
  for (const MatrixShape& shape : device.matrices) {
    json::Object object;
    object.Set("m", Number(shape.m));
    object.Set("n", Number(shape.n));
    object.Set("k", Number(shape.k));
    object.Set("a", Number(shape.a));
    object.Set("b", Number(shape.b));
    object.Set("c", Number(shape.c));
    object.Set("result", Number(shape.result));
    object.Set("scope", Number(shape.scope));
    shapes.push_back(object);
  }
  return shapes;
}

}  // namespace

ffi::String DevicesJson(const std::vector<PhysicalDevice>& devices) {
  json::Array list;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const PhysicalDevice& device = devices[i];
    json::Object object;
    object.Set("index", Number(i));
    object.Set("name", Text(device.properties.deviceName));
    object.Set("type", Text(TypeName(device.properties.deviceType)));
    object.Set("refusal", device.refusal().empty() ? ffi::Any(nullptr) : Text(device.refusal()));
    object.Set("driver", Text(device.driver));
    object.Set("driver_info", Text(device.driver_info));
    object.Set("driver_version", Number(device.properties.driverVersion));
    object.Set("api_version", Text(Version(device.properties.apiVersion)));
    object.Set("vendor_id", Number(device.properties.vendorID));
    object.Set("device_id", Number(device.properties.deviceID));
    object.Set("memory_bytes", Number(device.heap_bytes()));
    object.Set("unified_memory", device.unified());
    object.Set("queues", Number(device.queues));
    object.Set("limits", LimitsOf(device));
    object.Set("features", FeaturesOf(device));
    object.Set("subgroup", SubgroupOf(device));
    object.Set("matrices", MatricesOf(device));
    json::Object uuids;
    uuids.Set("device", Text(Hex(device.device_uuid.data(), VK_UUID_SIZE)));
    uuids.Set("driver", Text(Hex(device.driver_uuid.data(), VK_UUID_SIZE)));
    uuids.Set("pipeline_cache", Text(Hex(device.properties.pipelineCacheUUID, VK_UUID_SIZE)));
    object.Set("uuid", uuids);
    list.push_back(object);
  }
  return json::Stringify(list);
}

ffi::String StatisticsJson(const Statistics& statistics) {
  json::Object object;
#define GREENCC_VULKAN_SHOW(name) object.Set(#name, Number(statistics.name.load()));
  GREENCC_VULKAN_COUNTERS(GREENCC_VULKAN_SHOW)
#undef GREENCC_VULKAN_SHOW
  object.Set("allocated_bytes", Number(statistics.allocated_bytes.load()));
  object.Set("peak_bytes", Number(statistics.peak_bytes.load()));
  object.Set("reserved_bytes", Number(statistics.reserved_bytes.load()));
  object.Set("staging_bytes", Number(statistics.staging_bytes.load()));
  return json::Stringify(object);
}

ffi::String TimesJson(const std::vector<KernelTime>& times) {
  json::Array list;
  for (const KernelTime& time : times) {
    json::Object object;
    object.Set("kernel", Text(time.kernel));
    object.Set("milliseconds", time.milliseconds);
    list.push_back(object);
  }
  return json::Stringify(list);
}

ffi::String TextsJson(const std::vector<std::string>& texts) {
  json::Array list;
  for (const std::string& text : texts) list.push_back(Text(text));
  return json::Stringify(list);
}

}  // namespace greencc::vulkan
