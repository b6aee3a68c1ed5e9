// Finds the Vulkan loader at run time, so that machines without one can still load this library.
#pragma once

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include <string>

namespace greencc::vulkan {

// A structure of Vulkan's, all of it zero but its type.
template <typename T>
T Structure(VkStructureType type) {
  T structure{};
  structure.sType = type;
  return structure;
}

#define GREENCC_VULKAN_GLOBAL_FUNCTIONS(X) \
  X(vkCreateInstance)                      \
  X(vkEnumerateInstanceExtensionProperties) \
  X(vkEnumerateInstanceLayerProperties)    \
  X(vkEnumerateInstanceVersion)

#define GREENCC_VULKAN_INSTANCE_FUNCTIONS(X) \
  X(vkCreateDevice)                          \
  X(vkEnumerateDeviceExtensionProperties)    \
  X(vkEnumeratePhysicalDevices)              \
  X(vkGetDeviceProcAddr)                     \
  X(vkGetPhysicalDeviceFeatures2)            \
  X(vkGetPhysicalDeviceMemoryProperties)     \
  X(vkGetPhysicalDeviceProperties2)          \
  X(vkGetPhysicalDeviceQueueFamilyProperties)

#define GREENCC_VULKAN_DEVICE_FUNCTIONS(X) \
  X(vkAllocateCommandBuffers)              \
  X(vkAllocateDescriptorSets)              \
  X(vkAllocateMemory)                      \
  X(vkBeginCommandBuffer)                  \
  X(vkBindBufferMemory)                    \
  X(vkCmdBindDescriptorSets)               \
  X(vkCmdBindPipeline)                     \
  X(vkCmdCopyBuffer)                       \
  X(vkCmdDispatch)                         \
  X(vkCmdPipelineBarrier)                  \
  X(vkCmdPushConstants)                    \
  X(vkCmdResetQueryPool)                   \
  X(vkCmdWriteTimestamp)                   \
  X(vkCreateBuffer)                        \
  X(vkCreateCommandPool)                   \
  X(vkCreateComputePipelines)              \
  X(vkCreateDescriptorPool)                \
  X(vkCreateDescriptorSetLayout)           \
  X(vkCreateFence)                         \
  X(vkCreatePipelineCache)                 \
  X(vkCreatePipelineLayout)                \
  X(vkCreateQueryPool)                     \
  X(vkCreateShaderModule)                  \
  X(vkDestroyBuffer)                       \
  X(vkDestroyPipeline)                     \
  X(vkDestroyQueryPool)                    \
  X(vkDestroyShaderModule)                 \
  X(vkEndCommandBuffer)                    \
  X(vkFreeMemory)                          \
  X(vkGetBufferMemoryRequirements)         \
  X(vkGetDeviceQueue)                      \
  X(vkGetFenceStatus)                      \
  X(vkGetPipelineCacheData)                \
  X(vkGetQueryPoolResults)                 \
  X(vkMapMemory)                           \
  X(vkQueueSubmit)                         \
  X(vkResetCommandPool)                    \
  X(vkResetDescriptorPool)                 \
  X(vkResetFences)                         \
  X(vkUpdateDescriptorSets)                \
  X(vkWaitForFences)

#define GREENCC_VULKAN_DECLARE(name) PFN_##name name = nullptr;

// The loader's entry points that need no instance.
struct GlobalFunctions {
  PFN_vkGetInstanceProcAddr vkGetInstanceProcAddr = nullptr;
  GREENCC_VULKAN_GLOBAL_FUNCTIONS(GREENCC_VULKAN_DECLARE)
};

struct InstanceFunctions {
  GREENCC_VULKAN_INSTANCE_FUNCTIONS(GREENCC_VULKAN_DECLARE)
  // Null where the instance lacks the extension.
  PFN_vkCreateDebugUtilsMessengerEXT vkCreateDebugUtilsMessengerEXT = nullptr;
  PFN_vkVoidFunction vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR = nullptr;
};

struct DeviceFunctions {
  GREENCC_VULKAN_DEVICE_FUNCTIONS(GREENCC_VULKAN_DECLARE)
  // Null where the device lacks the extension.
  PFN_vkCmdPushDescriptorSetKHR vkCmdPushDescriptorSetKHR = nullptr;
};

#undef GREENCC_VULKAN_DECLARE

// Opens the system's Vulkan loader, or the library that GREENCC_VULKAN_LOADER names.
// Throws a RuntimeError that says what to install when there is none.
GlobalFunctions LoadGlobalFunctions();

InstanceFunctions LoadInstanceFunctions(const GlobalFunctions& global, VkInstance instance);

DeviceFunctions LoadDeviceFunctions(const InstanceFunctions& instance, VkDevice device);

}  // namespace greencc::vulkan
