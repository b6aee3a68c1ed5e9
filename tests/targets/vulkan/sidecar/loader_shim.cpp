// A Vulkan loader that passes everything on to the system's, but for the failures that environment variables ask for:
//
//   SHIM_LOST_AFTER=N   the device is lost at the submit after the first N
//   SHIM_REFUSE_AT=N    there is no memory for the submit after the first N
//   SHIM_MEMORY=N       allocations of device memory beyond N bytes in all fail
//   SHIM_NO_CACHE=1     pipeline caches can't be made; that devices are destroyed is printed
//   SHIM_VERSION_1_0=1  devices say that they have Vulkan 1.0 only

#define VK_NO_PROTOTYPES
#include <dlfcn.h>
#include <vulkan/vulkan.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

PFN_vkGetInstanceProcAddr next_instance;
PFN_vkGetDeviceProcAddr next_device;
PFN_vkQueueSubmit next_submit;
PFN_vkAllocateMemory next_allocate;
PFN_vkDestroyDevice next_destroy;
PFN_vkGetPhysicalDeviceProperties2 next_properties;
std::atomic<std::uint64_t> submits{0}, allocated{0};

std::uint64_t Number(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? UINT64_MAX : std::strtoull(value, nullptr, 10);
}

VKAPI_ATTR VkResult VKAPI_CALL Submit(VkQueue queue, std::uint32_t count, const VkSubmitInfo* infos, VkFence fence) {
  std::uint64_t before = submits++;
  if (before >= Number("SHIM_LOST_AFTER")) return VK_ERROR_DEVICE_LOST;
  if (before == Number("SHIM_REFUSE_AT")) return VK_ERROR_OUT_OF_HOST_MEMORY;
  return next_submit(queue, count, infos, fence);
}

VKAPI_ATTR VkResult VKAPI_CALL Allocate(VkDevice device, const VkMemoryAllocateInfo* info,
                                        const VkAllocationCallbacks* callbacks, VkDeviceMemory* memory) {
  if (allocated + info->allocationSize > Number("SHIM_MEMORY")) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  allocated += info->allocationSize;
  return next_allocate(device, info, callbacks, memory);
}

VKAPI_ATTR VkResult VKAPI_CALL RefuseCache(VkDevice, const VkPipelineCacheCreateInfo*, const VkAllocationCallbacks*,
                                           VkPipelineCache*) {
  return VK_ERROR_OUT_OF_HOST_MEMORY;
}

VKAPI_ATTR void VKAPI_CALL Destroy(VkDevice device, const VkAllocationCallbacks* callbacks) {
  std::puts("destroyed");
  std::fflush(stdout);
  next_destroy(device, callbacks);
}

VKAPI_ATTR void VKAPI_CALL Properties(VkPhysicalDevice device, VkPhysicalDeviceProperties2* properties) {
  next_properties(device, properties);
  if (Number("SHIM_VERSION_1_0") == 1) properties->properties.apiVersion = VK_API_VERSION_1_0;
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL GetDevice(VkDevice device, const char* name) {
  PFN_vkVoidFunction found = next_device(device, name);
  if (std::strcmp(name, "vkQueueSubmit") == 0) {
    next_submit = reinterpret_cast<PFN_vkQueueSubmit>(found);
    return reinterpret_cast<PFN_vkVoidFunction>(Submit);
  }
  if (Number("SHIM_NO_CACHE") == 1 && std::strcmp(name, "vkCreatePipelineCache") == 0) {
    return reinterpret_cast<PFN_vkVoidFunction>(RefuseCache);
  }
  if (Number("SHIM_NO_CACHE") == 1 && std::strcmp(name, "vkDestroyDevice") == 0) {
    next_destroy = reinterpret_cast<PFN_vkDestroyDevice>(found);
    return reinterpret_cast<PFN_vkVoidFunction>(Destroy);
  }
  if (std::strcmp(name, "vkAllocateMemory") == 0) {
    next_allocate = reinterpret_cast<PFN_vkAllocateMemory>(found);
    return reinterpret_cast<PFN_vkVoidFunction>(Allocate);
  }
  return found;
}

}  // namespace

extern "C" VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char* name) {
  if (next_instance == nullptr) {
    void* library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return nullptr;
    next_instance = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
  }
  PFN_vkVoidFunction found = next_instance(instance, name);
  if (std::strcmp(name, "vkGetDeviceProcAddr") == 0) {
    next_device = reinterpret_cast<PFN_vkGetDeviceProcAddr>(found);
    return reinterpret_cast<PFN_vkVoidFunction>(GetDevice);
  }
  if (std::strcmp(name, "vkGetPhysicalDeviceProperties2") == 0) {
    next_properties = reinterpret_cast<PFN_vkGetPhysicalDeviceProperties2>(found);
    return reinterpret_cast<PFN_vkVoidFunction>(Properties);
  }
  return found;
}
