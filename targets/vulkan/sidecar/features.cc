#include "features.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "errors.h"

// Headers older than 1.3.255 lack the extension; these are its published numbers and layouts.
#ifndef VK_KHR_cooperative_matrix
#define VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME "VK_KHR_cooperative_matrix"
struct VkPhysicalDeviceCooperativeMatrixFeaturesKHR {
  VkStructureType sType;
  void* pNext;
  VkBool32 cooperativeMatrix;
  VkBool32 cooperativeMatrixRobustBufferAccess;
};
struct VkCooperativeMatrixPropertiesKHR {
  VkStructureType sType;
  void* pNext;
  std::uint32_t MSize, NSize, KSize, AType, BType, CType, ResultType;
  VkBool32 saturatingAccumulation;
  std::uint32_t scope;
};
constexpr auto VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR =
    static_cast<VkStructureType>(1000506000);
constexpr auto VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR = static_cast<VkStructureType>(1000506001);
using PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR = VkResult(VKAPI_PTR*)(VkPhysicalDevice, std::uint32_t*,
                                                                                   VkCooperativeMatrixPropertiesKHR*);
#endif

namespace greencc::vulkan {

namespace {

// The chain of feature structures, one for each extension (or core version) that the device has: what is asked for,
// and what the device is opened with.
class FeatureChain {
 public:
  FeatureChain(std::uint32_t version, const std::vector<VkExtensionProperties>& offered)
      : version_(version), offered_(offered) {
    core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    Link(storage16, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, VK_API_VERSION_1_1, nullptr);
    Link(storage8, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES, VK_API_VERSION_1_2,
         VK_KHR_8BIT_STORAGE_EXTENSION_NAME);
    Link(small, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, VK_API_VERSION_1_2,
         VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME);
    Link(model, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, VK_API_VERSION_1_2,
         VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME);
    Link(subgroup, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES, VK_API_VERSION_1_3,
         VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME);
    Link(dot, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES, VK_API_VERSION_1_3,
         VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
    Link(atomic, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_ATOMIC_FLOAT_FEATURES_EXT, kNeverCore,
         VK_EXT_SHADER_ATOMIC_FLOAT_EXTENSION_NAME);
    Link(matrix, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR, kNeverCore,
         VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
    // Extensions without features.
    push_descriptors = Want(kNeverCore, VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME);
    creation_feedback = Want(VK_API_VERSION_1_3, VK_EXT_PIPELINE_CREATION_FEEDBACK_EXTENSION_NAME);
    Want(VK_API_VERSION_1_2, VK_KHR_SHADER_FLOAT_CONTROLS_EXTENSION_NAME);
    // A device that has it must be opened with it.
    Want(kNeverCore, "VK_KHR_portability_subset");
  }
  FeatureChain(const FeatureChain&) = delete;

  // Leaves on what kernels use and nothing else: robust buffer access, for one, costs time.
  void KeepUsed() {
    VkPhysicalDeviceFeatures used{};
    used.shaderInt64 = core.features.shaderInt64;
    used.shaderInt16 = core.features.shaderInt16;
    used.shaderFloat64 = core.features.shaderFloat64;
    core.features = used;
    storage16.uniformAndStorageBuffer16BitAccess = VK_FALSE;
    storage16.storagePushConstant16 = VK_FALSE;
    storage16.storageInputOutput16 = VK_FALSE;
    storage8.uniformAndStorageBuffer8BitAccess = VK_FALSE;
    storage8.storagePushConstant8 = VK_FALSE;
    model.vulkanMemoryModelAvailabilityVisibilityChains = VK_FALSE;
    matrix.cooperativeMatrixRobustBufferAccess = VK_FALSE;
    auto atomics = Structure<VkPhysicalDeviceShaderAtomicFloatFeaturesEXT>(atomic.sType);
    atomics.pNext = atomic.pNext;
    atomics.shaderBufferFloat32AtomicAdd = atomic.shaderBufferFloat32AtomicAdd;
    atomic = atomics;
  }

  VkPhysicalDeviceFeatures2 core{};
  VkPhysicalDevice16BitStorageFeatures storage16{};
  VkPhysicalDevice8BitStorageFeatures storage8{};
  VkPhysicalDeviceShaderFloat16Int8Features small{};
  VkPhysicalDeviceVulkanMemoryModelFeatures model{};
  VkPhysicalDeviceSubgroupSizeControlFeatures subgroup{};
  VkPhysicalDeviceShaderIntegerDotProductFeatures dot{};
  VkPhysicalDeviceShaderAtomicFloatFeaturesEXT atomic{};
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix{};
  bool push_descriptors = false;
  bool creation_feedback = false;
  std::vector<const char*> extensions;

 private:
  static constexpr std::uint32_t kNeverCore = ~0u;

  // Whether the device has it; notes the extension where it isn't part of the version.
  bool Want(std::uint32_t core_since, const char* extension) {
    if (version_ >= core_since) return true;
    bool found = extension != nullptr && std::any_of(offered_.begin(), offered_.end(), [&](const auto& each) {
                   return std::strcmp(each.extensionName, extension) == 0;
                 });
    if (found) extensions.push_back(extension);
    return found;
  }

  template <typename T>
  void Link(T& structure, VkStructureType type, std::uint32_t core_since, const char* extension) {
    if (!Want(core_since, extension)) return;
    structure.sType = type;
    structure.pNext = core.pNext;
    core.pNext = &structure;
  }

  std::uint32_t version_;
  const std::vector<VkExtensionProperties>& offered_;
};

std::vector<VkExtensionProperties> Extensions(const InstanceFunctions& vk, VkPhysicalDevice handle) {
  std::uint32_t count = 0;
  CheckResult(vk.vkEnumerateDeviceExtensionProperties(handle, nullptr, &count, nullptr), "listing extensions");
  std::vector<VkExtensionProperties> offered(count);
  CheckResult(vk.vkEnumerateDeviceExtensionProperties(handle, nullptr, &count, offered.data()), "listing extensions");
  offered.resize(count);
  return offered;
}

bool Offers(const std::vector<VkExtensionProperties>& offered, std::string_view name) {
  return std::any_of(offered.begin(), offered.end(), [&](const auto& each) { return name == each.extensionName; });
}

void DescribeProperties(const InstanceFunctions& vk, const std::vector<VkExtensionProperties>& offered,
                        PhysicalDevice* device) {
  std::uint32_t version = device->properties.apiVersion;
  auto properties = Structure<VkPhysicalDeviceProperties2>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2);
  auto link = [&](auto& structure, bool present) {
    if (!present) return;
    structure.pNext = properties.pNext;
    properties.pNext = &structure;
  };
  auto id = Structure<VkPhysicalDeviceIDProperties>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES);
  auto maintenance = Structure<VkPhysicalDeviceMaintenance3Properties>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES);
  auto subgroup = Structure<VkPhysicalDeviceSubgroupProperties>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES);
  auto driver = Structure<VkPhysicalDeviceDriverProperties>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES);
  auto sizes = Structure<VkPhysicalDeviceSubgroupSizeControlProperties>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES);
  auto dot = Structure<VkPhysicalDeviceShaderIntegerDotProductProperties>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES);
  auto push = Structure<VkPhysicalDevicePushDescriptorPropertiesKHR>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PUSH_DESCRIPTOR_PROPERTIES_KHR);
  auto controls = Structure<VkPhysicalDeviceFloatControlsProperties>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FLOAT_CONTROLS_PROPERTIES);
  link(id, true);
  link(maintenance, true);
  link(subgroup, true);
  link(driver, version >= VK_API_VERSION_1_2 || Offers(offered, VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME));
  link(sizes, version >= VK_API_VERSION_1_3 || Offers(offered, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME));
  link(dot, version >= VK_API_VERSION_1_3 || Offers(offered, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME));
  link(controls, version >= VK_API_VERSION_1_2 || Offers(offered, VK_KHR_SHADER_FLOAT_CONTROLS_EXTENSION_NAME));
  link(push, Offers(offered, VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME));
  vk.vkGetPhysicalDeviceProperties2(device->handle, &properties);
  std::copy(std::begin(id.deviceUUID), std::end(id.deviceUUID), device->device_uuid.begin());
  std::copy(std::begin(id.driverUUID), std::end(id.driverUUID), device->driver_uuid.begin());
  device->driver = driver.driverName;
  device->driver_info = driver.driverInfo;
  device->max_allocation = maintenance.maxMemoryAllocationSize;
  device->max_push_descriptors = push.maxPushDescriptors;
  device->subgroup = subgroup.subgroupSize;
  device->subgroup_operations =
      (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0 ? subgroup.supportedOperations : 0;
  constexpr VkSubgroupFeatureFlags kShuffle = VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
  device->features.subgroup_shuffle = (device->subgroup_operations & kShuffle) == kShuffle;
  device->subgroup_min = sizes.minSubgroupSize != 0 ? sizes.minSubgroupSize : subgroup.subgroupSize;
  device->subgroup_max = sizes.maxSubgroupSize != 0 ? sizes.maxSubgroupSize : subgroup.subgroupSize;
  device->features.subgroup_size = (sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0;
  device->features.float_controls = controls.shaderSignedZeroInfNanPreserveFloat32 == VK_TRUE;
  device->dot4_accelerated = dot.integerDotProduct4x8BitPackedSignedAccelerated == VK_TRUE;
}

void DescribeFeatures(const InstanceFunctions& vk, const std::vector<VkExtensionProperties>& offered,
                      PhysicalDevice* device) {
  FeatureChain chain(device->properties.apiVersion, offered);
  vk.vkGetPhysicalDeviceFeatures2(device->handle, &chain.core);
  Features& has = device->features;
  has.int16 = chain.core.features.shaderInt16 == VK_TRUE;
  has.int64 = chain.core.features.shaderInt64 == VK_TRUE;
  has.float64 = chain.core.features.shaderFloat64 == VK_TRUE;
  has.storage16 = chain.storage16.storageBuffer16BitAccess == VK_TRUE;
  has.storage8 = chain.storage8.storageBuffer8BitAccess == VK_TRUE;
  has.float16 = chain.small.shaderFloat16 == VK_TRUE;
  has.int8 = chain.small.shaderInt8 == VK_TRUE;
  has.memory_model = chain.model.vulkanMemoryModel == VK_TRUE;
  has.subgroup_size = has.subgroup_size && chain.subgroup.subgroupSizeControl == VK_TRUE;
  has.full_subgroups = chain.subgroup.computeFullSubgroups == VK_TRUE;
  has.dot4 = chain.dot.shaderIntegerDotProduct == VK_TRUE;
  has.float_atomics = chain.atomic.shaderBufferFloat32AtomicAdd == VK_TRUE;
  has.matrix = chain.matrix.cooperativeMatrix == VK_TRUE && has.memory_model;
  has.push_descriptors = chain.push_descriptors;
  has.creation_feedback = chain.creation_feedback;
}

void DescribeMatrices(const InstanceFunctions& vk, PhysicalDevice* device) {
  auto list = reinterpret_cast<PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR>(
      vk.vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR);
  if (!device->features.matrix || list == nullptr) return;
  std::uint32_t count = 0;
  CheckResult(list(device->handle, &count, nullptr), "listing matrix shapes");
  auto empty = Structure<VkCooperativeMatrixPropertiesKHR>(VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR);
  std::vector<VkCooperativeMatrixPropertiesKHR> shapes(count, empty);
  CheckResult(list(device->handle, &count, shapes.data()), "listing matrix shapes");
  for (const auto& shape : shapes) {
    device->matrices.push_back({shape.MSize, shape.NSize, shape.KSize, static_cast<std::uint32_t>(shape.AType),
                                static_cast<std::uint32_t>(shape.BType), static_cast<std::uint32_t>(shape.CType),
                                static_cast<std::uint32_t>(shape.ResultType),
                                static_cast<std::uint32_t>(shape.scope)});
  }
}

void ChooseFamily(const InstanceFunctions& vk, PhysicalDevice* device) {
  std::uint32_t count = 0;
  vk.vkGetPhysicalDeviceQueueFamilyProperties(device->handle, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  vk.vkGetPhysicalDeviceQueueFamilyProperties(device->handle, &count, families.data());
  // A family without graphics does not wait for what the desktop draws.
  int best = -1;
  for (std::uint32_t i = 0; i < count; ++i) {
    if ((families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) == 0) continue;
    int score = 1 + ((families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT) == 0 ? 2 : 0) +
                (families[i].timestampValidBits != 0 ? 1 : 0);
    if (score <= best) continue;
    best = score;
    device->family = i;
    device->queues = families[i].queueCount;
    device->timestamp_bits = families[i].timestampValidBits;
  }
}

}  // namespace

namespace {

struct Requirement {
  const char* name;
  bool Features::*has;
};

// A kernel that depends on the size of subgroups fixes it besides, as "subgroup" in its entry.
constexpr Requirement kRequirements[] = {
    {"float16", &Features::float16},
    {"float64", &Features::float64},
    {"int8", &Features::int8},
    {"int16", &Features::int16},
    {"int64", &Features::int64},
    {"storage8", &Features::storage8},
    {"storage16", &Features::storage16},
    {"dot4", &Features::dot4},
    {"matrix", &Features::matrix},
    {"memory_model", &Features::memory_model},
    {"float_atomics", &Features::float_atomics},
    {"float_controls", &Features::float_controls},
    {"subgroup", &Features::subgroup_shuffle},
};

const Requirement* Find(const std::string& name) {
  for (const Requirement& each : kRequirements) {
    if (name == each.name) return &each;
  }
  return nullptr;
}

}  // namespace

bool Features::IsKnown(const std::string& name) { return Find(name) != nullptr; }

bool Features::Has(const std::string& name) const {
  const Requirement* found = Find(name);
  return found != nullptr && this->*found->has;
}

std::uint64_t PhysicalDevice::heap_bytes() const {
  std::uint64_t most = 0;
  for (std::uint32_t i = 0; i < memory.memoryHeapCount; ++i) {
    if ((memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0) {
      most = std::max<std::uint64_t>(most, memory.memoryHeaps[i].size);
    }
  }
  return most;
}

bool PhysicalDevice::unified() const {
  return properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU ||
         properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

std::string PhysicalDevice::refusal() const {
  if (properties.apiVersion < VK_API_VERSION_1_1) return "it has Vulkan 1.0 only: 1.1 is needed";
  if (queues == 0) return "it has no queue that computes";
  return "";
}

PhysicalDevice DescribeDevice(const InstanceFunctions& vk, VkPhysicalDevice handle) {
  PhysicalDevice device;
  device.handle = handle;
  auto properties = Structure<VkPhysicalDeviceProperties2>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2);
  vk.vkGetPhysicalDeviceProperties2(handle, &properties);
  device.properties = properties.properties;
  vk.vkGetPhysicalDeviceMemoryProperties(handle, &device.memory);
  if (device.properties.apiVersion < VK_API_VERSION_1_1) return device;
  std::vector<VkExtensionProperties> offered = Extensions(vk, handle);
  DescribeProperties(vk, offered, &device);
  DescribeFeatures(vk, offered, &device);
  DescribeMatrices(vk, &device);
  ChooseFamily(vk, &device);
  return device;
}

VkDevice OpenDevice(const InstanceFunctions& vk, const PhysicalDevice& physical, std::uint32_t queues) {
  std::vector<VkExtensionProperties> offered = Extensions(vk, physical.handle);
  FeatureChain chain(physical.properties.apiVersion, offered);
  vk.vkGetPhysicalDeviceFeatures2(physical.handle, &chain.core);
  chain.KeepUsed();
  std::vector<float> priorities(queues, 1.0f);
  auto queue = Structure<VkDeviceQueueCreateInfo>(VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO);
  queue.queueFamilyIndex = physical.family;
  queue.queueCount = queues;
  queue.pQueuePriorities = priorities.data();
  auto info = Structure<VkDeviceCreateInfo>(VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO);
  info.pNext = &chain.core;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue;
  info.enabledExtensionCount = static_cast<std::uint32_t>(chain.extensions.size());
  info.ppEnabledExtensionNames = chain.extensions.data();
  VkDevice device = VK_NULL_HANDLE;
  CheckResult(vk.vkCreateDevice(physical.handle, &info, nullptr, &device), "opening the Vulkan device");
  return device;
}

}  // namespace greencc::vulkan
